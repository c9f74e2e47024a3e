"""torch.cuda while a rehearsal lasts: one H100 that a `Device` stands for."""

from __future__ import annotations

import ctypes
import inspect
import os
import shutil
import subprocess
import sysconfig
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch
from weakref import WeakSet

import torch
from torch import Tensor
from triton.runtime.interpreter import GridExecutor

from fastlocal import kernels
from fastlocal.module_checks import first_steps
from fastlocal.runs import build
from tests.helpers.interpreter import bfloat16_products
from tests.rehearsal.device import CUDA, Device, DeviceTensor

NAME = "a device that is not there"
GIB = 2**30


class Stream:
    """In order with all others, as everything is done when it is launched."""

    cuda_stream = 0

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.device = CUDA

    def wait_stream(self, other: Stream) -> None: ...

    def wait_event(self, event: Event) -> None: ...

    def synchronize(self) -> None:
        _waits("stream.synchronize")


class Event:
    """Past as soon as it is recorded."""

    alive: WeakSet[Event] = WeakSet()

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        Event.alive.add(self)

    def record(self, stream: Stream | None = None) -> None: ...

    def synchronize(self) -> None:
        _waits("event.synchronize")

    def query(self) -> bool:
        _active().finish_copies()
        return True

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds."""
        return 1.0


class CUDAGraph:
    """What a capture launched, and launches again."""

    def __init__(self, keep_graph: bool = False) -> None:
        self._launches: list[Callable[[], None]] = []
        self._pool: Any = None

    def pool(self) -> Any:
        return self._pool

    def replay(self) -> None:
        device = _active()
        device.note("launch", "graph")
        for launch in self._launches:
            launch()

    def reset(self) -> None:
        self._launches = []


class graph:  # noqa: N801, torch's own name
    """torch.cuda.graph: nothing that is launched within is done before it is replayed."""

    leaked = 0
    """Pools of captures that failed, which torch does not give back."""

    def __init__(
        self, cuda_graph: CUDAGraph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"
    ) -> None:
        self._graph, self._pool = cuda_graph, pool

    def __enter__(self) -> None:
        device = _active()
        _waits("synchronize")
        assert device.recorded is None, "a capture within a capture"
        device.recorded, device.written, device.failed = [], {}, False

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        device = _active()
        recorded, device.recorded = device.recorded, None
        for storage, before in device.written.values():
            storage.copy_(before)
        device.written = {}
        assert recorded is not None
        if device.failed or kind is not None:
            graph.leaked += 1
        if device.failed:  # as cudaStreamEndCapture does, whatever the first error was
            raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")
        self._graph._launches, self._graph._pool = recorded, self._pool or object()


def _active() -> Device:
    assert Device.active is not None
    return Device.active


def _waits(what: str) -> None:
    _active().note("wait", what)


@contextmanager
def stream(given: Stream | None) -> Iterator[None]:
    """torch.cuda.stream."""
    yield


def _seed(seed: int) -> None:
    _active().generator.manual_seed(seed)


def stand_ins(gpus: int, capability: tuple[int, int], uuid: str) -> dict[str, Any]:
    """What takes the place of torch.cuda's functions."""
    current = Stream()
    return {
        "is_available": lambda: True,
        "device_count": lambda: gpus,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: capability,
        "get_device_properties": lambda device=None: types.SimpleNamespace(
            name=NAME, multi_processor_count=132, total_memory=80 * GIB, uuid=uuid, L2_cache_size=50 * 2**20
        ),
        "mem_get_info": lambda device=None: (60 * GIB, 80 * GIB),
        "memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "synchronize": lambda device=None: _waits("synchronize"),
        "empty_cache": lambda: None,
        "is_current_stream_capturing": lambda: _active().recorded is not None,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_rng_state": lambda device="cuda": _active().generator.get_state(),
        "set_rng_state": lambda state, device="cuda": _active().generator.set_state(state),
        "manual_seed": _seed,
        "manual_seed_all": _seed,
        "is_initialized": lambda: False,
        "_lazy_init": lambda: None,
        "current_stream": lambda device=None: current,
        "stream": stream,
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": CUDAGraph,
        "graph": graph,
    }


def _launched(self: GridExecutor, *args: Any, **kwargs: Any) -> None:
    """A launch that is taken down, of a kernel that does not run."""
    _check_pointers(self, [*args, *kwargs.values()])
    _active().note("launch", self.fn.__name__)
    _active().note_operands(self.fn.__name__, [*args, *kwargs.values()])


def _check_pointers(executor: GridExecutor, values: list[Any]) -> None:
    if any(isinstance(value, Tensor) and not isinstance(value, DeviceTensor) for value in values):
        raise ValueError(f"Pointer argument cannot be accessed from Triton (cpu tensor?): {executor.fn.__name__}")


def _with_reference(load: Callable[[str, str], Callable[..., Any]]) -> Callable[[str, str], Callable[..., Any]]:
    """Launchers whose kernels do not run, with the values of the reference."""

    def loaded(op: str, backend: str) -> Callable[..., Any]:
        if backend != "triton":
            return load(op, backend)
        launcher, reference = load(op, "triton"), load(op, "reference")
        known = inspect.signature(reference).parameters

        def both(*args: Any, **kwargs: Any) -> Any:
            launcher(*args, **kwargs)
            return reference(*args, **{name: value for name, value in kwargs.items() if name in known})

        return both

    return loaded


def _interpreted(execute: Callable[..., None]) -> Callable[..., None]:
    """A launch of a Triton kernel on the values of device tensors, taken down, and replayed with a graph."""

    def launch(self: GridExecutor, *args: Any, **kwargs: Any) -> None:
        device = _active()
        name = self.fn.__name__
        _check_pointers(self, [*args, *kwargs.values()])
        device.note("launch", name)
        device.note_operands(name, [*args, *kwargs.values()])
        hosts = [value.host if isinstance(value, DeviceTensor) else value for value in args]
        named = {key: value.host if isinstance(value, DeviceTensor) else value for key, value in kwargs.items()}
        for tensor in (value for value in (*hosts, *named.values()) if isinstance(value, Tensor)):
            device.keep(tensor)

        def run() -> None:
            with torch.utils._python_dispatch._disable_current_modes():
                execute(self, *hosts, **named)

        run()
        if device.recorded is not None:
            device.recorded.append(run)

    return launch


def build_hooks(folder: Path) -> Path:
    """Compile device_hooks.cpp for the torch that is installed, once for all processes that share the folder."""
    root = Path(torch.__file__).parent
    made = folder / f"device_hooks_{torch.__version__}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = made.with_suffix(f".{os.getpid()}")
        compiler = shutil.which("c++") or "g++"
        source = Path(__file__).parent / "device_hooks.cpp"
        flags = ["-std=c++20", "-O0", "-shared", "-fPIC", f"-I{root / 'include'}", f"-L{root / 'lib'}"]
        libraries = ["-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}"]
        subprocess.run([compiler, *flags, str(source), "-o", str(temporary), *libraries], check=True, timeout=600)
        temporary.replace(made)
    return made


@contextmanager
def rehearsal(
    hooks: Path,
    *,
    interpret: bool = False,
    tries_kernels: bool = False,
    gpus: int = 1,
    capability: tuple[int, int] = (9, 0),
    uuid: str = "GPU-0",
) -> Iterator[Device]:
    """Within, torch has a CUDA device.

    hooks: what `build_hooks` made
    interpret: whether Triton kernels run in Triton's interpreter, tens of milliseconds for each of their programs; else
        they are launched and give what their references compute
    tries_kernels: whether a run tries them in other processes first, which do not find the device
    """
    library = ctypes.CDLL(str(hooks))
    lifts = torch._C._only_lift_cpu_tensors()
    with ExitStack() as stack:
        device = Device()
        library.install()
        stack.callback(library.uninstall)
        stack.enter_context(patch.multiple(torch.cuda, **stand_ins(gpus, capability, uuid)))
        # looped steps are not rehearsed: autograd adds to gradients that are tensors of a subclass out of place
        stack.enter_context(patch.object(first_steps, "_check_looped", lambda *given: None))
        if not tries_kernels:
            stack.enter_context(patch.object(build, "try_kernels", lambda device, ops: {}))
        launch = _interpreted(GridExecutor.__call__) if interpret else _launched
        stack.enter_context(patch.object(GridExecutor, "__call__", launch))
        if not interpret:
            stack.enter_context(patch.object(kernels, "load", _with_reference(kernels.load)))
        stack.enter_context(bfloat16_products())
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.callback(setattr, torch.backends.cudnn, "enabled", torch.backends.cudnn.enabled)
        torch.backends.cudnn.enabled = False  # a CPU has none of its operations
        torch._C._set_only_lift_cpu_tensors(True)  # as fake tensors do: torch.tensor(..., device="cuda") is a copy
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        stack.enter_context(patch.object(Device, "active", device))
        stack.enter_context(device)
        yield device
