"""Checks of the settings of the model that need neither data nor torch."""

from __future__ import annotations

from collections.abc import Iterator

from .schema import RunConfig

LARGEST = 65536
"""Maximum of each size of a model of tokens."""


def model_problems(config: RunConfig) -> Iterator[str]:
    """Yield what is wrong with the sizes of a model of tokens."""
    model = config.model
    sizes = {
        "--context": config.data.context,
        "--n-layers": model.n_layers,
        "--width": model.width,
        "--n-heads": model.n_heads,
    }
    for flag, value in sizes.items():
        if not 1 <= value <= LARGEST:
            yield f"{flag} {value}: must be at least 1, and at most {LARGEST}"
    if model.width % max(model.n_heads, 1):
        yield f"--n-heads {model.n_heads}: must divide --width {model.width}"
