"""Runs: built from settings and data, trained in their directory."""
