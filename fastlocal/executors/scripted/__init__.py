"""One client's local step as a TorchScript function."""
