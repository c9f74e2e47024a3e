"""The C++ operations do what torch's own do one after the other, and are compiled once or said to be missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastlocal.common.disk_cache import cache_file
from fastlocal.kernels import native

LAST = torch.channels_last
AFTER: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.nn.functional.relu,
    "silu": torch.nn.functional.silu,
}


def images(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).contiguous(memory_format=LAST)


def through(ops: Any, x: Tensor, residual: Tensor | None, groups: int, kind: str, grad: Tensor) -> dict[str, Tensor]:
    """What the operations make of images and of a gradient; weights and biases are not what they start as."""
    channels, eps, number = x.shape[1], 1e-3, native.ACTIVATIONS[kind]
    affine = torch.linspace(0.5, 1.5, channels), torch.linspace(-1, 1, channels)
    mean, rstd = torch.empty(2, len(x) * groups).unbind()
    y, dx, dweight, dbias = torch.empty_like(x), torch.empty_like(x), torch.empty(channels), torch.empty(channels)
    dresidual = None if residual is None else torch.empty_like(x)
    ops.group_norm_act(x, *affine, residual, y, mean, rstd, groups, eps, number)
    results = dx, dweight, dbias, dresidual
    ops.group_norm_act_backward(grad, x, *affine, residual, mean, rstd, *results, groups, number)
    found = {"y": y, "dx": dx, "dweight": dweight, "dbias": dbias}
    return found if dresidual is None else found | {"dresidual": dresidual}


def in_torch(x: Tensor, residual: Tensor | None, groups: int, kind: str, grad: Tensor) -> dict[str, Tensor]:
    """The same in float64 by torch's own operations and autograd."""
    affine = {"dweight": torch.linspace(0.5, 1.5, x.shape[1]), "dbias": torch.linspace(-1, 1, x.shape[1])}
    leaves = {"dx": x, **affine}
    if residual is not None:
        leaves["dresidual"] = residual
    leaves = {name: value.double().requires_grad_() for name, value in leaves.items()}
    normal = torch.nn.functional.group_norm(leaves["dx"], groups, leaves["dweight"], leaves["dbias"], 1e-3)
    y = AFTER[kind](normal + leaves["dresidual"] if residual is not None else normal)
    y.backward(grad.double())
    grads = {name: value.grad for name, value in leaves.items()}
    return {"y": y.detach()} | {name: value for name, value in grads.items() if value is not None}


SHAPES = [((3, 16, 5, 7), 8), ((2, 48, 3, 3), 1), ((1, 32, 1, 4), 32), ((4, 64, 2, 2), 4), ((2, 16, 1, 1), 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", AFTER)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_group_norm(
    shape: tuple[int, ...], groups: int, with_residual: bool, kind: str, dtype: torch.dtype, ops: Any
) -> None:
    x, grad = images(*shape, dtype=dtype) * 3 + 5, images(*shape, dtype=dtype, seed=1)
    residual = images(*shape, dtype=dtype, seed=2) if with_residual else None
    got, wanted = through(ops, x, residual, groups, kind, grad), in_torch(x, residual, groups, kind, grad)
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        # a bfloat16 is off by 2**-9 of itself; statistics are of float images in either case
        tolerance = 1e-4 if dtype == torch.float32 or name in ("dweight", "dbias") else 8e-3
        torch.testing.assert_close(got[name].double(), value, rtol=tolerance, atol=tolerance, msg=name)


def test_no_images(ops: Any) -> None:
    x = images(0, 16, 4, 4)
    found = through(ops, x, None, 4, "silu", x)
    assert not found["dweight"].any() and not found["dbias"].any()


@pytest.mark.parametrize("kind", AFTER)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_not_finite_stays_visible(kind: str, value: float, dtype: torch.dtype, ops: Any) -> None:
    x, grad = images(2, 16, 3, 3, dtype=dtype), images(2, 16, 3, 3, dtype=dtype)
    x[0, 3, 1, 1] = value
    found = through(ops, x, None, 4, kind, grad)
    assert found["y"][0, :4].isnan().all() and found["dx"][0, :4].isnan().all()
    assert found["y"][1].isfinite().all() and found["dx"][1].isfinite().all()
    assert found["dweight"][:4].isnan().all() and found["dweight"][4:].isfinite().all()


@pytest.mark.parametrize("size", [30.0, 90.0, 1e4, 1e38])
def test_far_from_zero_silu_is_that_of_torch(size: float, ops: Any) -> None:
    residual = torch.linspace(-size, size, 16 * 9).reshape(1, 16, 3, 3).contiguous(memory_format=LAST)
    x = torch.zeros_like(residual)
    grad = torch.ones_like(x)
    got, wanted = through(ops, x, residual, 4, "silu", grad), in_torch(x, residual, 4, "silu", grad)
    torch.testing.assert_close(got["y"], wanted["y"].float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got["dresidual"], wanted["dresidual"].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.zeros(2, 16, 3, 3), "channels-last"),
        (images(2, 24, 3, 3), "multiple of 16"),
        (images(2, 16, 3, 3).double(), "floats or bfloat16"),
        (images(2, 16, 3, 3)[0], "channels, height, width"),
    ],
    ids=["rows", "channels", "double", "axes"],
)
def test_what_it_does_not_take_is_refused(x: Tensor, says: str, ops: Any) -> None:
    with pytest.raises(RuntimeError, match=says):
        through(ops, x, None, 4, "silu", x)


def test_other_tensors_have_to_fit(ops: Any) -> None:
    x, other = images(2, 16, 3, 3), images(2, 16, 3, 4)
    for grad, residual in ((other, None), (x, other), (x.bfloat16(), None)):
        with pytest.raises(RuntimeError, match="of one"):
            through(ops, x, residual, 4, "none", grad)
    with pytest.raises(RuntimeError, match="of the groups"):
        through(ops, x, None, 3, "none", x)


@pytest.fixture
def fresh() -> Iterator[None]:
    """As in a process that has not asked yet."""
    native.load.cache_clear()
    yield
    native.load.cache_clear()


def test_without_a_compiler(tmp_path: Path, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert native.load(tmp_path) == "there is no C++ compiler: neither $CXX, c++, g++ nor clang++"


def test_a_compiler_that_fails(tmp_path: Path, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "compiler"
    script.write_text("#!/bin/sh\necho 'here: error: no space' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    assert native.load(tmp_path / "cache") == f"{script} does not compile it: here: error: no space"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]
    script.write_text("#!/bin/sh\n")  # says that all is well, and makes nothing
    native.load.cache_clear()
    assert "No such file" in str(native.load(tmp_path / "cache"))


def test_an_unwritable_folder(tmp_path: Path, fresh: None) -> None:
    (tmp_path / "file").touch()
    assert "Not a directory" in str(native.load(tmp_path / "file" / "cache"))


LOAD = "import sys, pathlib, fastlocal.kernels.native as native; print(native.load(pathlib.Path(sys.argv[1])))"


def ready_compiler(folder: Path, first: str = "true") -> Path:
    """A compiler that has the library at hand, as a real one takes half a minute; it does `first` at each call."""
    (whole,) = cache_file("native").glob("native-*.so")
    compiler = folder / "compiler"
    copies = f'for last; do [ "$before" = -o ] && cp {whole} "$last"; before=$last; done; true'
    compiler.write_text(f"#!/bin/sh\n{first}\n{copies}\n")
    compiler.chmod(0o755)
    return compiler


def test_it_is_compiled_once(tmp_path: Path, ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By two that ask at once, whose locks are those of two processes, and by none that comes later."""
    calls = tmp_path / "calls"
    monkeypatch.setenv("CXX", str(ready_compiler(tmp_path, f"echo call >> {calls}; sleep 0.1")))
    with ThreadPoolExecutor(2) as pool:
        built = list(pool.map(native.build_library, [tmp_path, tmp_path]))
    compiled = calls.read_text()
    assert compiled.count("call") == len(list(native.FOLDER.glob("*.cpp"))) + 1
    assert native.build_library(tmp_path) == built[0] == built[1] and calls.read_text() == compiled
    assert list(tmp_path.glob("native-*")) == [built[0][0]]


def test_a_damaged_library_is_made_anew(tmp_path: Path, ops: Any) -> None:
    """By a compiler that has it at hand."""
    (whole,) = cache_file("native").glob("native-*.so")
    compiler = ready_compiler(tmp_path)
    words, environment = [sys.executable, "-c", LOAD, str(tmp_path)], os.environ | {"CXX": str(compiler)}
    (tmp_path / f"native-{native._key(str(compiler))}.so").write_bytes(b"no library")
    assert subprocess.run(words, capture_output=True, text=True, env=environment).stdout == "None\n"
    assert [path.read_bytes() for path in tmp_path.glob("native-*")] == [whole.read_bytes()]
