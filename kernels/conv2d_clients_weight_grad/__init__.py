"""Gradient of the stacked convolution with respect to its filters."""
