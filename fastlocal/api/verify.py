"""fastlocal.verify: check the kernels and executors of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..common.errors import UsageError
from ..common.random_states import enable_autograd, preserve_random_states
from ..common.standard_streams import hide_closed_streams
from ..config.python_names import python_names, to_python_names
from ..config.schema import RunConfig
from ..config.validation import check
from ..data.from_python import check_normalisation
from ..data.types import DataSet
from ..module_checks.structure import check_model, copy_model
from ..params.losses import Loss, cross_entropy
from ..runs.build import PreparedRun, build_run
from ..runs.resolve import resolve_device
from ..verification.checks import Verification
from ..verification.run import verify_run
from .settings import convert_settings, split


@python_names()
@hide_closed_streams()
@preserve_random_states()
@enable_autograd()
def verify(
    model: nn.Module,
    data: Any,
    *,
    clients: int = 3,
    batch_size: int = 32,
    lr: float = 0.1,
    loss: Loss | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    seconds: float = 120.0,
    ops: Sequence[str] | None = None,
    progress: bool = True,
    **settings: Any,
) -> Verification:
    """Check on this machine the kernels and executors that `train` with the same arguments may use.

    Each kernel is compared with plain torch in its own process, and every executor takes a few steps of three clients.
    Later runs on this machine do not use what fails.

    Args:
        model: As in `train`.
        data: (inputs [n, ...], targets [n, ...]), in the format of `train`.
        clients: As in `train`.
        batch_size: As in `train`.
        lr: As in `train`.
        loss: As in `train`.
        momentum: As in `train`.
        nesterov: As in `train`.
        weight_decay: As in `train`.
        seconds: Limit for each case of an operation, including compilation.
        ops: The operations to check; None for all operations of the device.
        progress: Print each result at once.
        settings: As in `train`.

    Returns:
        The results: `passed`, `checks`, and a table as text.

    Raises:
        ValueError: The arguments cannot work.
    """
    check_model(model)
    if not seconds > 0:
        raise UsageError(f"seconds {seconds:g}: must be more than 0")
    ops = [ops] if isinstance(ops, str) else ops
    never = 2**31 - 1
    values = {"dataset": "python", "model": type(model).__name__, "batch_size": batch_size, "start_lr": None}
    values |= {"total_batch_size": clients * batch_size, "client_lr": lr, "momentum": momentum, "nesterov": nesterov}
    settings = {"replacement": True, **settings}  # fewer samples than clients * batch_size are enough
    config = convert_settings(settings, **values, wd=weight_decay, rounds=1, eval_freq1=never, save_freq1=never)
    check(config)
    samples = split("data", data, loss)
    data_set = DataSet("python", samples, samples, classes=None, mean=config.data.mean, std=config.data.std)
    check_normalisation(data_set)

    def build(config: RunConfig) -> PreparedRun:
        flag = f"model {type(model).__name__}"
        return build_run(
            config, data_set, lambda: copy_model(model), loss or cross_entropy, model_flag=flag, user_module=model
        )

    device = resolve_device(config.machine.device)

    def say(line: str) -> None:
        if progress:
            print(to_python_names(line))

    return verify_run(config, device, build, ops=ops, seconds=seconds, say=say)
