"""Parameters, buffers and inputs that are not real floats of the run's precision: trained as plain, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.strangers.judge import EXECUTORS, TWO, assert_trains_as_plain
from tests.strangers.strange_data import CLASSES, COLUMNS, Net, seeded, table


class Complex(nn.Module):
    """A complex matrix, of whose products the absolute values count."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(COLUMNS, CLASSES, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.weight.dtype) @ self.weight).abs()


class ComplexPart(Net):
    """One complex parameter among real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.polar(torch.ones(COLUMNS), torch.linspace(0, 1, COLUMNS)))

    def between(self, hidden: Tensor) -> Tensor:
        return (hidden * self.turn).real + (hidden * self.turn).imag


class ComplexFrozen(ComplexPart):
    """The complex parameter is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.turn.requires_grad_(False)


class ComplexBuffer(Net):
    """Turns pairs of numbers by angles that are kept as complex numbers, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.linspace(0.1, 1.0, COLUMNS // 2)
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles))

    def between(self, hidden: Tensor) -> Tensor:
        pairs = torch.view_as_complex(hidden.reshape(len(hidden), -1, 2).contiguous())
        return torch.view_as_real(pairs * self.turns).flatten(1)


class Fourier(Net):
    """Complex numbers within forward alone."""

    def between(self, hidden: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(hidden) * 0.5, n=COLUMNS) + torch.fft.fft(hidden).abs()


class Half(Net):
    """A parameter and a buffer in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(COLUMNS, dtype=torch.float16))
        self.register_buffer("shift", torch.linspace(0, 1, COLUMNS).bfloat16())

    def between(self, hidden: Tensor) -> Tensor:
        return hidden * self.gain.to(hidden.dtype) + self.shift.to(hidden.dtype)


class Integers(Net):
    """Frozen weights of 8 bits, a mask, and a permutation."""

    def __init__(self) -> None:
        super().__init__()
        self.quantised = nn.Parameter(torch.randint(-8, 8, (COLUMNS,), dtype=torch.int8), requires_grad=False)
        self.register_buffer("mask", torch.arange(COLUMNS) % 2 == 0)
        self.register_buffer("order", torch.randperm(COLUMNS))
        self.register_buffer("levels", torch.arange(COLUMNS, dtype=torch.uint8))

    def between(self, hidden: Tensor) -> Tensor:
        scaled = hidden * self.quantised.to(hidden.dtype) / 8 + self.levels.to(hidden.dtype) / 10
        return torch.where(self.mask, scaled, hidden)[:, self.order]


@pytest.mark.parametrize("make", [Complex, ComplexPart, ComplexFrozen])
def test_complex_parameters(make: Any) -> None:
    executors = EXECUTORS if make is ComplexFrozen else TWO
    assert_trains_as_plain(double(make), table(), executors=executors, may_refuse=EXECUTORS)


@pytest.mark.parametrize("make", [ComplexBuffer, Half])
def test_other_types_beside_real_parameters(make: Any) -> None:
    assert_trains_as_plain(double(make), table(), may_refuse=EXECUTORS)


@pytest.mark.parametrize("make", [Fourier, Integers])
def test_types_within_forward_and_of_buffers(make: Any) -> None:
    executors = EXECUTORS if make is Integers else TWO
    assert_trains_as_plain(seeded(make), table(), executors=executors, may_refuse=("threaded",))


def double(make: Any) -> Any:
    """Make it in float64 where it is real."""

    def made() -> nn.Module:
        torch.manual_seed(3)
        module = make()
        return module.double()

    return made


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int16, torch.bool, torch.uint8])
def test_inputs_of_other_types(dtype: torch.dtype) -> None:
    inputs, targets = table()
    data = ((inputs * 3).to(dtype), targets)

    class Casts(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.to(self.a.weight.dtype))

    assert_trains_as_plain(seeded(Casts), data, executors=EXECUTORS if dtype == torch.bfloat16 else TWO)


def test_complex_inputs() -> None:
    inputs, targets = table()

    class Parts(Net):
        def __init__(self) -> None:
            super().__init__(2 * COLUMNS)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.view_as_real(x).flatten(1).to(self.a.weight.dtype))

    data = (torch.complex(inputs, inputs.flip(1)), targets)
    assert_trains_as_plain(seeded(Parts), data, may_refuse=EXECUTORS)
