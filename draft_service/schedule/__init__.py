"""What enters the pipeline and the draft model, and when. Pure: no sockets, no clock. Import its modules directly.

backlog        requests that wait, and the order in which they get a place
sequence       a running request: its tokens, its prediction tree, what the pipeline and the draft model have of it
slot_pool      KV slots: free, of running requests, and kept for requests to come
prefix_cache   what is in those that are kept
in_flight      the batches in the pipeline
draft_batches  those for the draft model
guidance       what a request's grammar lets the draft model propose
suspicion      which request it is that stages die of
scheduler      composes the batches of all of these, and takes what was decided
"""
