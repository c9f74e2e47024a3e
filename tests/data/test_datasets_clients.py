"""Data sets that bring their clients, from small files of each format."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import load
from fastlocal.data.partition import Partition
from fastlocal.data.types import DataSet, Split, StoredSplit
from tests.helpers.command_line import metrics, run

RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(12, 3)).astype(np.float32)
PIXELS = RANDOM.integers(0, 256, (12, 8, 8), dtype=np.uint8)
LABELS = np.arange(12) % 3
CLIENTS = np.array([f"c{number}" for number in (2, 0, 1, 2, 2, 0, 1, 1, 1, 0, 2, 2)])
TEST = slice(0, 4)
ORDER = np.argsort(CLIENTS, kind="stable")
"""Training samples as files by client hold them."""


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


def write_csv(path: Path, rows: slice, labels: Any = LABELS, clients: bool = True) -> None:
    """Write a table; without clients its columns are in another order."""
    lines = ["writer,a,b,c,kind" if clients else "kind,c,a,b"]
    for row in range(12)[rows]:
        a, b, c = map(str, FEATURES[row])
        cells = [f'"{CLIENTS[row]}"', a, b, c, str(labels[row])] if clients else [str(labels[row]), c, a, b]
        lines.append(",".join(cells))
    path.write_text("\n".join(lines) + "\n")


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
    evaluated = run(capsys, "evaluate", tmp_path / "run" / "latest.pt", *words)
    assert evaluated.status == 0 and "val_acc1" in evaluated.out


def leaf_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], tuple[Any, ...]]:
    def write(root: Path) -> tuple[Any, ...]:
        write_leaf(root, FEATURES)
        path = root / "train" / "a.json"
        content = json.loads(path.read_text())
        text = change(content)
        path.write_text(text if isinstance(text, str) else json.dumps(content))
        return ("leaf", {"data_pth": str(root)})

    return write


def csv_with(text: str, **more: str) -> Callable[[Path], tuple[Any, ...]]:
    def write(root: Path) -> tuple[Any, ...]:
        (root / "train.csv").write_text(text)
        write_csv(root / "test.csv", TEST)
        return ("csv", {"data_pth": str(root), "label_column": "kind"} | more)

    return write


GOOD = "writer,a,b,c,kind\nc0,1,2,3,0\n"


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (leaf_with(lambda c: c["user_data"].pop("c0")), "user 'c0' has no data; x and y are expected in user_data"),
        (leaf_with(lambda c: c["user_data"]["c0"].update(x=[], y=[])), "leave users without data out"),
        (leaf_with(lambda c: c["num_samples"].reverse()), "and num_samples says"),
        (leaf_with(lambda c: c["user_data"]["c0"].update(x=["to be", "or", "not"])), "x is <U5, y int64"),
        (leaf_with(lambda c: c["user_data"]["c0"]["x"].append([1])), "leave users without data out"),
        (leaf_with(lambda c: json.dumps(c)[:50]), "a.json: is no JSON"),
        (leaf_with(lambda c: "[]"), "is no file of LEAF"),
        (leaf_with(lambda c: c["users"].append("c1") or c["num_samples"].append(0)), "user 'c1' has no data"),
        (lambda root: ("leaf", {"data_pth": str(root)}), "does not exist; LEAF writes .json files to the folders"),
        (csv_with(GOOD, client_column="user"), "--client-column user: --data-pth"),
        (csv_with(GOOD, label_column="y"), "has the columns writer, a, b, c, kind"),
        (csv_with(GOOD + "c0,1,2\n", client_column="writer"), "train.csv: cannot be read (invalid column index"),
        (csv_with(GOOD + "c0,1,x,3,0\n", client_column="writer"), "could not convert string 'x' to float32"),
        (csv_with(GOOD + "c0,1,nan,3,0\n", client_column="writer"), "inputs hold NaN or infinity"),
        (csv_with(GOOD + "c0,1,2,3,-1\n", client_column="writer"), "label -1; labels count from 0"),
        (csv_with("writer,a,b,c,kind\n", client_column="writer"), "train.csv: holds no samples"),
        (csv_with(""), "its first line names no columns"),
        (csv_with("a,a,kind\n1,2,0\n"), "its first line names no columns, or one twice"),
        (csv_with("\0\xff"), "--label-column kind: --data-pth"),
        (
            csv_with("writer,a,b,kind\nc,1,2,0\n", client_column="writer"),
            "training and test files differ in the column c",
        ),
        (csv_with(GOOD, data_pth="train.csv"), "does not exist; --dataset csv takes a .csv file"),
    ],
)
def test_bad_files_are_refused_in_one_line(write: Any, says: str, tmp_path: Path) -> None:
    name, about = write(tmp_path)
    with pytest.raises(UsageError) as refused:
        load(name, **about)
    assert says in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 400
    assert "--" in str(refused.value)


def test_a_missing_test_split_is_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", slice(None))
    with pytest.raises(UsageError, match=r"has no \*test\*\.csv; give one as --val-pth"):
        load("csv", data_pth=str(tmp_path), label_column="kind")
    with pytest.raises(UsageError, match="is the training file; give the test file as --val-pth"):
        load("csv", data_pth=str(tmp_path / "train.csv"), label_column="kind")
    (tmp_path / "c0" / "train" / "a").mkdir(parents=True)
    Image.fromarray(PIXELS[0]).save(tmp_path / "c0" / "train" / "a" / "0.png")
    with pytest.raises(UsageError, match="no client has a folder test; give one test folder as --val-pth"):
        load("client_folders", data_pth=str(tmp_path))
    with pytest.raises(UsageError, match="give the train hdf5 file"):
        load("hdf5", data_pth=None)


@pytest.mark.parametrize(("name", "suffix", "package"), [("parquet", ".parquet", "pyarrow"), ("hdf5", ".h5", "h5py")])
def test_a_missing_package_is_named(
    name: str, suffix: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}{suffix}").touch()
    monkeypatch.delitem(sys.modules, f"fastlocal.data.tables.{package}_files", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"--dataset {name} needs {package}; .*'fastlocal\[{package}\]'"):
        load(name, data_pth=str(tmp_path))


@pytest.mark.needs("pyarrow", "h5py")
def test_binary_files_that_are_none_are_refused(tmp_path: Path) -> None:
    for name, suffix in (("parquet", ".parquet"), ("hdf5", ".h5")):
        for split in ("train", "test"):
            (tmp_path / f"{split}{suffix}").write_bytes(b"nothing of the kind")
        with pytest.raises(UsageError, match=rf"train\{suffix}: cannot be read \([^\n]+\)$"):
            load(name, data_pth=str(tmp_path))
    (tmp_path / "partition_0").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(UsageError, match="partition_0: is no folder of save_to_disk"):
        load("flower", data_pth=str(tmp_path))
    (tmp_path / "partition_2").mkdir()
    with pytest.raises(UsageError, match="has no folder partition_1, but partition_2"):
        load("flower", data_pth=str(tmp_path))
