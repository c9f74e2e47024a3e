"""Tensors that a kernel would misread: refused by name, or read as they are."""

from __future__ import annotations

import timeit
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastlocal import kernels
from fastlocal.api.settings import split
from fastlocal.kernels.arguments import expect
from fastlocal.kernels.case import cases

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def named(op: str, name: str) -> dict[str, Any]:
    return next(case for case in cases(op) if case.name == name).make_inputs(torch.device(DEVICE))


def arguments(op: str) -> dict[str, Any]:
    """Of one case of the op that has all its tensors."""
    if op in ("client_sgd", "client_sgd_mean"):
        size = "for each client 4x1009 fp32" if op == "client_sgd" else "19x257 float32"
        return named(op, f"everything {size}")
    if op == "client_adamw":
        return named(op, "everything 4x1009 fp32")
    if op == "client_mean":
        return named(op, "weighted and handed back 17x257 float32")
    if op == "client_norm":
        return named(op, "rows 3x127 float32")
    if op == "server_step":
        return named(op, "adam 1025 float32")
    if op == "gather_augment":
        return named(op, "a seed and a step for each client 5x2x1x9x9 float32")
    if op == "label_noise_loss":
        return named(op, "for each client 5x9x10 p=each float32")
    if op.startswith("norm_act"):
        return named(op, "3 groups 2x3x6x4x5 silu residual last fp32")
    if op == "conv2d_clients":
        return named(op, "3x2 3->5 3x3 on 5x7 bias fp32")
    return named(op, "3x2 3->5 3x3 on 5x7 fp32")


def across(x: Tensor) -> Tensor:
    """The same values, of whose last axis every second element is meant."""
    return x.repeat_interleave(2, dim=-1)[..., ::2]


def overlapping(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


def longer(x: Tensor) -> Tensor:
    return torch.cat((x, x[:1]))


def first(x: Tensor) -> Tensor:
    return x[:1]


def wider(x: Tensor) -> Tensor:
    return torch.cat((x, x[..., :1]), dim=-1)


def elsewhere(x: Tensor) -> Tensor:
    return x.to("meta")


def whole(x: Tensor) -> Tensor:
    return x.int()


def channels_last(x: Tensor) -> Tensor:
    return x.repeat(1, 3, 1, 1).contiguous(memory_format=torch.channels_last)[:, :1]


STEP = [
    ("params", across, "last axis must lie side by side"),
    ("params", overlapping, "rows share memory"),
    ("params", whole, "torch.int32"),
    ("momentum", across, "last axis"),
    ("momentum", longer, "shape"),
    ("momentum", torch.Tensor.double, "float64"),
    ("momentum", overlapping, "rows share memory"),
    ("grads", across, "last axis"),
    ("grads", first, "shape"),
    ("grads", wider, "shape"),
    ("grads", elsewhere, "meta"),
    ("learning_rate", first, r"learning_rate of shape \[1\]"),
    ("learning_rate", elsewhere, "meta"),
    ("decay_mask", across, "last axis"),
    ("decay_mask", wider, "shape"),
    ("grad_scale", first, "shape"),
    ("active", first, "shape"),
    ("active", whole, "torch.int32, expected torch.bool"),
]
TOTAL = [
    ("total", across, "last axis"),
    ("total", wider, "shape"),
    ("total", whole, "int32"),
    ("weight", first, "shape"),
]
IMAGES = [("x", whole, "int32"), ("x", torch.Tensor.double, "float64"), ("weight", elsewhere, "meta")]
MISTAKES: dict[str, list[tuple[str, Callable[[Tensor], Tensor], str]]] = {
    "client_sgd": [
        *STEP,
        ("shadow", across, "last axis"),
        ("shadow", wider, "shape"),
        ("mu", first, "shape"),
        ("mu", whole, "int32"),
        ("weight_decay", first, "shape"),
        ("weight_decay", elsewhere, "meta"),
        ("prox", first, "shape"),
        ("center", wider, "shape"),
        ("group", torch.Tensor.long, "int64"),
        ("drift", across, "last axis"),
    ],
    "client_adamw": [
        *STEP,
        ("square", overlapping, "rows share memory"),
        ("square", torch.Tensor.double, "float64"),
        ("steps", torch.Tensor.float, "float32, expected torch.float64"),
        ("steps", first, "shape"),
        ("shadow", across, "last axis"),
        ("weight_decay", first, "shape"),
        ("drift", first, "shape"),
        ("group", torch.Tensor.long, "int64"),
    ],
    "client_sgd_mean": [*STEP, *TOTAL],
    "client_mean": [("params", across, "last axis"), ("params", overlapping, "rows share memory"), *TOTAL],
    "client_norm": [("rows", across, "last axis"), ("rows", whole, "int32")],
    "server_step": [
        ("params", whole, "int32"),
        ("mean", wider, "shape"),
        ("first", across, "last axis"),
        ("second", elsewhere, "meta"),
    ],
    "gather_augment": [
        ("images", channels_last, "strides"),
        ("images", across, "strides"),
        ("images", torch.Tensor.float, "float32, expected torch.uint8"),
        ("sample_ids", whole, "int32, expected torch.int64"),
        ("sample_ids", elsewhere, "meta"),
        ("clients", first, "shape"),
        ("step", first, "shape"),
        ("seed", first, "shape"),
        ("seed", whole, "int32, expected torch.int64"),
        ("mean", lambda mean: (*mean, 0.5), "2 means and 1 standard deviations for 1 channels"),
    ],
    "label_noise_loss": [
        ("logits", whole, "int32"),
        ("logits", first, "targets of shape"),
        ("targets", wider, "shape"),
        ("targets", whole, "int32, expected torch.int64"),
        ("clients", first, "shape"),
        ("step", first, "shape"),
        ("seed", first, "shape"),
        ("seed", whole, "int32, expected torch.int64"),
        ("p", first, "shape"),
        ("p", whole, "int32"),
    ],
    "norm_act": [("x", torch.Tensor.double, "float64"), ("residual", elsewhere, "meta"), ("weight", whole, "int32")],
    "norm_act_backward": [
        ("x", torch.Tensor.double, "float64"),
        ("grad", first, "shape"),
        ("mean", first, "shape"),
        ("rstd", torch.Tensor.double, "float64"),
    ],
    "conv2d_clients": [*IMAGES, ("bias", first, r"bias of shape \[1, 5\]"), ("bias", lambda bias: bias[0], "shape")],
    "conv2d_clients_input_grad": [*IMAGES, ("grad", wider, "shape"), ("grad", first, "shape")],
    "conv2d_clients_weight_grad": [*IMAGES, ("grad", wider, "shape"), ("grad", elsewhere, "meta")],
}


@pytest.mark.parametrize("op", kernels.TRITON_OPS)
def test_what_a_kernel_would_misread_is_refused(op: str) -> None:
    run, right = kernels.get(op, "triton", DEVICE), arguments(op)
    for name, spoil, said in MISTAKES[op]:
        with pytest.raises(ValueError, match=said) as raised:
            run(**{**right, name: spoil(right[name])})
        assert name in str(raised.value) or name in ("x", "logits", "mean"), (name, str(raised.value))


def test_conditions_cost_microseconds() -> None:
    """Against those of the launch itself, which takes some tens of them."""
    rows = torch.zeros(4, 9)
    took = min(
        timeit.repeat(lambda: expect("rows", rows, (4, 9), rows.device, disjoint_rows=True), number=1000, repeat=5)
    )
    assert took / 1000 < 20e-6


def spread(x: Tensor) -> Tensor:
    """The same values with every axis in the other order of memory, and gaps between them."""
    return across(x.permute(*reversed(range(x.dim()))).contiguous()).permute(*reversed(range(x.dim())))


@pytest.mark.parametrize(
    ("op", "names"),
    [
        ("client_sgd", ["learning_rate", "grad_scale", "active", "mu", "weight_decay"]),
        ("client_adamw", ["steps", "learning_rate", "grad_scale", "active", "weight_decay", "prox"]),
        ("client_sgd_mean", ["learning_rate", "grad_scale", "active", "weight"]),
        ("client_mean", ["weight"]),
        ("gather_augment", ["sample_ids", "clients", "step", "seed"]),
        ("label_noise_loss", ["logits", "targets", "clients", "step", "seed", "p"]),
        ("norm_act", ["x", "weight", "bias", "residual"]),
        ("norm_act_backward", ["grad", "x", "weight", "bias", "residual", "mean", "rstd"]),
        ("conv2d_clients", ["x", "weight", "bias"]),
        ("conv2d_clients_input_grad", ["grad", "x", "weight"]),
        ("conv2d_clients_weight_grad", ["grad", "x", "weight"]),
    ],
)
def test_any_other_strides_are_followed(op: str, names: list[str]) -> None:
    run, dense, gaps = kernels.get(op, "triton", DEVICE), arguments(op), arguments(op)
    for name in names:
        gaps[name] = spread(gaps[name])
        assert not gaps[name].is_contiguous() and torch.equal(gaps[name], dense[name])
    changed = [name for name in ("params", "momentum", "total") if name in dense]
    found, exact = ([*_parts(run(**given)), *(given[name] for name in changed)] for given in (gaps, dense))
    for one, other in zip(found, exact, strict=True):
        # the plan of norm_act follows the memory, and with it the order of its sums
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def _parts(returned: Any) -> list[Tensor]:
    parts = returned if isinstance(returned, tuple) else (returned,)
    return [part for part in parts if part is not None]


def test_images_of_a_user_with_their_channels_last_are_read_as_they_are() -> None:
    """As `fastlocal.train` takes them, and the kernel from there."""
    pixels = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).view(2, 4, 5, 3)
    samples = split("train", (pixels.permute(0, 3, 1, 2), torch.zeros(2)))
    options = {"seed": 1, "padding": 1, "mean": [0.0] * 3, "std": [1 / 255] * 3, "dtype": torch.float32}
    gather = kernels.get("gather_augment", "triton", DEVICE)
    found = gather(samples.inputs.to(DEVICE), torch.tensor([1, 0], device=DEVICE), None, 0, **options)
    torch.testing.assert_close(found.cpu(), pixels.permute(0, 3, 1, 2)[[1, 0]].float())


def test_one_rate_for_all_clients_may_be_expanded() -> None:
    given = arguments("client_sgd") | {"learning_rate": torch.tensor(0.25, device=DEVICE).expand(4)}
    exact = arguments("client_sgd") | {"learning_rate": torch.full((4,), 0.25, device=DEVICE)}
    for one in (given, exact):
        kernels.get("client_sgd", "triton", DEVICE)(**one)
    assert torch.equal(given["params"], exact["params"])
