"""Averaging of client parameters."""
