"""Gradients of norm_act."""
