"""Stacked convolution: every client's images with that client's own filters."""
