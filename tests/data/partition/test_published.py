"""Published procedures, index for index: fixtures/README.md says how they were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastlocal.data.partition.build import build

FIXTURES = Path(__file__).parent / "fixtures"


def cases() -> list[Any]:
    found = []
    for path in sorted(FIXTURES.glob("*.npz")):
        with np.load(path) as file:
            for number, (name, parameters) in enumerate(json.loads(str(file["cases"]))):
                found.append(pytest.param(path, number, name, parameters, id=f"{path.stem}-{name}-{number}"))
    return found


@pytest.mark.parametrize(("path", "number", "name", "parameters"), cases())
def test_indices_are_the_source_s(path: Path, number: int, name: str, parameters: dict[str, Any]) -> None:
    with np.load(path) as file:
        labels, indices, sizes = file["labels"], file[f"indices_{number}"], file[f"sizes_{number}"]
    parts = build(name, samples=len(labels), labels=labels, partition_as=path.stem, **parameters)
    np.testing.assert_array_equal(parts.sizes, sizes)
    np.testing.assert_array_equal(parts.indices, indices)
