"""Normalization of stacked clients, with an optional residual sum and activation."""
