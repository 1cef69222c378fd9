"""Processes of one machine: how they are started, kept running, and ended."""
