"""Data sets that bring their clients: files that are torn, foreign or incomplete are refused in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import load
from tests.data.client_files import FEATURES, PIXELS, TEST, write_csv, write_leaf


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
