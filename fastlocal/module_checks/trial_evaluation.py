"""Evaluate a few test samples before the run."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..common.errors import UsageError, one_line
from ..common.random_states import preserve_random_states
from ..data.labels import unknown_label
from ..models.mirror import Mirror
from ..models.modes import in_modes, modes_of
from ..models.own_functions import rebind_functions
from ..models.own_tensors import OwnTensors, tensors_of
from ..models.python_state import preserve_state
from ..params.losses import combination
from ..params.precision import Numerics
from .plain_steps import FAILURES, PlainModule


def try_evaluation(plain: PlainModule, inputs: Tensor, targets: Tensor, numerics: Numerics) -> bool:
    """Evaluate a copy of the module, first within torch.no_grad().

    Args:
        plain: The module.
        inputs: A few test samples, not as many as in a training batch.
        targets: Targets of the samples.
        numerics: Number formats of the run.

    Returns:
        Whether the module or the loss takes derivatives, so that an evaluation needs gradients.

    Raises:
        UsageError: The evaluation fails with gradients too.
    """
    try:
        with preserve_state(plain.loss):  # a second attempt must not find what a first one left
            _evaluate(plain, inputs, targets, numerics, gradients=False)
    except UsageError as refusal:
        try:
            _evaluate(plain, inputs, targets, numerics, gradients=True)
        except UsageError:
            raise refusal from None
        return True
    return False


def _evaluate(plain: PlainModule, inputs: Tensor, targets: Tensor, numerics: Numerics, *, gradients: bool) -> None:
    loss, original = plain.loss, plain.user_module
    trial = _evaluation_copy(plain)
    own = OwnTensors(plain.tensor_names, tensors_of(trial))
    with torch.set_grad_enabled(gradients), preserve_random_states(), in_modes(original, modes_of(trial)), own:
        try:
            with numerics.autocast():
                outputs = numerics.to_param_dtype(trial(inputs.clone()))
        except FAILURES as error:
            where = f"cannot be evaluated on test samples of shape {tuple(inputs.shape)}"
            raise UsageError(f"{plain.flag}: {where}: {one_line(error)}") from error
        try:
            unknown = combination(loss).unknown(outputs, targets)
            if unknown is not None and bool(unknown.any()):
                sample, *rest = unknown.nonzero()[0].tolist()
                raise UsageError(unknown_label(sample, int(targets[(sample, *rest)]), outputs.shape[1]))
            with Mirror(trial, original, None).expose():
                loss(outputs, targets)
        except UsageError:
            raise
        except FAILURES as error:
            shapes = f"test outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}"
            raise UsageError(f"loss: fails on {shapes}: {one_line(error)}") from error


def _evaluation_copy(plain: PlainModule) -> nn.Module:
    trial = copy.deepcopy(plain.module)
    trial.eval()  # not `trial = trial.eval()`: a `train` overridden by the user may return None
    if plain.user_module is not None:
        rebind_functions(trial, plain.user_module)
    return trial
