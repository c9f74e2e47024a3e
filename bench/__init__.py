"""Measurements, each started as `python -m bench.NAME`."""
