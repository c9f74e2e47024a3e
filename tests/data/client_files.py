"""Small files of data sets that name clients, and the samples in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(12, 3)).astype(np.float32)
PIXELS = RANDOM.integers(0, 256, (12, 8, 8), dtype=np.uint8)
LABELS = np.arange(12) % 3
CLIENTS = np.array([f"c{number}" for number in (2, 0, 1, 2, 2, 0, 1, 1, 1, 0, 2, 2)])
TEST = slice(0, 4)
ORDER = np.argsort(CLIENTS, kind="stable")
"""Training samples as files by client hold them."""


def write_csv(path: Path, rows: slice, labels: Any = LABELS, clients: bool = True) -> None:
    """Write a table; without clients its columns are in another order."""
    lines = ["writer,a,b,c,kind" if clients else "kind,c,a,b"]
    for row in range(12)[rows]:
        a, b, c = map(str, FEATURES[row])
        cells = [f'"{CLIENTS[row]}"', a, b, c, str(labels[row])] if clients else [str(labels[row]), c, a, b]
        lines.append(",".join(cells))
    path.write_text("\n".join(lines) + "\n")


def saved(folder: Path, columns: dict[str, Any], names: list[str] | None = None) -> None:
    """A folder as datasets.Dataset.save_to_disk writes it."""
    import pyarrow as pa

    table = pa.table(columns)
    features = {"label": {"names": names, "_type": "ClassLabel"}} if names else {}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    folder.mkdir(parents=True)
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as out,
    ):
        out.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")


def png(pixels: Any, folder: Path) -> dict[str, Any]:
    path = folder / "image.png"
    Image.fromarray(pixels).save(path)
    return {"bytes": path.read_bytes(), "path": None}


def users(rows: Any, inputs: Any, names: Any = None) -> dict[str, Any]:
    """The content of a file of LEAF."""
    names = sorted({CLIENTS[row] for row in rows}) if names is None else names
    own = {name: [row for row in rows if CLIENTS[row] == name] for name in names}
    data = {name: {"x": inputs[rows].tolist(), "y": LABELS[rows].tolist()} for name, rows in own.items()}
    return {"users": names, "num_samples": [len(rows) for rows in own.values()], "user_data": data}


def write_leaf(root: Path, inputs: Any) -> None:
    for folder, file, content in (
        ("train", "a.json", users(range(12), inputs, ["c2", "c0"])),
        ("train", "b.json", users(range(12), inputs, ["c1"])),
        ("test", "a.json", users(range(4), inputs)),
    ):
        (root / folder).mkdir(exist_ok=True, parents=True)
        (root / folder / file).write_text(json.dumps(content))
