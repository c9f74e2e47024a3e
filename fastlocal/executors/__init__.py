"""Executors of the local steps of a chunk of clients; their results are equal up to rounding."""
