"""A route that sends 16 bits a number, and makes up in the next round for what that loses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from .routes import Steps, work

WireFormat = Literal["bf16", "fp16"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
FULL_SCALE = 15
"""What is sent is scaled to lie below 2^15: fp16 has numbers to 65504, so that rounding does not overflow either."""
IN_CACHE = 2**16


class SixteenBits:
    """Reduce-scatter and all-gather of rounded numbers; the sums are in float32, on the rank that gathers them.

    Every rank rounds what it sends to each other rank, its piece, and the sum of the pieces that it was sent. A piece
    goes with the power of two that it was scaled by. What both roundings lost is kept and added in the next round
    (error feedback: Seide et al. 2014; Karimireddy et al. 2019), the owner's to its own piece. So one row per rank has
    all of it, and the sum of all ranks' rows is what the mean is still owed.

    owed: [n_params] float32, this rank's
    """

    def __init__(
        self, n_params: int, wire_format: WireFormat, device: torch.device, group: dist.ProcessGroup | None
    ) -> None:
        self.error_feedback = torch.zeros(n_params, dtype=torch.float32, device=device)
        self._dtype, self._group = DTYPES[wire_format], group
        self._ranks, self._number = dist.get_world_size(group), dist.get_rank(group)
        self._rooms: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, wire: Tensor, columns: slice) -> Steps:
        values, owed = wire[0], self.error_feedback[columns]
        sent, received = self._room(columns, values)
        pieces = list(_pieces(len(values), self._ranks))
        mine = pieces[self._number]
        values += owed
        for to, piece in enumerate(pieces):
            _encode(values[piece], sent[to], owed[piece])
        yield work(dist.all_to_all_single(received, sent, group=self._group, async_op=True))
        total = values[mine].zero_()
        for from_rank in received:
            _decode(from_rank, total, add=True)
        lost = torch.empty_like(total)
        _encode(total, sent[0], lost)
        owed[mine] += lost
        yield work(dist.all_gather_into_tensor(received.view(-1), sent[0], group=self._group, async_op=True))
        for piece, from_rank in zip(pieces, received, strict=True):
            _decode(from_rank, values[piece], add=False)

    def _room(self, columns: slice, values: Tensor) -> tuple[Tensor, Tensor]:
        """What is sent and what is received: [ranks, numbers of a piece and one for its scale]."""
        if columns.start not in self._rooms:
            shape = self._ranks, -(-len(values) // self._ranks) + 1
            sent = torch.zeros(shape, dtype=self._dtype, device=values.device)
            self._rooms[columns.start] = sent, torch.zeros_like(sent)
        return self._rooms[columns.start]


def _pieces(length: int, ranks: int) -> Iterator[slice]:
    """Of equal length, apart from the last ones."""
    step = -(-length // ranks)
    for rank in range(ranks):
        yield slice(min(rank * step, length), min((rank + 1) * step, length))


def _blocks(length: int, device: torch.device) -> Iterator[slice]:
    step = IN_CACHE if device.type == "cpu" else max(length, 1)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _encode(values: Tensor, sent: Tensor, lost: Tensor) -> None:
    """Write `values` into `sent`, its scale at the end, and into `lost` what `_decode` will not give back."""
    if not len(values):
        return
    exponent = torch.frexp(torch.linalg.vector_norm(values, torch.inf)).exponent.clamp(min=-100)
    sent.view(torch.int16)[-1] = exponent
    up, down = _power_of_two(FULL_SCALE - exponent), _power_of_two(exponent - FULL_SCALE)
    for block in _blocks(len(values), values.device):
        torch.mul(values[block], up, out=sent[block])
        torch.sub(values[block], sent[block].float().mul_(down), out=lost[block])


def _decode(received: Tensor, values: Tensor, add: bool) -> None:
    """Read as many numbers as `values` has into it, or add them to it."""
    down = _power_of_two(received.view(torch.int16)[-1].int() - FULL_SCALE)
    for block in _blocks(len(values), values.device):
        if add:
            values[block] += received[block].float().mul_(down)
        else:
            torch.mul(received[block].float(), down, out=values[block])


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in float32 to the bit, for exponents in [-126, 127], without the host having to know it."""
    return ((exponent.int() + 127) << 23).view(torch.float32)
