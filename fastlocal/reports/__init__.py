"""Reports about runs: statistics over seeds, tables, plots, one HTML page, and a comparison in the terminal."""
