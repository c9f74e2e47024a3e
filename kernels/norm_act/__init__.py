"""Normalisation of stacked clients with what commonly follows it: a residual sum and an activation."""
