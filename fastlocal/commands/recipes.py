"""fastlocal recipes: list the recipes."""

from __future__ import annotations

from collections.abc import Sequence

from ..common.errors import UsageError
from ..config.recipes import RECIPES


def run(argv: Sequence[str]) -> int:
    """Print each recipe's name and first line."""
    if argv and argv[0] in ("-h", "--help"):
        print("usage: fastlocal recipes\n\nLists the named runs; `fastlocal train NAME --help` shows what one sets.")
        return 0
    if argv:
        raise UsageError(f"fastlocal recipes takes nothing, got {argv[0]!r}; `fastlocal train NAME --help` shows one")
    for name, recipe in RECIPES.items():
        first_line = (recipe.__doc__ or "").splitlines()[0]
        print(f"{name:<28}{first_line}")
    return 0
