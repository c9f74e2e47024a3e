"""The parts of the documentation that are made from the sources and from bench/results.

python -m tests.docs.regenerate            write docs/flags.md and the tables of the other pages
python -m tests.docs.regenerate --check    exit with 1 where a file would change
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tests.docs import bench_tables, counted_tables, federated_tables, flags_page, peer_tables
from tests.docs.markdown_tables import fill

ROOT = Path(__file__).resolve().parents[2]
WITH_TABLES = ("README.md", "docs/benchmarks.md", "docs/gpu.md", "docs/peers.md", "docs/profiling.md")
TABLES = {**bench_tables.TABLES, **counted_tables.TABLES, **federated_tables.TABLES, **peer_tables.TABLES}


def pages() -> dict[str, str]:
    """Return the text that each generated file should have, by its path in the repository."""
    blocks = {name: make() for name, make in TABLES.items()}
    filled = {name: fill((ROOT / name).read_text(encoding="utf-8"), blocks) for name in WITH_TABLES}
    return {"docs/flags.md": flags_page.page(), **filled}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.docs.regenerate", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a file would change")
    asked = parser.parse_args(arguments)
    old = []
    for name, text in pages().items():
        path = ROOT / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            old.append(name)
            print(f"{name}: {'differs' if asked.check else 'written'}")
            if not asked.check:
                path.write_text(text, encoding="utf-8")
    return 1 if asked.check and old else 0


if __name__ == "__main__":
    raise SystemExit(main())
