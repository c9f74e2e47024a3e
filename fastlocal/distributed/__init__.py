"""Processes of a run: rendezvous, exchange of values, detection of missing ranks."""
