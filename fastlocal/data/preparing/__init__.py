"""Conversion of data sets to files that training reads fast: FFCV's .beton and plain arrays."""
