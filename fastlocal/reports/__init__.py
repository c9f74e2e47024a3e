"""What is read after runs: statistics over seeds, tables, plots, one HTML page, and a comparison in the terminal."""
