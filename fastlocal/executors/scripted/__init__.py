"""Compile one client's local step to a TorchScript function."""
