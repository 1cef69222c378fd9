"""The comparison of policies with real processes and sockets, whose devices alone are emulated."""
