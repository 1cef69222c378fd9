"""A span of a transformers model over a pool of KV slots: loading, attention, sampling. Import its modules directly."""
