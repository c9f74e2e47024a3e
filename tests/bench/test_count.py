"""Compare bench.count with a count by hand and with its committed rows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from bench.common import RESULTS, read_rows
from bench.count import COLUMNS, HEADLINE, KEYS, STRANGERS, Step, count, row

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counts on a device that is not there")
STEPS = (*HEADLINE, *STRANGERS)


@pytest.fixture(scope="module")
def rows() -> Iterator[dict[str, dict[str, str]]]:
    """The committed rows by name of their step."""
    found = {tuple(one[key] for key in KEYS): one for one in read_rows(RESULTS / "counted" / "steps.csv")}
    yield {step.name: found[tuple(str(getattr(step, key)) for key in KEYS)] for step in STEPS}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_no_step_got_worse(step: Step, rows: dict[str, dict[str, str]]) -> None:
    """A change that lowers a number writes the rows anew: python -m bench.count headline strangers --write."""
    found, committed = row(step, *count(step)), rows[step.name]
    for name in COLUMNS:
        if name != "floor_gb":
            assert float(found[name]) <= float(committed[name]), name
    assert found["fused"] == committed["fused"]


def test_a_model_of_two_layers_counted_by_hand() -> None:
    """4 clients x 2 samples of 3 x 32 x 32: a convolution to 16 channels, and a linear map to 10 classes."""
    clients, batch, pixels, channels, classes = 4, 2, 32 * 32, 16, 10
    module = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(16 * pixels, 10))
    counts, floor = count(Step("conv, linear", clients, batch, "fp32"), module)
    filters, matrix = channels * 27, classes * channels * pixels
    n_params = filters + matrix + classes
    images, hidden = (4 * clients * batch * pixels * planes for planes in (3, channels))
    weights, row_bytes = 4 * clients * filters, 4 * clients * n_params

    def moved(name: str, launches: int) -> tuple[int, int]:
        tally = counts.kind(name)
        assert tally.launches == launches, name
        return tally.read, tally.written

    # the sample numbers, and a client number and a step number for each client; a byte for each value
    assert moved("_gather_augment", 1) == (images // 4 + 8 * clients * (batch + 1) + 8, images)
    assert moved("_forward_kernel", 1) == (images + weights, hidden)
    assert moved("_weight_grad_kernel", 1) == (images + hidden, 4 * weights)  # of 512 pixels each, to be added
    assert counts.kind("_input_grad_kernel").launches == 0  # images need no gradient
    # of the outputs with the matrix, and the two products of the backward pass
    small, outputs = 4 * clients * matrix, 4 * clients * batch * classes
    assert moved("bmm", 3) == (2 * (hidden + small + outputs), outputs + hidden + small)
    # parameters, momentum and gradients; the mask of the weight decay is one row, and there is a rate for each client
    assert moved("_client_sgd", 1) == (3 * row_bytes + 4 * n_params + 4 * clients, 2 * row_bytes)
    assert counts.host_reads == 0
    assert floor == 12 * hidden + 7 * row_bytes


def test_images_are_channels_last_from_the_first_convolution_on() -> None:
    counts, _ = count(Step("resnet20_gn", 2, 2, "bf16"))
    first = [name for name, last in counts.last if not last]
    assert first == ["_forward_kernel", "_weight_grad_kernel"] and len(counts.last) > 90
