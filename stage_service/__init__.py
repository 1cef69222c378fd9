"""One stage of the target: a span of layers, its KV pool and, on the last stage, verification."""
