"""Ways to take H local steps of a chunk of clients; all give the same result to rounding."""
