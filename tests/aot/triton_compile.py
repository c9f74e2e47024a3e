"""Compile the kernels that an op launches, for a GPU that is not present.

The launchers run unchanged on tensors without contents, and every launch becomes a compilation for the target. The
specialisation of arguments and the choice of blocks and warps are thereby those of a run; an autotuned kernel is
compiled in every configuration that is left after pruning. Nothing is executed.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlocal import kernels
from fastlocal.kernels.case import Case

TARGETS = (80, 90, 100)
"""Compute capabilities, times ten: A100, H100 and H200, B200."""

SHARED_PER_BLOCK = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
SHARED_PER_SM = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
REGISTERS_PER_SM, WARPS_PER_SM, BLOCKS_PER_SM = 65536, 64, 32
"""From the tables of compute capabilities in NVIDIA's CUDA C++ programming guide."""

MATRIX_INSTRUCTIONS = {"mma": "mma.sync.", "wgmma": "wgmma.mma_async.", "tcgen05": "tcgen05.mma."}
"""Tensor-core instructions in PTX: Ampere's (which later targets have too), Hopper's and Blackwell's."""


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel compiled for one target.

    Attributes:
        configuration: Types of the arguments, constants and launch options, as text.
        target: Compute capability, times ten.
        registers: Registers per thread.
        shared: Bytes of shared memory per block.
        stack: Bytes of stack per thread; spilled registers lie there.
        products: Matrix instructions of the PTX, keys of MATRIX_INSTRUCTIONS.
        sass: Count of each load, store and matrix instruction of the machine code; None where it was not read.
    """

    op: str
    case: str
    kernel: str
    configuration: str
    target: int
    num_warps: int
    num_stages: int
    registers: int
    shared: int
    stack: int
    products: str
    sass: Counter[str] | None

    @property
    def occupancy(self) -> float:
        """Theoretical occupancy: resident warps, as registers and shared memory allow, over the maximum."""
        per_warp = -(-self.registers * 32 // 256) * 256
        by_registers = REGISTERS_PER_SM // per_warp // 4 * 4 // self.num_warps
        # the system takes another KiB of each block
        by_shared = SHARED_PER_SM[self.target] // (-(-(self.shared + 1024) // 128) * 128)
        blocks = min(by_registers, by_shared, BLOCKS_PER_SM, WARPS_PER_SM // self.num_warps)
        return blocks * self.num_warps / WARPS_PER_SM

    def count(self, pattern: str) -> int:
        """Count the instructions whose names begin with the regular expression `pattern`."""
        assert self.sass is not None
        return sum(number for name, number in self.sass.items() if re.match(pattern, name))


class _NoDevice:
    """The part of a Triton driver that a compilation needs."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return int(self._target.arch)  # Triton caches compiled kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def recorded_launches(
    target: int, is_selected: Callable[[str, str], bool] = lambda kernel, configuration: True
) -> Iterator[list[tuple[Any, str, Any]]]:
    """Compile every launch of the block for `target` instead of running it.

    Args:
        target: Compute capability, times ten.
        is_selected: Takes a kernel's name and configuration; False records the launch without compiling it.

    Yields:
        A list that receives (kernel, configuration, compiled kernel or None) of each launch that is not compiled yet.
    """
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    launches: list[tuple[Any, str, Any]] = []
    new: list[str] = []
    run, tune, hook = JITFunction.run, Autotuner.run, knobs.runtime.jit_cache_hook

    def before_compilation(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        names = [parameter.name for parameter in fn.jit_function.params]
        new.append(_configuration(names, compile["signature"], compile["constants"], compile["configs"][0]))
        return not is_selected(fn.jit_function.__name__, new[-1])

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        new.clear()
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        launches.extend((self, configuration, compiled) for configuration in new)

    def every_configuration(self: Any, *args: Any, **kwargs: Any) -> None:
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        for config in self.prune_configs(kwargs):
            self.fn.run(*args, **kwargs, **config.all_kwargs())
        self.nargs = None

    driver.set_active(_NoDevice(GPUTarget("cuda", target, 32)))
    JITFunction.run, Autotuner.run, knobs.runtime.jit_cache_hook = compile_only, every_configuration, before_compilation
    try:
        yield launches
    finally:
        JITFunction.run, Autotuner.run, knobs.runtime.jit_cache_hook = run, tune, hook
        driver._active = None


def compile_case(
    op: str,
    case: Case,
    target: int,
    seen: dict[str, str],
    limit: int | None = None,
    *,
    every_tile: bool = True,
    disassemble: bool = True,
) -> Iterator[CompiledKernel]:
    """Compile the kernels that the op's Triton backend launches for this case, gradients included.

    Args:
        op: Name of the op.
        case: Arguments of the call.
        target: Compute capability, times ten.
        seen: Kernel names by configuration; these are left out, and new ones are added.
        limit: Leave out kernels of which this many configurations are in `seen`.
        every_tile: Compile all configurations of the autotuner, or only the first that fits.
        disassemble: Read the machine code, which takes a third of the time.
    """
    count = Counter(seen.values())
    with recorded_launches(target, lambda kernel, _: limit is None or count[kernel] < limit) as launches:
        _launch(op, case, every_tile)
    for kernel, configuration, compiled in launches:
        if compiled is not None and f"{kernel.__name__} {configuration}" not in seen:
            seen[f"{kernel.__name__} {configuration}"] = kernel.__name__
            yield _measured(op, case, target, kernel.__name__, configuration, compiled, disassemble)


def list_case(op: str, case: Case, target: int, *, every_tile: bool = True) -> set[tuple[str, str]]:
    """Return kernel and configuration of everything that `compile_case` would compile."""
    with recorded_launches(target, lambda kernel, configuration: False) as launches:
        _launch(op, case, every_tile)
    return {(kernel.__name__, configuration) for kernel, configuration, _ in launches}


def _launch(op: str, case: Case, every_tile: bool) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(not every_tile)  # deterministic launchers take one tile without timing
    try:
        _call(op, case)
    finally:
        torch.use_deterministic_algorithms(before)


def _call(op: str, case: Case) -> None:
    launcher = kernels.load(op, "triton")
    inputs = {name: _materialized(value) for name, value in case.make_inputs(torch.device("meta")).items()}
    leaves = {name: inputs[name].requires_grad_() for name in case.differentiated}
    returned = launcher(**inputs)
    if leaves:
        parts = returned if isinstance(returned, tuple | list) else (returned,)
        outputs = [part for part in parts if part is not None and part.requires_grad]
        torch.autograd.grad(outputs, list(leaves.values()), [torch.empty_like(part) for part in outputs])


def _materialized(value: Any) -> Any:
    """Allocate a meta tensor on the CPU without touching its memory: only address, shape and strides matter."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)


def _measured(
    op: str, case: Case, target: int, kernel: str, configuration: str, compiled: Any, disassemble: bool
) -> CompiledKernel:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-c", "-ndf", file.name) if disassemble else None
    used = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    meta = compiled.metadata
    ptx = compiled.asm["ptx"]
    return CompiledKernel(
        op=op,
        case=case.name,
        kernel=kernel,
        configuration=configuration,
        target=target,
        num_warps=meta.num_warps,
        num_stages=meta.num_stages,
        registers=used["REG"],
        shared=meta.shared,
        stack=used["STACK"] + used["LOCAL"],
        products=" ".join(name for name, start in MATRIX_INSTRUCTIONS.items() if start in ptx),
        sass=None if code is None else _instructions(code),
    )


def _instructions(code: str) -> Counter[str]:
    names = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)", code, re.MULTILINE)
    watched = re.compile(r"LDG|STG|LDL|STL|LDGSTS|UTMA|HMMA|HGMMA|IMMA|UTC\w*MMA|RED|ATOM")
    return Counter(name for name in names if watched.match(name))


def _configuration(
    names: list[str],
    signature: dict[str, str],
    constants: dict[tuple[int, ...], object],
    attributes: dict[tuple[int, ...], object],
) -> str:
    fixed = {path[0]: value for path, value in constants.items()}
    wide = {path[0] for path in attributes}
    words = []
    for index, name in enumerate(names):
        if index in fixed:
            words.append(f"{name}={fixed[index]}")
        else:
            words.append(f"{name}:{signature[name]}{'/16' if index in wide else ''}")
    return " ".join(words)


def _tool(name: str, *arguments: str) -> str:
    """Run one of the tools that come with Triton, and return its output."""
    from triton import knobs

    tool = getattr(knobs.nvidia, name).path
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run([tool, *arguments], check=True, capture_output=True, text=True, env=environment).stdout
