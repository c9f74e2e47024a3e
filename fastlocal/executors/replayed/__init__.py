"""Stacked steps on a CPU as the list of their operations: recorded twice, then replayed without vmap and autograd."""
