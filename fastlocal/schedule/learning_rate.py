"""Learning rate before any decay, as a function of the local step."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.training_settings import SgdConfig


@dataclass(frozen=True)
class WarmUp:
    """Linear from `start` to `peak` over `steps` local steps, then constant.

        rate(t) = start + (peak - start) * min(t, steps) / steps

    As torch.optim.lr_scheduler.LinearLR(start_factor=start / peak, total_iters=steps). `steps` 0 means no warm-up.
    """

    start: float
    peak: float
    steps: int

    def rate(self, step: int) -> float:
        """Return the rate of local step `step`, counted from 0."""
        if step >= self.steps:
            return self.peak
        return self.start + (self.peak - self.start) * step / self.steps


def warm_up(sgd: SgdConfig, *, clients: int, total_batch_size: int, steps_per_epoch: int) -> WarmUp:
    """Return the warm-up of the flags.

    --start-lr scales with the number of clients, --lr with total batch / 256 (Goyal et al. 2017), --client-lr not at
    all. If scaling does not raise the rate, there is no warm-up.
    """
    if sgd.start_lr is not None:
        start, scale = sgd.start_lr, float(clients)
    elif sgd.lr is not None:
        start, scale = sgd.lr, total_batch_size / 256
    else:
        assert sgd.client_lr is not None, "validation.py requires one of the three rates"
        start, scale = sgd.client_lr, 1.0
    if not sgd.warm_up:
        return WarmUp(start * scale, start * scale, 0)
    peak = start * scale if sgd.max_lr is None else sgd.max_lr
    if peak <= start:
        return WarmUp(peak, peak, 0)
    return WarmUp(start, peak, sgd.warmup_epochs * steps_per_epoch)
