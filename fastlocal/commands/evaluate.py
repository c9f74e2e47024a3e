"""fastlocal evaluate: accuracy and loss of a stored model."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import tyro

from ..common.interrupts import defer_signals
from ..config.recipes import default
from ..config.schema import Precision, RunConfig
from ..config.training_settings import Schedule
from ..config.validation import check
from .argv import SEVERAL_VALUES, is_number, normalise, refuse_half_precision, refuse_unknown
from .parser import parse_flags


@dataclass(frozen=True)
class EvaluateFlags:
    """Evaluate a state_dict on a data set's test images, with its stored running statistics."""

    checkpoint: tyro.conf.Positional[Path]
    """state_dict to evaluate, by torch.save or as .safetensors"""
    model: str = "mlp"
    """the model that it was saved from"""
    n_groups: int = 8
    """groups of each GroupNorm; -1: 8"""
    n_layers: int = 2
    """blocks of gpt_char"""
    width: int = 64
    """width of gpt_char"""
    n_heads: int = 4
    """attention heads of each block of gpt_char"""
    dataset: str = "digits"
    """digits, cifar10, cifar100, fashion_mnist, image_folder, npz, beton, array, synthetic, leaf, csv, parquet,
    flower, hdf5, client_folders or text"""
    data_pth: str | None = None
    """folder or file that holds the data set"""
    train_pth: str | None = None
    """training split, if it is not below --data-pth; its classes and statistics count"""
    val_pth: str | None = None
    """test split, if it is not below --data-pth; alone it is enough for beton and array"""
    client_column: str | None = None
    """column of csv or parquet that names clients, as in `fastlocal train`"""
    label_column: str | None = None
    """column with the labels, as in `fastlocal train`"""
    schedule: Schedule = "rounds"
    """epochs: evaluate as the ImageNet program does, on centre crops of --image-size, with top-5 accuracy"""
    image_size: int | None = None
    """side in pixels, as in `fastlocal train`"""
    context: int = 64
    """bytes of a sample of text, as in `fastlocal train`"""
    mean: tuple[float, ...] | None = None
    """one value per channel, in units of 1; None: the data set's own"""
    std: tuple[float, ...] | None = None
    """one value per channel, in units of 1; None: the data set's own"""
    device: str | None = None
    """cpu, cuda or cuda:N; None: cuda where present, else cpu"""
    precision: Precision = "fp32"
    """number format"""


def run(argv: Sequence[str]) -> int:
    """Print `val_acc1 ... val_loss ...`, of tokens with `val_ppl ...`."""
    words = _checkpoint_first(normalise(argv))
    refuse_half_precision(words)
    refuse_unknown(words, (spec.name for spec in dataclasses.fields(EvaluateFlags)[1:]), "fastlocal evaluate")
    flags = parse_flags(EvaluateFlags, "fastlocal evaluate", words)
    config = _config(flags)
    topk = (1, 5) if flags.schedule == "epochs" else (1,)
    check(config)

    with defer_signals():
        from ..checkpoint.model_file import read_state
        from ..data.sources.build import make_source
        from ..data.sources.source_config import SourceConfig, choose_kind
        from ..kernel_trial import verdicts
        from ..kernel_trial.kernels_tried import try_kernels
        from ..params.precision import numerics
        from ..runs.from_config import load_data, loss_of, make_model
        from ..runs.resolve import resolve_device
        from ..training.evaluation import evaluate, perplexity

    device = resolve_device(flags.device)
    try_kernels(device, ["gather_augment"])
    for line in verdicts.lines_for(device, ["gather_augment"]):
        print(line, file=sys.stderr)
    numbers = numerics(flags.precision, device)
    state = read_state(flags.checkpoint, "CHECKPOINT")
    data = load_data(config, lambda text: print(text, file=sys.stderr))
    module = make_model(config, data, state, "CHECKPOINT", flags.checkpoint).to(device, numbers.dtype)
    source_config = SourceConfig(
        kind=choose_kind(config.data.source, data, device),
        workers=config.data.nw,
        prefetch=config.data.prefetch,
        on_bad_sample="stop",
        mean=data.mean,
        std=data.std,
        seed=0,
        device=device,
        dtype=numbers.dtype,
    )
    with closing(make_source(data.test, source_config, augment=False)) as source:
        result = evaluate(module, source, loss=loss_of(data), topk=topk, numerics=numbers)
    accuracies = (f"val_acc{k} {value:.4f}" for k, value in zip(topk, result.accuracies, strict=True))
    losses = [f"val_loss {result.loss:.4f}", *([f"val_ppl {perplexity(result.loss):.4f}"] if data.tokens else [])]
    print(*accuracies, *losses)
    return 0


def _checkpoint_first(words: list[str]) -> list[str]:
    """Move a checkpoint after --mean or --std, which take any number of values, to the front."""
    front: list[str] = []
    rest: list[str] = []
    flag = ""
    for word in words:
        flag = word if word.startswith("--") else flag
        stray = flag in SEVERAL_VALUES and word not in (flag, "None") and not is_number(word)
        (front if stray else rest).append(word)
    return front + rest


def _config(flags: EvaluateFlags) -> RunConfig:
    n_groups = RunConfig().model.n_groups if flags.n_groups == -1 else flags.n_groups
    alone = flags.val_pth if flags.data_pth is None and flags.dataset in ("beton", "array") else None
    return default(flags.schedule).with_values(
        train_pth=flags.train_pth or alone,
        val_pth=flags.val_pth,
        image_size=flags.image_size,
        model=flags.model,
        n_groups=n_groups,
        n_layers=flags.n_layers,
        width=flags.width,
        n_heads=flags.n_heads,
        context=flags.context,
        dataset=flags.dataset,
        data_pth=flags.data_pth,
        client_column=flags.client_column,
        label_column=flags.label_column,
        mean=flags.mean,
        std=flags.std,
    )
