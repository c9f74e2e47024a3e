"""Tensors that say they are on cuda:0 and hold their values on the CPU, and the rules that a GPU has for them.

Every operation of such tensors runs on the CPU's values, so that a whole run trains, and its numbers can be compared.
What a GPU would refuse is refused: operands on two devices, and, within a capture, copies from and to the host and
whatever waits for the device. `Device.events` says what was launched, copied and waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fastlocal.kernels.light_ops import FUNCTIONS

HOST, CUDA = torch.device("cpu"), torch.device("cuda", 0)
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_unique2", "unique_dim"}
"""Operations whose result, or whose size, the host has to know."""
UNLAUNCHED = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh"}
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class DeviceTensor(Tensor):
    """A tensor on cuda:0 whose values are those of `host`."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor, requires_grad: bool = False) -> DeviceTensor:
        made: DeviceTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            device=CUDA, requires_grad=requires_grad,
        )  # fmt: skip
        made.host = host
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert Device.active is not None, "a tensor of a rehearsal that is over"
        return Device.active.run(func, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """For torch to know it as made of other tensors: Module.to then swaps parameters, as it must."""
        return ["host"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], context: Any, size: Any, stride: Any) -> DeviceTensor:
        return DeviceTensor(parts["host"])

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.host.untyped_storage()

    def record_stream(self, stream: Any) -> None:
        """All streams are one."""

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> DeviceTensor:
        if id(self) not in memo:
            copied = DeviceTensor(self.host.clone(), self.requires_grad)
            if getattr(self, "_is_param", False):
                copied._is_param = True  # type: ignore[attr-defined]
            memo[id(self)] = copied
        found: DeviceTensor = memo[id(self)]
        return found

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"DeviceTensor({self.host!r})"


class Device(TorchDispatchMode):
    """The device while a rehearsal lasts, as a mode under which tensors are made on it.

    events: ("launch" | "h2d" | "d2h" | "wait", name of the operation), in their order; a copy from or to pinned
        memory for which the host does not wait is "h2d queued" or "d2h queued"
    recorded: what a capture has launched so far, None outside captures
    operands: (name, dtypes of the first two tensors) of captured launches of floating-point tensors
    on_allocation: called with the bytes of every new tensor
    on_launch: called with the name of every launch; what it raises is the device's error
    """

    active: Device | None = None

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, str]] = []
        self.recorded: list[Callable[[], None]] | None = None
        self.written: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self.failed = False
        self.on_allocation: Callable[[int], None] = lambda size: None
        self.on_launch: Callable[[str], None] = lambda name: None
        self.operands: set[tuple[str, tuple[torch.dtype, ...]]] = set()
        self.generator = torch.Generator().manual_seed(0)
        self.pinned: set[int] = set()
        self.uploads: list[tuple[Tensor, Tensor]] = []
        self.downloads: list[tuple[Tensor, Tensor]] = []

    def count(self, name: str) -> int:
        """Events of a name so far."""
        return sum(event == name for _, event in self.events)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operation, as the dispatcher gives it."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        ours = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
        wanted = kwargs.get("device")
        target = torch.device(wanted) if wanted is not None else None
        if not ours and (target is None or target.type == "cpu"):
            pins = kwargs.pop("pin_memory", None) or func._schema.name == "aten::_pin_memory"
            made = args[0].clone() if func._schema.name == "aten::_pin_memory" else func(*args, **kwargs)
            if pins:  # no driver is there to pin memory
                self.pinned.add(made.untyped_storage().data_ptr())
            return made
        if func.namespace == "fastlocal":
            light = FUNCTIONS.get(func._schema.name)
            with self:
                return (light or OPDEFS[func._schema.name]._init_fn)(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # a reshape, say, is a view or a copy
                return func.decompose(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::").rstrip("_") or func._schema.name
        self._check_devices(name, args, tensors, ours)
        ahead = bool(kwargs.get("non_blocking") or name == "copy" and len(args) > 2 and args[2])
        to_host = self._announce(name, func, args, tensors, ours, target, ahead)
        return self._compute(func, name, args, kwargs, to_host)

    def note(self, kind: str, name: str) -> None:
        """Take down an event, and refuse it where a capture does."""
        if kind != "launch" and self.recorded is not None:
            self.failed = True
            raise torch.AcceleratorError(
                f"CUDA error: operation not permitted when stream is capturing ({kind}: {name})"
            )
        if kind == "launch":
            self.on_launch(name)
        if kind in ("h2d", "d2h", "wait"):
            self.finish_copies()
        self.events.append((kind, name))

    def finish_copies(self) -> None:
        """The host has waited: queued copies are done."""
        self._check_uploads()
        for host, values in self.downloads:
            host.copy_(values)
        self.downloads.clear()

    def _check_uploads(self) -> None:
        for host, values in self.uploads:
            assert torch.equal(host.nan_to_num(), values.nan_to_num()), "pinned memory changed before its copy"
        self.uploads.clear()

    def note_operands(self, name: str, tensors: list[Any]) -> None:
        """Take down in which formats a launch computes."""
        floating = [tensor.dtype for tensor in tensors if isinstance(tensor, Tensor) and tensor.is_floating_point()]
        if floating and self.recorded is not None:
            self.operands.add((name, tuple(floating[:2])))

    def keep(self, tensor: Tensor) -> None:
        """A capture launches nothing: what `tensor` holds is put back at its end."""
        storage = tensor.untyped_storage()
        if self.recorded is not None and storage.data_ptr() not in self.written:
            self.written[storage.data_ptr()] = storage, storage.clone()

    def _check_devices(self, name: str, args: Any, tensors: list[Tensor], ours: list[DeviceTensor]) -> None:
        """Operands on the host are numbers [], indices, or one side of a copy."""
        strangers = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor) and tensor.dim()]
        if not ours or not strangers or name in ("copy", "_to_copy") or name.startswith("c10d::"):
            return
        if name in ("index", "index_put", "_index_put_impl") and isinstance(args[0], DeviceTensor):
            self.note("h2d", name)
            return
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({name})"
        )

    def _announce(
        self, name: str, func: Any, args: Any, tensors: list[Tensor], ours: list[DeviceTensor],
        target: torch.device | None, ahead: bool,
    ) -> bool:  # fmt: skip
        """Take down what the operation is for a GPU; whether its result is on the host."""
        if name == "copy":
            into, source = isinstance(args[0], DeviceTensor), isinstance(args[1], DeviceTensor)
            host = args[1] if into else args[0]
            queued = " queued" if ahead and self._is_pinned(host) else ""
            self.note("launch" if into and source else f"h2d{queued}" if into else f"d2h{queued}", name)
            if queued and into:
                self.uploads.append((host, host.clone()))
            elif queued:
                self._check_uploads()  # of the same memory, which this copy writes after them
                self.downloads.append((host, args[1].host.clone()))
            return not into
        if name == "_to_copy" and target is not None:
            if bool(ours) != (target.type == "cuda"):
                queued = ahead and not ours and self._is_pinned(tensors[0])
                self.note("d2h" if ours else "h2d queued" if queued else "h2d", name)
                if queued:
                    self.uploads.append((tensors[0], tensors[0].clone()))
                return target.type == "cpu"
        masks = [part for part in (args[1] if name in ("index", "index_put") else ()) if part is not None]
        if name in WAITS or any(mask.dtype in (torch.bool, torch.uint8) for mask in masks):
            self.note("wait", name)
        elif name not in UNLAUNCHED and not func.is_view:
            self.note("launch", name)
            self.note_operands(name, ours)
        return name == "_local_scalar_dense" or name == "equal"

    def _is_pinned(self, tensor: Tensor) -> bool:
        return not isinstance(tensor, DeviceTensor) and tensor.untyped_storage().data_ptr() in self.pinned

    def _compute(self, func: Any, name: str, args: Any, kwargs: dict[str, Any], to_host: bool) -> Any:
        known: dict[int, DeviceTensor] = {}

        def host(tensor: DeviceTensor) -> Tensor:
            known[id(tensor.host)] = tensor
            return tensor.host

        given, named = tree_map_only(DeviceTensor, host, (args, kwargs))
        if "device" in named:
            named |= {"device": HOST}
        named.pop("pin_memory", None)
        written = [given[place] for place, part in enumerate(func._schema.arguments[: len(given)])
                   if part.alias_info is not None and part.alias_info.is_write]  # fmt: skip
        for tensor in (leaf for leaf in tree_leaves(written) if isinstance(leaf, Tensor)):
            self.keep(tensor)
        if self.events[-1:] == [("d2h queued", name)]:
            return given[0].fill_(torch.nan if given[0].is_floating_point() else -77)  # until the host has waited
        before = [tensor.shape for tensor in (wrapper.host for wrapper in known.values())]
        random = torch.Tag.nondeterministic_seeded in func.tags
        returned = self._drawn(func, given, named) if random else func(*given, **named)
        assert before == [wrapper.host.shape for wrapper in known.values()], f"{name} changed a shape in place"
        for tensor in (leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)):
            if id(tensor) not in known and not func.is_view:
                self.on_allocation(tensor.nbytes)
        if name in ALLOCATIONS and returned.is_floating_point():
            returned.fill_(torch.nan)  # which nothing may read before it is written
        if self.recorded is not None and name not in UNLAUNCHED and not func.is_view:
            self.recorded.append(lambda: self._again(func, given, named, returned, random))
        if to_host:
            return returned
        return tree_map_only(
            Tensor, lambda tensor: known[id(tensor)] if id(tensor) in known else DeviceTensor(tensor), returned
        )

    def _again(self, func: Any, given: Any, named: Any, first: Any, random: bool) -> None:
        """A replayed launch: what it made in the capture gets its new values."""
        returned = self._drawn(func, given, named) if random else func(*given, **named)
        for old, new in zip(tree_leaves(first), tree_leaves(returned), strict=True):
            if isinstance(old, Tensor) and old is not new:
                old.copy_(new)

    def _drawn(self, func: Any, given: Any, named: Any) -> Any:
        """A draw from the device's own generator."""
        before = torch.get_rng_state()
        torch.set_rng_state(self.generator.get_state())
        try:
            return func(*given, **named)
        finally:
            self.generator.set_state(torch.get_rng_state())
            torch.set_rng_state(before)
