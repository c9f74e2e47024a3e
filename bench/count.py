"""Count launches, bytes, saved activations and host reads of one captured local step, without a GPU.

    python -m bench.count                                    the headline cases
    python -m bench.count resnet20_gn:512x8 --precision bf16 --operations
    python -m bench.count headline strangers --write         replace their rows in bench/results/counted/steps.csv

The step is that of a GPU of capability 9.0 with Triton, on images of 3 x 32 x 32 that are resident and augmented. The
floor is 12 passes over the outputs of all convolutions in the format of the step (written and read in the forward pass
with the norm between them, and as often for the two gradients), and one over what the update must move.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: a kernel needs no driver to be defined

import torch  # noqa: E402

from bench.common import RESULTS, Row, commit, merge_rows, triton_version  # noqa: E402
from bench.counting import Counts, counting, empty_like_module  # noqa: E402
from fastlocal.data.sources.resident import ResidentSource  # noqa: E402
from fastlocal.data.types import Split  # noqa: E402
from fastlocal.executors.base import LocalProblem  # noqa: E402
from fastlocal.executors.cuda_graphs import StepProgram  # noqa: E402
from fastlocal.executors.round_plan import RoundPlan  # noqa: E402
from fastlocal.executors.stacked import StackedExecutor  # noqa: E402
from fastlocal.models import build  # noqa: E402
from fastlocal.models.functional import local_module  # noqa: E402
from fastlocal.models.modes import training_modes  # noqa: E402
from fastlocal.params.client_stack import ClientStack  # noqa: E402
from fastlocal.params.label_noise import LabelNoise
from fastlocal.params.losses import cross_entropy  # noqa: E402
from fastlocal.params.param_layout import param_layout  # noqa: E402
from fastlocal.params.precision import Numerics  # noqa: E402

PASSES = 12
"""Passes over a convolution's output that the floor counts."""
IMAGE, CLASSES, IMAGES = (3, 32, 32), 10, 1000
KEYS = ("model", "clients", "batch", "precision", "label_noise")
COLUMNS = ("launches", "read_gb", "written_gb", "moved_gb", "floor_gb", "saved_gb", "host_reads")


@dataclass(frozen=True)
class Step:
    """A local step to count."""

    model: str
    clients: int
    batch: int
    precision: str = "tf32"
    label_noise: bool = False

    @property
    def name(self) -> str:
        """Name in the printed table."""
        return f"{self.model} {self.clients} x {self.batch} {self.precision}{' noise' if self.label_noise else ''}"


HEADLINE = (
    Step("resnet56", 32, 128, "bf16"),
    Step("resnet20_gn", 512, 8, "tf32"),
    Step("resnet20_gn", 512, 8, "bf16"),
    Step("mlp", 512, 8, "tf32"),
)


STRANGERS = (Step("torchvision.resnet18", 32, 32, "bf16"), Step("torchvision.mobilenet_v2", 32, 32, "bf16"))
"""Models that were not written for fastlocal."""
GROUPS = {"headline": HEADLINE, "strangers": STRANGERS}


def count(step: Step, module: torch.nn.Module | None = None) -> tuple[Counts, int]:
    """Count one local step; return the counts and the bytes of the floor.

    Args:
        step: The step.
        module: A module in the place of the model named by the step.
    """
    if module is None:
        module = build(step.model, in_channels=IMAGE[0], classes=CLASSES, image_size=IMAGE[1:])
    local = local_module(module, training_modes(module))
    layout = param_layout(local, group_weight=False)
    with counting() as (counts, counted):
        device = torch.device("cuda", 0)
        split = Split(torch.empty(IMAGES, *IMAGE, dtype=torch.uint8), torch.empty(IMAGES, dtype=torch.int64))
        source = ResidentSource(
            split, mean=(0.5,) * 3, std=(0.25,) * 3, augment=True, seed=1, device=device, dtype=torch.float32
        )
        problem = LocalProblem(
            module=empty_like_module(local, device),
            layout=dataclasses.replace(layout, decay_mask=torch.empty(layout.n_params)),
            source=source,
            loss=cross_entropy,
            topk=(1,),
            noise=LabelNoise(0.1, CLASSES, 1) if step.label_noise else None,
            momentum=0.9,
            nesterov=False,
            weight_decay=1e-4,
            numerics=Numerics(device, torch.float32, torch.bfloat16 if step.precision == "bf16" else None),
        )
        params = torch.empty(step.clients, layout.n_params, device=device)
        stack = ClientStack(params, torch.empty_like(params))
        sample_ids = torch.empty(1, step.clients, step.batch, dtype=torch.int64, device=device)
        plan = RoundPlan(sample_ids[0, :, 0], 0, params[:1, :1].expand(1, step.clients), sample_ids)
        program = StepProgram(StackedExecutor(problem), stack, 1, plan)
        program.step()  # makes what later steps keep
        with counted():
            program.step()
        counts.saved.pop(params.untyped_storage()._cdata, None)
    return counts, _floor(counts, step, layout.n_params)


def _floor(counts: Counts, step: Step, n_params: int) -> int:
    """Return the passes over activations, and 7 over the parameters: forward, gradient, and 5 of the update."""
    return PASSES * counts.convolved + 7 * 4 * step.clients * n_params


def row(step: Step, counts: Counts, floor: int) -> Row:
    """Return the row of a counted step."""
    total = counts.total
    gigabytes = {
        "read_gb": total.read,
        "written_gb": total.written,
        "moved_gb": total.moved,
        "floor_gb": floor,
        "saved_gb": counts.saved_bytes,
    }
    return {
        **{key: str(getattr(step, key)) for key in KEYS},
        "launches": str(total.launches),
        **{name: f"{size / 1e9:.3f}" for name, size in gigabytes.items()},
        "host_reads": str(counts.host_reads),
        "fused": "; ".join(f"{number} {name}" for name, number in counts.fused.most_common()),
        "torch": torch.__version__,
        "triton": triton_version(),
        "commit": commit(),
    }


def operations_table(counts: Counts) -> str:
    """Return a line for each operation of each span, those that move most first."""
    lines = [f"{'span':<12}{'operation':<34}{'launches':>9}{'read GB':>10}{'written GB':>12}"]
    for (span, name), tally in sorted(counts.operations.items(), key=lambda item: -item[1].moved):
        lines.append(f"{span:<12}{name:<34}{tally.launches:>9}{tally.read / 1e9:>10.3f}{tally.written / 1e9:>12.3f}")
    return "\n".join(lines)


def parse_steps(words: Sequence[str], precision: str, label_noise: bool) -> list[Step]:
    """Parse `headline`, `strangers`, or steps as MODEL:CLIENTSxBATCH.

    Raises:
        ValueError: A word is none of these.
    """
    found: list[Step] = []
    for word in words:
        model, _, sizes = word.partition(":")
        numbers = sizes.split("x")
        if word in GROUPS:
            found += GROUPS[word]
        elif len(numbers) == 2 and all(number.isdigit() and int(number) for number in numbers):
            found.append(Step(model, int(numbers[0]), int(numbers[1]), precision, label_noise))
        else:
            raise ValueError(f"{word!r}: give headline, strangers or MODEL:CLIENTSxBATCH, such as resnet20_gn:512x8")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, print a line for each step, and write the rows."""
    parser = argparse.ArgumentParser(prog="python -m bench.count", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("steps", nargs="*", default=["headline"], help="headline, strangers, or MODEL:CLIENTSxBATCH")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="tf32", help="of the named steps")
    parser.add_argument("--label-noise", action="store_true", help="with noise in the labels of the named steps")
    parser.add_argument("--operations", action="store_true", help="print each operation too")
    parser.add_argument("--write", action="store_true", help="replace the rows in bench/results/counted/steps.csv")
    options = parser.parse_args(arguments)
    try:
        steps = parse_steps(options.steps, options.precision, options.label_noise)
    except ValueError as error:
        parser.error(str(error))
    rows = []
    print(f"{'step':<32}" + "".join(f"{name:>12}" for name in COLUMNS))
    for step in steps:
        counts, floor = count(step)
        rows.append(row(step, counts, floor))
        print(f"{step.name:<32}" + "".join(f"{rows[-1][name]:>12}" for name in COLUMNS), flush=True)
        if options.operations:
            print("\n".join(f"fused: {number} {name}" for name, number in counts.fused.most_common()))
            print(operations_table(counts))
    if options.write:
        merge_rows(RESULTS / "counted" / "steps.csv", rows, KEYS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
