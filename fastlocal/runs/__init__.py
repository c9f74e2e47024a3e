"""Runs: resolve the settings, build the parts, and train in a run directory."""
