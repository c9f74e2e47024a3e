"""Build the local step of a run from its settings and the probe of its module."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor, nn

from ..algorithms import Algorithm
from ..common.errors import UsageError
from ..config.schema import RunConfig
from ..data.sources.base import Source
from ..data.types import DataSet
from ..executors.base import LocalProblem
from ..executors.read_ahead import make_read_ahead
from ..models.own_tensors import TensorNames
from ..module_checks.probe import Probe
from ..params.client_optimizer import AdamW
from ..params.label_noise import LabelNoise
from ..params.losses import Loss, combination
from ..params.param_layout import ParamLayout
from ..params.precision import Numerics
from ..training.algorithm_checks import start_state
from ..training.algorithm_rounds import correction_terms
from ..training.fragments import PARAMETERS


def label_range(data: DataSet, loss: Loss) -> tuple[int, int] | None:
    """Return the lowest and the highest counted label, or None if targets are unknown or not class labels."""
    targets = [split.targets for split in (data.train, data.test) if split.targets is not None]
    rule = combination(loss)
    if len(targets) < 2 or any(target.dim() != 1 or not rule.takes_labels(target) for target in targets):
        return None
    targets = [counted for target in targets if len(counted := _counted(target, rule.ignored))]
    if not targets:
        return None
    return min(int(target.min()) for target in targets), max(int(target.max()) for target in targets)


def _counted(target: Tensor, ignored: int | None) -> Tensor:
    """Return the labels that are not ignored: all of them where the ignored one lies outside, without a copy."""
    if ignored is None or len(target) == 0 or not int(target.min()) <= ignored <= int(target.max()):
        return target
    return target[target != ignored]


def ignored_label(data: DataSet, loss: Loss, *, noise: bool) -> int | None:
    """Return the loss's ignore_index if training targets may hold it, else None.

    Args:
        data: The data set.
        loss: The loss.
        noise: Whether --label-noise may change labels.
    """
    targets, ignored = data.train.targets, combination(loss).ignored
    if data.tokens:
        return None
    if targets is None or ignored is None or (noise and ignored >= 0) or bool((targets == ignored).any()):
        return ignored
    return None


def without_decay(layout: ParamLayout, unused: Sequence[str]) -> ParamLayout:
    """Exempt unused parameters from weight decay, as torch.optim.SGD skips parameters without a gradient."""
    if not unused:
        return layout
    mask = layout.decay_mask.clone()
    for name, view in layout.views(mask).items():
        if name in unused:
            view.zero_()
    return dataclasses.replace(layout, decay_mask=mask)


def with_algorithm(problem: LocalProblem, algorithm: Algorithm, module: nn.Module, fragments: int) -> LocalProblem:
    """Return the local step under an algorithm.

    Args:
        problem: The local step.
        algorithm: The algorithm.
        module: The module with its start weights.
        fragments: Parts of the parameters that rounds average in turns.

    Raises:
        UsageError: There are fewer parameters than fragments.
    """
    count = len(problem.layout.names)
    if fragments > count:
        raise UsageError(f"--sync-fragments {fragments}: the model has {count} parameters; give at most {count}")
    start = problem.layout.flatten(dict(module.named_parameters()))
    state = start_state(algorithm, start)
    if fragments > 1:
        state.clients[PARAMETERS] = start
    return dataclasses.replace(problem, correction=correction_terms(algorithm), algorithm=state)


def adamw_of(config: RunConfig) -> AdamW | None:
    """Return the settings of the clients' AdamW, or None for SGD."""
    sgd = config.sgd
    return AdamW(sgd.beta1, sgd.beta2, sgd.adam_eps) if sgd.client_optimizer == "adamw" else None


def build_problem(
    config: RunConfig,
    local: nn.Module,
    layout: ParamLayout,
    source: Source,
    loss: Loss,
    numbers: Numerics,
    probe: Probe,
    tensor_names: TensorNames,
    ignored: int | None,
    user_module: nn.Module | None,
) -> LocalProblem:
    """Return the local step; raise UsageError if --label-noise does not apply to the targets.

    Args:
        config: The resolved settings.
        local: The module for torch.func.functional_call.
        layout: Layout of the trained parameters.
        source: The training samples.
        loss: The loss.
        numbers: Number formats of the run.
        probe: Result of the module's first steps.
        tensor_names: Names of the user's tensors, by id.
        ignored: Label that does not count, or None.
        user_module: The user's own module, or None.
    """
    noise = None
    if config.client.label_noise:
        if probe.classes is None:
            raise UsageError("--label-noise 1: the targets are not class labels")
        if probe.places > 1:
            raise UsageError("--label-noise 1: the targets are tokens; it replaces the one label of a sample")
        if probe.classes < 2:
            raise UsageError("--label-noise 1: needs at least two classes, the model has one")
        noise = LabelNoise(config.client.noise_p, probe.classes, config.machine.seed)
    topk: tuple[int, ...] = ()
    if probe.classes is not None:
        topk = (1, 5) if config.schedule.schedule == "epochs" else (1,)
    return LocalProblem(
        module=local,
        layout=layout,
        source=source,
        loss=loss,
        topk=topk,
        places=probe.places,
        noise=noise,
        momentum=config.sgd.momentum,
        adamw=adamw_of(config),
        nesterov=config.sgd.nesterov,
        weight_decay=config.sgd.wd,
        numerics=numbers,
        clip_norm=config.sgd.clip_norm,
        state=probe.state,
        tensor_names=tensor_names,
        draws=probe.draws,
        seed=config.machine.seed,
        ignored=ignored,
        user_module=user_module if probe.shared else None,
        shared=probe.shared,
        uses_rng=probe.uses_rng,
        ahead=make_read_ahead(source),
        recomputed=probe.recomputed,
        stateful_loss=probe.stateful_loss,
    )
