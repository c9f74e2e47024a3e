"""The gradients of norm_act."""
