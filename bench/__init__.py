"""Benches, each started as `python -m bench.NAME`; `python -m bench` lists them."""
