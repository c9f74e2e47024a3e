"""The local step of a run, from its settings and from what the first steps of its module have shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn

from ..common.errors import UsageError
from ..config.schema import RunConfig
from ..data.sources.base import Source
from ..data.types import DataSet
from ..executors.base import LabelNoise, LocalProblem
from ..executors.read_ahead import reading_ahead
from ..models.own_tensors import Held
from ..module_checks.probe import Probe
from ..params.losses import Loss, combination
from ..params.param_layout import ParamLayout
from ..params.precision import Numerics


def label_range(data: DataSet, loss: Loss) -> tuple[int, int] | None:
    """Lowest and highest label, where the loss takes them as numbers of outputs and they are known."""
    targets = [split.targets for split in (data.train, data.test) if split.targets is not None]
    way = combination(loss)
    if len(targets) < 2 or any(target.dim() != 1 or not way.takes_labels(target) for target in targets):
        return None
    targets = [counted for target in targets if len(counted := target[target != way.ignored])]
    if not targets:
        return None
    return min(int(target.min()) for target in targets), max(int(target.max()) for target in targets)


def ignored_label(data: DataSet, loss: Loss, *, noise: bool) -> int | None:
    """The label of training targets that do not count, where there may be one. noise: labels may become others"""
    targets, ignored = data.train.targets, combination(loss).ignored
    if targets is None or ignored is None or (noise and ignored >= 0) or bool((targets == ignored).any()):
        return ignored
    return None


def without_decay(layout: ParamLayout, unused: Sequence[str]) -> ParamLayout:
    """As torch.optim.SGD leaves parameters without a gradient alone, no weight decay reaches unused ones."""
    if not unused:
        return layout
    mask = layout.decay_mask.clone()
    for name, view in layout.views(mask).items():
        if name in unused:
            view.zero_()
    return dataclasses.replace(layout, decay_mask=mask)


def build_problem(
    config: RunConfig,
    local: nn.Module,
    layout: ParamLayout,
    source: Source,
    loss: Loss,
    numbers: Numerics,
    probe: Probe,
    held: Held,
    ignored: int | None,
    given: nn.Module | None,
) -> LocalProblem:
    noise = None
    if config.client.label_noise:
        if probe.classes is None:
            raise UsageError("--label-noise 1: the targets are not class labels")
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
        noise=noise,
        momentum=config.sgd.momentum,
        nesterov=config.sgd.nesterov,
        weight_decay=config.sgd.wd,
        numerics=numbers,
        clip_norm=config.sgd.clip_norm,
        state=probe.state,
        held=held,
        draws=probe.draws,
        seed=config.machine.seed,
        ignored=ignored,
        user_module=given if probe.shared else None,
        shared=probe.shared,
        uses_rng=probe.uses_rng,
        ahead=reading_ahead(source),
        recomputed=probe.recomputed,
        remembers=probe.remembers,
    )
