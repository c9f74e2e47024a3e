"""Trains many Local SGD clients at once: clients are a tensor axis."""

from __future__ import annotations

__version__ = "0.1.0"
