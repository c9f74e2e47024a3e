"""Trials of kernels on this machine: each runs in a process that may crash or hang, and its verdict is stored."""
