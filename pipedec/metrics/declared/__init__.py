"""The metrics of each service: what they are called, what they count, and what they are good for."""
