"""Kernels tried on this machine before they are trusted, each in a process that may crash or hang, and remembered."""
