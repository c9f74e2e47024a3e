"""Compile what an op launches, for a GPU that is not there.

The launchers run as they are, on tensors without contents; every launch is turned into a compilation for the target, so
that what is compiled is what a run compiles: the same specialisation of arguments, the same choice of blocks and warps,
and of an autotuned kernel every configuration that is left after pruning. Nothing is executed.
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
"""As in the tables of compute capabilities in NVIDIA's CUDA C++ programming guide."""


@dataclass(frozen=True)
class Compiled:
    """A kernel as it would run on one target.

    configuration: types of the arguments, constants and launch options, in words
    registers: per thread        shared, stack: bytes per block and per thread; a stack holds spilled registers
    sass: how often each load, store and matrix instruction occurs
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
    sass: Counter[str]

    @property
    def occupancy(self) -> float:
        """Resident warps over the most that a multiprocessor holds, as registers and shared memory allow."""
        per_warp = -(-self.registers * 32 // 256) * 256
        by_registers = REGISTERS_PER_SM // per_warp // 4 * 4 // self.num_warps
        # each block takes another KiB for the system
        by_shared = SHARED_PER_SM[self.target] // (-(-(self.shared + 1024) // 128) * 128)
        blocks = min(by_registers, by_shared, BLOCKS_PER_SM, WARPS_PER_SM // self.num_warps)
        return blocks * self.num_warps / WARPS_PER_SM

    def count(self, pattern: str) -> int:
        """How many instructions have a name that begins as the regular expression `pattern`."""
        return sum(number for name, number in self.sass.items() if re.match(pattern, name))


class _NoDevice:
    """What Triton asks a driver for before it compiles."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return int(self._target.arch)  # Triton keeps what it compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def recorded_launches(
    target: int, wanted: Callable[[str], bool] = lambda kernel: True
) -> Iterator[list[tuple[Any, Any]]]:
    """Within, every launch is compiled for `target` and noted as (kernel, what was compiled) instead of run.

    wanted: whether a kernel of this name is compiled at all
    """
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    launches: list[tuple[Any, Any]] = []
    run, tune = JITFunction.run, Autotuner.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        if wanted(self.__name__):
            launches.append((self, run(self, *args, grid=grid, warmup=True, **kwargs)))

    def every_configuration(self: Any, *args: Any, **kwargs: Any) -> None:
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        for config in self.prune_configs(kwargs):
            self.fn.run(*args, **kwargs, **config.all_kwargs())
        self.nargs = None

    driver.set_active(_NoDevice(GPUTarget("cuda", target, 32)))
    JITFunction.run, Autotuner.run = compile_only, every_configuration
    try:
        yield launches
    finally:
        JITFunction.run, Autotuner.run = run, tune
        driver._active = None


def compile_case(op: str, case: Case, target: int, seen: dict[str, str], most: int | None = None) -> Iterator[Compiled]:
    """What the op's Triton backend launches for this case, gradients included.

    seen: {hash of what was compiled: its kernel}; what is in it is not given again, and what is new is added
    most: leave out kernels of which so many are in `seen`
    """
    launcher = kernels.load(op, "triton")
    inputs = {name: _materialized(value) for name, value in case.make_inputs(torch.device("meta")).items()}
    leaves = {name: inputs[name].requires_grad_() for name in case.differentiated}
    count = Counter(seen.values())
    with recorded_launches(target, lambda kernel: most is None or count[kernel] < most) as launches:
        returned = launcher(**inputs)
        if leaves:
            parts = returned if isinstance(returned, tuple | list) else (returned,)
            outputs = [part for part in parts if part is not None and part.requires_grad]
            torch.autograd.grad(outputs, list(leaves.values()), [torch.empty_like(part) for part in outputs])
    for kernel, compiled in launches:
        if compiled.metadata.hash not in seen:
            seen[compiled.metadata.hash] = kernel.__name__
            yield _measured(op, case, target, kernel, compiled)


def _materialized(value: Any) -> Any:
    """Memory on the CPU that is never touched: only its address, shape and strides matter."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)


def _measured(op: str, case: Case, target: int, kernel: Any, compiled: Any) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-c", "-ndf", file.name)
    used = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    instructions = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)", code, re.MULTILINE)
    watched = re.compile(r"LDG|STG|LDL|STL|LDGSTS|UTMA|HMMA|HGMMA|IMMA|UTC\w*MMA|RED|ATOM")
    meta = compiled.metadata
    return Compiled(
        op=op,
        case=case.name,
        kernel=kernel.__name__,
        configuration=_configuration(kernel, compiled),
        target=target,
        num_warps=meta.num_warps,
        num_stages=meta.num_stages,
        registers=used["REG"],
        shared=meta.shared,
        stack=used["STACK"] + used["LOCAL"],
        sass=Counter(name for name in instructions if watched.match(name)),
    )


def _configuration(kernel: Any, compiled: Any) -> str:
    source = compiled.src
    names = [parameter.name for parameter in kernel.params]
    constants = {path[0]: value for path, value in source.constants.items()}
    wide = {path[0] for path in source.attrs}
    words = []
    for index, name in enumerate(names):
        if index in constants:
            words.append(f"{name}={constants[index]}")
        else:
            words.append(f"{name}:{source.signature[name]}{'/16' if index in wide else ''}")
    return " ".join(words)


def _tool(name: str, *arguments: str) -> str:
    """What one of the tools prints that come with Triton."""
    from triton import knobs

    tool = getattr(knobs.nvidia, name).path
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run([tool, *arguments], check=True, capture_output=True, text=True, env=environment).stdout
