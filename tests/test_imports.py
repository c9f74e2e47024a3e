"""Who may import whom, read from the sources, and what starting the command line costs."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

ROOMS = (
    "common",
    "config",
    "models",
    "distributed",
    "params",
    "schedule",
    "telemetry",
    "data",
    "aggregation",
    "checkpoint",
    "algorithms",
    "kernel_trial",
    "executors",
    "module_checks",
    "training",
    "runs",
    "reports",
    "sweeps",
    "verification",
    "api",
    "commands",
    "cli",
    "__main__",
)
"""A room imports rooms before it, and kernels. `__init__` looks up the public names when they are used."""

OPTIONAL = ("ffcv", "h5py", "matplotlib", "nvidia", "pyarrow", "safetensors", "tensorboard", "triton", "wandb")
"""Each is imported only in the files that are named after it."""
NAMED_AFTER = {"nvidia": "dali"}
COMMANDS = (
    *("", "train", "sweep", "profile", "verify", "plan", "evaluate", "prepare", "partition"),
    *("report", "compare", "recipes"),
)


class Import(NamedTuple):
    path: Path
    line: int
    module: str
    """Dotted name of the file that imports."""
    target: str
    """Absolute dotted name of what is imported; of `from a import b`, a.b."""
    typed: bool
    """True if only a type checker imports it."""

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.target}"


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "kernels":
        parts.insert(0, "fastlocal")
    return ".".join(parts)


def imports_of(path: Path) -> Iterator[Import]:
    module, tree = module_name(path), ast.parse(path.read_text(encoding="utf-8"))
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    typed = {id(inner) for block in blocks for inner in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, node.lineno, module, alias.name, id(node) in typed)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            source = [*package, *([node.module] if node.module else [])]
            for alias in node.names:
                yield Import(path, node.lineno, module, ".".join([*source, alias.name]), id(node) in typed)


def imports_in(folder: str) -> list[Import]:
    files = sorted(path for path in (ROOT / folder).rglob("*.py") if "kernels" not in path.relative_to(ROOT).parts[1:])
    return [found for path in files for found in imports_of(path)]


FASTLOCAL = imports_in("fastlocal")
KERNELS = imports_in("kernels")


def area(dotted: str) -> str | None:
    """The part of fastlocal that a name belongs to, fastlocal.data.types.Split -> data; None outside fastlocal."""
    parts = dotted.split(".")
    return None if parts[0] != "fastlocal" else parts[1] if len(parts) > 1 else "__init__"


def between_areas() -> Iterator[tuple[str, str, Import]]:
    for found in FASTLOCAL:
        source, target = area(found.module), area(found.target)
        if source and target and source != target:
            yield source, target, found


def shown(found: list[Import]) -> list[str]:
    return [str(one) for one in found]


def test_the_sources_are_found() -> None:
    assert {area(found.module) for found in FASTLOCAL} >= {"data", "models", "executors", "commands"}
    assert "fastlocal.kernels.philox.draw" in {found.target for found in KERNELS}


def test_rooms_import_in_their_order() -> None:
    rank = {name: place for place, name in enumerate(ROOMS)}
    wrong = [
        found
        for source, target, found in between_areas()
        if source in rank and target in rank and rank[target] > rank[source]
    ]
    assert shown(wrong) == []


def test_no_file_imports_itself_through_others() -> None:
    names = {module_name(path).removesuffix(".__init__") for path in (ROOT / "fastlocal").rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for found in FASTLOCAL:
        source, target = found.module.removesuffix(".__init__"), found.target
        while target not in names and "." in target:
            target = target.rpartition(".")[0]
        if target in names - {source, "fastlocal"} and not found.typed:
            graph.setdefault(source, set()).add(target)
    tuple(graphlib.TopologicalSorter(graph).static_order())


def test_private_names_stay_in_their_package() -> None:
    """A module or name with a leading underscore is imported only in the folder where it lies."""
    wrong = []
    for found in FASTLOCAL + KERNELS:
        parts = found.target.split(".")
        private = next((i for i, part in enumerate(parts) if part.startswith("_") and not part.endswith("__")), None)
        if parts[0] == "fastlocal" and private is not None and found.module.split(".")[:private] != parts[:private]:
            wrong.append(found)
    assert shown(wrong) == []


def test_kernels_import_torch_alone() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "triton"}
    outside = [
        found for found in KERNELS if found.target.split(".")[0] not in allowed and area(found.target) != "kernels"
    ]
    assert shown(outside) == []


@pytest.mark.parametrize("package", OPTIONAL)
def test_optional_packages_are_imported_in_their_own_files(package: str) -> None:
    prefix = f"{NAMED_AFTER.get(package, package)}_"
    wrong = [
        found
        for found in FASTLOCAL + KERNELS
        if (found.target.split(".")[0] == package or found.target.startswith(f"torch.utils.{package}"))
        and not found.path.name.startswith(prefix)
    ]
    assert shown(wrong) == []


def test_benches_do_not_import_the_command_line() -> None:
    wrong = [found for found in imports_in("bench") if area(found.target) in {"cli", "commands", "__main__"}]
    assert shown(wrong) == []


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT)


def test_importing_fastlocal_imports_no_torch() -> None:
    done = python("-c", "import sys, fastlocal; print(fastlocal.__version__, 'torch' in sys.modules)")
    assert done.stdout.split()[1:] == ["False"], done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_no_torch(command: str) -> None:
    done = python("-X", "importtime", "-m", "fastlocal", *command.split(), "--help")
    assert done.returncode == 0, done.stderr.splitlines()[-1]
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "fastlocal" in imported
    assert imported.isdisjoint({"torch", "torchvision", *OPTIONAL})


def test_help_is_quick() -> None:
    """Under 0.6 s, or 8 times what Python itself takes where that is more: the best of five, as not all are held up."""
    seconds: dict[str, list[float]] = {"help": [], "nothing": []}
    for _ in range(5):
        for name, words in (("help", ("-m", "fastlocal", "--help")), ("nothing", ("-c", "pass"))):
            start = time.perf_counter()
            done = python(*words)
            seconds[name].append(time.perf_counter() - start)
            assert done.returncode == 0, done.stderr
    assert min(seconds["help"]) < max(0.6, 8 * min(seconds["nothing"])), seconds


def test_the_quickstart_needs_no_optional_package(tmp_path: Path) -> None:
    """One round of it, on a CPU, where importing any of them raises; torch itself does look whether triton is there.

    Nor does it import sympy, which torch takes 0.8 s for in some of what it does under vmap and on the device "meta".
    """
    hook = f"""
        import importlib.machinery, sys
        class Refuse:
            def find_spec(name, path=None, target=None):
                refused = name.split(".")[0] in {(*OPTIONAL, "sympy")}
                return importlib.machinery.ModuleSpec(name, Refuse) if refused else None
            def create_module(spec):
                raise AssertionError(f"imports {{spec.name}}")
            def exec_module(module):
                pass
        sys.meta_path.insert(0, Refuse)
        from fastlocal.cli import main
        sys.exit(main(sys.argv[1:]))
    """
    flags = ("--epochs", "1", "--eval-freq1", "1", "--device", "cpu", "--log-pth", str(tmp_path / "run"))
    done = python("-c", textwrap.dedent(hook), "train", "quickstart", *flags)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "latest.pt").is_file()
