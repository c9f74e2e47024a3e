"""Timing: which executor and which convolution is the fastest on the shapes at hand."""
