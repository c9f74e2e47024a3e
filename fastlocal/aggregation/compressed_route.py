"""Route with 16 bits per number and error feedback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from .routes import Steps, as_work

WireFormat = Literal["bf16", "fp16"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
FULL_SCALE = 15
"""Numbers are scaled below 2^15 before rounding; fp16 reaches 65504, so that rounding cannot overflow."""
IN_CACHE = 2**16


class CompressedRoute:
    """Reduce-scatter and all-gather of rounded numbers, with sums in float32 on the owner of each piece.

    Every rank rounds the pieces that it sends to other ranks, and the sum of its own piece. Each piece is sent with the
    power of two of its scale. Both rounding errors are added in the next round (error feedback: Seide et al. 2014;
    Karimireddy et al. 2019), the error of a sum by its owner. So the residual is the sum of one row per rank.

    Attributes:
        error_feedback: [n_params] float32, this rank's residual.
    """

    def __init__(
        self, n_params: int, wire_format: WireFormat, device: torch.device, group: dist.ProcessGroup | None
    ) -> None:
        self.error_feedback = torch.zeros(n_params, dtype=torch.float32, device=device)
        self._dtype, self._group = DTYPES[wire_format], group
        self._ranks, self._number = dist.get_world_size(group), dist.get_rank(group)
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, wire: Tensor, columns: slice) -> Steps:
        values, residual = wire[0], self.error_feedback[columns]
        sent, received = self._message_buffers(columns, values)
        pieces = list(_pieces(len(values), self._ranks))
        mine = pieces[self._number]
        values += residual
        for to, piece in enumerate(pieces):
            _encode(values[piece], sent[to], residual[piece])
        yield as_work(dist.all_to_all_single(received, sent, group=self._group, async_op=True))
        total = values[mine].zero_()
        for from_rank in received:
            _decode(from_rank, total, add=True)
        error = torch.empty_like(total)
        _encode(total, sent[0], error)
        residual[mine] += error
        yield as_work(dist.all_gather_into_tensor(received.view(-1), sent[0], group=self._group, async_op=True))
        for piece, from_rank in zip(pieces, received, strict=True):
            _decode(from_rank, values[piece], add=False)

    def _message_buffers(self, columns: slice, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the send and receive buffers, [ranks, numbers of a piece and its scale]."""
        if columns.start not in self._buffers:
            shape = self._ranks, -(-len(values) // self._ranks) + 1
            sent = torch.zeros(shape, dtype=self._dtype, device=values.device)
            self._buffers[columns.start] = sent, torch.zeros_like(sent)
        return self._buffers[columns.start]


def _pieces(length: int, ranks: int) -> Iterator[slice]:
    """Split into pieces of equal length, except for the last ones."""
    step = -(-length // ranks)
    for rank in range(ranks):
        yield slice(min(rank * step, length), min((rank + 1) * step, length))


def _blocks(length: int, device: torch.device) -> Iterator[slice]:
    step = IN_CACHE if device.type == "cpu" else max(length, 1)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _encode(values: Tensor, sent: Tensor, error: Tensor) -> None:
    """Write the rounded `values` and then their scale into `sent`, and the rounding error into `error`."""
    if not len(values):
        return
    exponent = torch.frexp(torch.linalg.vector_norm(values, torch.inf)).exponent.clamp(min=-100)
    sent.view(torch.int16)[-1] = exponent
    up, down = _power_of_two(FULL_SCALE - exponent), _power_of_two(exponent - FULL_SCALE)
    for block in _blocks(len(values), values.device):
        torch.mul(values[block], up, out=sent[block])
        torch.sub(values[block], sent[block].float().mul_(down), out=error[block])


def _decode(received: Tensor, values: Tensor, add: bool) -> None:
    """Decode a piece into `values`, or add it to them."""
    down = _power_of_two(received.view(torch.int16)[-1].int() - FULL_SCALE)
    for block in _blocks(len(values), values.device):
        if add:
            values[block] += received[block].float().mul_(down)
        else:
            torch.mul(received[block].float(), down, out=values[block])


def _power_of_two(exponent: Tensor) -> Tensor:
    """Return 2^exponent in float32, exact for exponents in [-126, 127], without a host synchronisation."""
    return ((exponent.int() + 127) << 23).view(torch.float32)
