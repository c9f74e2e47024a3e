"""Data sets that bring their clients, from small files of each format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastlocal.data.datasets import load
from fastlocal.data.partition import Partition
from fastlocal.data.types import DataSet, Split, StoredSplit
from tests.data.client_files import (
    CLIENTS,
    FEATURES,
    LABELS,
    ORDER,
    PIXELS,
    TEST,
    png,
    saved,
    write_csv,
    write_leaf,
)
from tests.helpers.command_line import metrics, run


def owned(data: DataSet) -> dict[str, list[int]]:
    """The samples of each client of the data set, as its own partition says."""
    parts = data.natural
    assert isinstance(parts, Partition)
    parts.check(len(data.train), data.train.targets)
    return {
        parts.name_of(client).strip("'"): sorted(parts.samples_of(client).tolist()) for client in range(parts.clients)
    }


def of_column() -> dict[str, list[int]]:
    return {name: np.flatnonzero(CLIENTS == name).tolist() for name in ("c0", "c1", "c2")}


def by_client() -> dict[str, list[int]]:
    return {name: np.flatnonzero(CLIENTS[ORDER] == name).tolist() for name in ("c0", "c1", "c2")}


def same(split: Any, inputs: Any, labels: Any) -> None:
    assert isinstance(split, Split) and split.inputs.is_contiguous()
    assert torch.equal(split.inputs, torch.from_numpy(np.ascontiguousarray(inputs)))
    assert split.targets.tolist() == list(labels) and split.targets.dtype == torch.int64


@pytest.mark.parametrize("labels", [LABELS, np.array(["ash", "beech", "fir"])[LABELS]], ids=["numbers", "names"])
def test_csv(labels: Any, tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", slice(None), labels)
    write_csv(tmp_path / "test.csv", TEST, labels, clients=False)
    data = load("csv", data_pth=str(tmp_path), client_column="writer", label_column="kind")
    same(data.train, FEATURES[:, None, None], LABELS)
    same(data.test, FEATURES[TEST][:, None, None], LABELS[TEST])
    assert data.classes == 3 and data.mean is None and data.std is None
    assert data.class_names == (None if labels is LABELS else ("ash", "beech", "fir"))
    assert owned(data) == of_column()


@pytest.mark.needs("pyarrow")
def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"client": CLIENTS, "a": FEATURES[:, 0], "b": FEATURES[:, 1].astype(np.float64), "label": LABELS}
    table = pa.table({name: pa.array(column) for name, column in columns.items()})
    table = table.set_column(0, "client", table["client"].dictionary_encode())
    pq.write_table(table, tmp_path / "my_train.parquet")
    pq.write_table(table.slice(0, 4).drop_columns("client"), tmp_path / "my_test.parquet")
    data = load("parquet", data_pth=str(tmp_path))
    same(data.train, FEATURES[:, None, None, :2], LABELS)
    same(data.test, FEATURES[TEST][:, None, None, :2], LABELS[TEST])
    assert owned(data) == of_column()


@pytest.mark.needs("pyarrow")
@pytest.mark.parametrize("nested", [False, True])
def test_flower(nested: bool, tmp_path: Path) -> None:
    """Eleven partitions, as 10 comes after 9; the test split is its own folder, or one of each partition."""
    rows = np.array([*range(11), 11])
    for client in range(11):
        own = rows[client : client + 1] if client < 10 else rows[10:]
        columns = {"image": [png(PIXELS[row], tmp_path) for row in own], "label": LABELS[own]}
        folder = tmp_path / "data" / f"partition_{client}"
        saved(folder / "train" if nested else folder, columns, ["ash", "beech", "fir"])
        if nested and client < 4:
            saved(folder / "test", columns)
        elif nested:
            saved(folder / "test", {name: column[:0] for name, column in columns.items()} if client == 99 else columns)
    if not nested:
        saved(tmp_path / "tests", {"image": [png(PIXELS[row], tmp_path) for row in range(4)], "label": LABELS[TEST]})
    data = load("flower", data_pth=str(tmp_path / "data"), val_pth=None if nested else str(tmp_path / "tests"))
    same(data.train, PIXELS[:, None], LABELS)
    same(data.test, PIXELS[:, None] if nested else PIXELS[TEST][:, None], LABELS if nested else LABELS[TEST])
    assert data.class_names == ("ash", "beech", "fir") and data.mean is not None
    assert owned(data) == {str(client): [client] for client in range(10)} | {"10": [10, 11]}


@pytest.mark.needs("h5py")
@pytest.mark.parametrize("as_floats", [False, True])
def test_hdf5(as_floats: bool, tmp_path: Path) -> None:
    import h5py

    for path, rows in (("fed_train.h5", range(12)), ("fed_test.h5", range(4))):
        with h5py.File(tmp_path / path, "w") as file:
            for name in {CLIENTS[row] for row in rows}:
                own = [row for row in rows if CLIENTS[row] == name]
                pixels = PIXELS[own] / np.float32(255) if as_floats else PIXELS[own]
                file[f"examples/{name}/pixels"] = pixels
                file[f"examples/{name}/label"] = LABELS[own].astype(np.int32)
    data = load("hdf5", data_pth=str(tmp_path))
    same(data.train, PIXELS[ORDER][:, None], LABELS[ORDER])
    assert owned(data) == by_client()


@pytest.mark.parametrize("images", [False, True])
def test_leaf(images: bool, tmp_path: Path) -> None:
    write_leaf(tmp_path, PIXELS.reshape(12, 64) / 255 if images else FEATURES.astype(np.float64))
    data = load("leaf", data_pth=str(tmp_path))
    same(data.train, (PIXELS[:, None] if images else FEATURES[:, None, None])[ORDER], LABELS[ORDER])
    assert len(data.test) == 4 and (data.mean is None) is not images
    assert owned(data) == by_client()


@pytest.mark.parametrize("client_first", [False, True])
@pytest.mark.parametrize("lazy", [False, True])
def test_client_folders(client_first: bool, lazy: bool, tmp_path: Path) -> None:
    """Client c1 has no sample of class 2, and the classes of all count."""
    rows = [row for row in range(12) if not (CLIENTS[row] == "c1" and LABELS[row] == 2)]
    for split, chosen in (("train", rows), ("test", range(3))):
        for row in chosen:
            client = CLIENTS[row] if client_first or split == "train" else ""
            folder = tmp_path / (Path(client, split) if client_first else Path(split, client)) / f"class{LABELS[row]}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(PIXELS[row]).save(folder / f"{row:02}.png")
    if client_first:  # of clients, only those with tests have a folder of them; here each class is tested
        assert not (tmp_path / "c3").exists()
    data = load("client_folders", data_pth=str(tmp_path), lazy=lazy, mean=(0.5,), std=(0.25,))
    order = sorted(rows, key=lambda row: (CLIENTS[row], LABELS[row], row))
    assert data.train.targets is not None and data.train.targets.tolist() == LABELS[order].tolist()
    if lazy:
        assert isinstance(data.train, StoredSplit)
        assert np.array_equal(data.train.images.read(3)[..., 0], PIXELS[order[3]])
    else:
        assert isinstance(data.train, Split) and np.array_equal(data.train.inputs[:, 0].numpy(), PIXELS[order])
    held = {name: [at for at, row in enumerate(order) if CLIENTS[row] == name] for name in ("c0", "c1", "c2")}
    assert owned(data) == held and data.class_names == ("class0", "class1", "class2")


def test_features_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers that are no images go through the command line as they are."""
    for name in ("train", "test"):
        write_csv(tmp_path / f"{name}.csv", slice(None))
    words = ["--dataset", "csv", "--data-pth", tmp_path, "--client-column", "writer", "--label-column", "kind"]
    flags = ["--device", "cpu", "--batch-size", 2, "--clients", 2, "--epochs", 2, "--client-lr", 0.1]
    outcome = run(capsys, "train", *words, *flags, "--log-pth", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    assert len(metrics(tmp_path / "run")) > 0
    refused = run(capsys, "train", *words, *flags, "--mean", 0.5, "--log-pth", tmp_path / "other")
    assert refused.status == 2 and "--mean, --std: are for images of 8 bits" in refused.err
    write_leaf(tmp_path / "leaf", FEATURES)
    out = tmp_path / "prepared"
    prepared = run(capsys, "prepare", "--dataset", "leaf", "--data-pth", tmp_path / "leaf", "--out", out)
    assert prepared.status == 2 and "--dataset leaf: holds features, not images" in prepared.err and not out.exists()
    evaluated = run(capsys, "evaluate", tmp_path / "run" / "latest.pt", *words)
    assert evaluated.status == 0 and "val_acc1" in evaluated.out
