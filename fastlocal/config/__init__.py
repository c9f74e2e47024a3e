"""Settings of a run: RunConfig, its checks, recipes and config.json. No torch."""

from .schema import RunConfig

__all__ = ["RunConfig"]
