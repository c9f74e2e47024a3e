"""Which lines that only a GPU would run the rehearsals have walked, from coverage's data.

    python -m tests.rehearsal.walked

Such lines are those of the launchers of Triton kernels, of executors/cuda_graphs.py and of executors/inductor.py, and
those that depend on a test for CUDA. Exits with 1 where a line was not walked whose function docs/gpu.md does not name.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from coverage import CoverageData

ROOT = Path(__file__).parents[2]
WHOLE = ("executors/cuda_graphs.py", "executors/inductor.py")
CUDA = re.compile(r"is_cuda|torch\.cuda|['\"]cuda['\"]|on_gpu|_stream is None")


def sources() -> list[Path]:
    """The files that may hold such lines; those of kernels by the folder's own name."""
    found = [*(ROOT / "fastlocal").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    return sorted(path for path in found if "fastlocal/kernels/" not in str(path))


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function by its name, with its class's where it has one, but Triton's programs."""
    for node in tree.body:
        holders = [(f"{node.name}.", node.body)] if isinstance(node, ast.ClassDef) else [("", [node])]
        for prefix, body in holders:
            for part in body:
                if isinstance(part, ast.FunctionDef) and not any("jit" in ast.unparse(d) for d in part.decorator_list):
                    yield prefix + part.name, part


def lines_for(statements: list[ast.stmt]) -> set[int]:
    """The first line of every statement, which is where coverage sees it."""
    found = set()
    for statement in statements:
        for node in ast.walk(statement):
            plain = isinstance(node, ast.stmt) and not isinstance(node, ast.FunctionDef | ast.Global | ast.Nonlocal)
            text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if plain and not text:
                found.add(node.lineno)
    return found


def of_a_gpu(path: Path, function: ast.FunctionDef) -> set[int]:
    """Lines of the function that only a GPU would run."""
    if path.name == "triton_kernel.py" or str(path).endswith(WHOLE):
        return lines_for(function.body)
    found: set[int] = set()

    def walk(body: list[ast.stmt]) -> None:
        for place, statement in enumerate(body):
            if isinstance(statement, ast.If) and CUDA.search(ast.unparse(statement.test)):
                test = ast.unparse(statement.test)
                on_cuda = "!=" not in test and "is None" not in test and not test.startswith("not ")
                leaves = isinstance(statement.body[-1], ast.Return | ast.Raise)
                rest = statement.orelse or (body[place + 1 :] if leaves else [])
                found.update(lines_for(statement.body if on_cuda else rest))
            for inner in ("body", "orelse", "finalbody"):
                walk(getattr(statement, inner, []))
            for handler in getattr(statement, "handlers", []):
                walk(handler.body)

    walk(function.body)
    return found


def main() -> int:
    data = CoverageData(str(ROOT / ".coverage"))
    data.read()
    measured = {Path(name).resolve(): name for name in data.measured_files()}
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    unnamed = walked = total = 0
    for path in sources():
        executed = set(data.lines(measured.get(path, "")) or ())
        place = path.relative_to(ROOT)
        for name, function in functions(ast.parse(path.read_text(encoding="utf-8"))):
            wanted = of_a_gpu(path, function)
            missed = sorted(wanted - executed)
            total, walked = total + len(wanted), walked + len(wanted) - len(missed)
            if missed:
                named = f"`{place}` `{name}`" in page
                unnamed += not named
                print(f"{place} {name}: lines {', '.join(map(str, missed))}{'' if named else '  NOT IN docs/gpu.md'}")
    print(f"{walked} of {total} lines that only a GPU would run were walked")
    return 1 if unnamed or not walked else 0


if __name__ == "__main__":
    sys.exit(main())
