"""Every rule at sizes around a block, the mean in float64; and the parameters of ResNet-56."""

from __future__ import annotations

from typing import Any

import torch

from ..case import Case, Draws, Inputs, bytes_of

RULES: dict[str, dict[str, Any]] = {
    "sgd": {"rate": 0.7},
    "momentum": {"rate": 0.5, "decay": 0.9},
    "nesterov": {"rate": 0.5, "decay": 0.9, "nesterov": True},
    "adam": {
        "rule": "adam",
        "rate": 0.1,
        "decay": 0.9,
        "gain": 0.1,
        "second_decay": 0.99,
        "second_scale": 5,
        "tau": 0.1,
    },
    "yogi": {"rule": "yogi", "rate": 0.1, "decay": 0.9, "gain": 0.1, "second_decay": 0.99, "tau": 0.1},
    "adagrad": {"rule": "adagrad", "rate": 0.1, "tau": 0.1},
}


def _case(
    rule: str,
    n_params: int,
    *,
    dtype: torch.dtype = torch.float32,
    mean: torch.dtype | None = None,
    large: bool = False,
) -> Case:
    settings, mean_dtype = RULES[rule], mean or dtype
    has_first, has_second = "decay" in settings, "rule" in settings

    def make_inputs(device: torch.device) -> Inputs:
        draw = Draws(device, seed=n_params)
        return {
            "params": draw.normal(n_params, dtype=dtype),
            "mean": draw.normal(n_params, dtype=mean_dtype),
            "first": draw.normal(n_params, dtype=dtype) if has_first else None,
            "second": draw.uniform(n_params, dtype=dtype) if has_second else None,
            **settings,
        }

    row = ((n_params,), dtype)
    changed = ("params", *(["first"] if has_first else []), *(["second"] if has_second else []))
    wide = "" if mean_dtype == dtype else f", mean {str(mean_dtype).removeprefix('torch.')}"
    return Case(
        name=f"{rule} {n_params} {str(dtype).removeprefix('torch.')}{wide}",
        make_inputs=make_inputs,
        tolerance={torch.float64: "fp64", torch.float32: "fp32"}[dtype],
        bytes_moved=bytes_of([((n_params,), mean_dtype), *[row] * (2 * len(changed))]),
        flops=12 * n_params,
        changed=changed,
        large=large,
    )


CASES = (
    *(_case(rule, n_params) for rule in RULES for n_params in (1, 1025)),
    *(_case("adam", n_params) for n_params in (0, 127, 1023, 1024)),
    *(_case(rule, 257, mean=torch.float64) for rule in ("momentum", "yogi")),
    *(_case(rule, 513, dtype=torch.float64) for rule in RULES),
    *(_case(rule, 855_770, mean=torch.float64, large=True) for rule in ("sgd", "nesterov", "adam", "yogi")),
    _case("adam", 855_770, large=True),
    _case("adam", 855_770, dtype=torch.float64, large=True),
)
