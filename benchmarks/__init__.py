"""Measurements: what the policies are worth on a simulated clock, what our own overhead is in real processes."""
