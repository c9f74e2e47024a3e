"""Settings of a run: the RunConfig, its checks, its recipes, and config.json. Without torch."""

from .schema import RunConfig

__all__ = ["RunConfig"]
