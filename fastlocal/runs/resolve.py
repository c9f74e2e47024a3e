"""Resolve the open settings of a RunConfig from the data, the model and the machine."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torch
from torch import nn

from fastlocal.kernels.cores import cores

from ..checkpoint.run_directory import default_directory
from ..common.errors import UsageError
from ..config.schema import RunConfig
from ..data.datasets import IMAGENET_MEAN, IMAGENET_STD
from ..data.sample_streams import Pages
from ..data.sources.source_config import choose_kind
from ..data.types import DataSet, MapSplit, StoredSplit
from ..distributed.ranks import LaunchInfo
from ..distributed.world import World
from ..executors.base import LocalProblem
from ..executors.looped import LoopedExecutor
from ..executors.registry import EXECUTORS
from ..executors.threaded import ThreadedExecutor
from ..models.batchnorm import has_batchnorm
from ..module_checks.probe import Probe

CHUNK_BYTES = 256 * 2**20
"""Size of the rows that each chunk fills anew, if no setting and no memory limit says otherwise."""
ONE = LaunchInfo()


def resolve_device(name: str | None, ranks: LaunchInfo = ONE) -> torch.device:
    """Return the device of --device; without one, cuda if present, else cpu.

    Args:
        name: Value of --device, or None.
        ranks: Launch of the processes; each of several takes its own GPU.

    Raises:
        UsageError: The device is unknown or missing, or there are too few GPUs.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: unknown; use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise UsageError(f"--device {name}: not supported; use cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"--device {name}: no CUDA GPU is available here; use --device cpu")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise UsageError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, counted from 0")
        if ranks.size > 1:
            return _gpu_of(device, ranks)
    return device


def _gpu_of(device: torch.device, ranks: LaunchInfo) -> torch.device:
    gpus = torch.cuda.device_count()
    if device.index is not None and ranks.local_size > 1:
        raise UsageError(f"--device {device}: every process takes a GPU of its own; give --device cuda")
    if gpus == 1:
        return torch.device("cuda", 0)  # a scheduler may show each task its own GPU; refuse_shared_gpu checks it
    if ranks.local_size > gpus:
        raise UsageError(
            f"--nproc-per-node {ranks.local_size}: every process takes a GPU of its own, and there are {gpus}; start "
            "as many, or give --device cpu"
        )
    return device if device.index is not None else torch.device("cuda", ranks.local_rank)


def refuse_shared_gpu(device: torch.device, world: World) -> None:
    """Raise UsageError on every rank if two ranks share a GPU, or only some ranks use one.

    GPUs are compared by UUID, because a scheduler may show each task of a node its own GPU as cuda:0.
    """
    if world.size == 1:
        return
    own = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
    uuids = world.all_gather_object(own, "the choice of devices")
    if None in uuids and any(uuids):
        places = ", ".join(f"rank {rank}: {'cpu' if uuid is None else 'cuda'}" for rank, uuid in enumerate(uuids))
        raise UsageError(f"--device {device.type}: all processes take GPUs or none ({places}); name one --device")
    for rank, uuid in enumerate(uuids):
        if uuid is not None and uuid in uuids[:rank]:
            raise UsageError(
                f"--device {device.type}: ranks {uuids.index(uuid)} and {rank} would share a GPU, and every process "
                "takes one of its own; show each its own (CUDA_VISIBLE_DEVICES), start fewer, or give --device cpu"
            )


def resolve_for_data(config: RunConfig, data: DataSet, device: torch.device) -> tuple[RunConfig, DataSet]:
    """Resolve normalisation, augmentation, data source, precision, device and steps per epoch."""
    _check_samples(data)
    sample_pages(config, data)
    if config.schedule.schedule == "epochs" and data.is_rgb:
        data = dataclasses.replace(
            data,
            mean=IMAGENET_MEAN if config.data.mean is None else data.mean,
            std=IMAGENET_STD if config.data.std is None else data.std,
        )
    by_epochs = config.schedule.schedule == "epochs"
    if config.data.aug and data.mean is None:
        raise UsageError("--aug 1: the inputs are not uint8 images")
    if config.data.aug and isinstance(data.train, MapSplit):
        raise UsageError("--aug 1: a Dataset augments its samples itself")
    config = config.with_values(
        mean=data.mean,
        std=data.std,
        aug=data.is_rgb and not isinstance(data.train, MapSplit) if config.data.aug is None else config.data.aug,
        source=choose_kind(config.data.source, data, device),
        precision=config.machine.precision or ("bf16" if by_epochs and device.type == "cuda" else "fp32"),
        device=str(device),
        steps_per_epoch=_steps_per_epoch(config, len(data.train)),
        image_size=(data.train.crop_size if isinstance(data.train, StoredSplit) else None) or config.data.image_size,
    )
    return config, data


def sample_pages(config: RunConfig, data: DataSet) -> Pages | None:
    """Return the pages of a quasi-random order, or None for --sampling shuffle.

    Raises:
        UsageError: The order is quasi-random and the training set is not a .beton file.
    """
    if config.client.sampling == "shuffle":
        return None
    from ..data.images.beton import BetonImages

    if not (isinstance(data.train, StoredSplit) and isinstance(data.train.images, BetonImages)):
        raise UsageError(
            "--sampling quasi-random: is for .beton files; `fastlocal prepare` writes one, or use --sampling shuffle"
        )
    return Pages(torch.from_numpy(data.train.images.pages), config.client.sampling_pages)


def _check_samples(data: DataSet) -> None:
    for name, split in (("training", data.train), ("test", data.test)):
        if len(split) == 0:
            raise UsageError(f"--dataset {data.name}: the {name} set is empty")
        if split.targets is not None and len(split) != len(split.targets):
            raise UsageError(f"--dataset {data.name}: {len(split)} {name} inputs but {len(split.targets)} targets")


def _steps_per_epoch(config: RunConfig, samples: int) -> int:
    total, steps = config.client.total_batch_size, config.schedule.steps_per_epoch
    if config.owned:
        return config.schedule.step1
    if config.client.replacement:
        return steps or max(1, samples // total)
    clients = f"{config.clients} clients x --batch-size {config.client.batch_size}"
    if total > samples:
        raise UsageError(
            f"--total-batch-size {total} ({clients}): more than the {samples} training samples; lower it or --clients, "
            "or use --replacement 1"
        )
    if steps is not None and total * steps > samples:
        raise UsageError(
            f"--steps-per-epoch {steps}: {steps} x {total} ({clients}) samples per epoch, but the training set has "
            f"{samples}; at most {samples // total} steps fit (-1 takes as many), or use --replacement 1"
        )
    return steps or samples // total


def resolve_batchnorm(config: RunConfig, module: nn.Module) -> RunConfig:
    """Resolve --bn from whether the module has BatchNorm; raise UsageError if they contradict each other."""
    present = has_batchnorm(module)
    if config.model.bn and not present:
        raise UsageError(f"--bn 1: {config.model.model} has no BatchNorm; use --bn 0")
    if config.model.bn is False and present:
        raise UsageError(
            f"--bn 0: {config.model.model} has BatchNorm, whose running statistics local steps do not keep; use --bn 1"
        )
    if present and config.model.bn_batches < 1:
        raise UsageError(f"--bn-batches {config.model.bn_batches}: {config.model.model} has BatchNorm; give at least 1")
    return config.with_values(bn=present)


def resolve_for_stateful_loss(config: RunConfig, probe: Probe, world: World) -> RunConfig:
    """Choose the looped executor for a loss with state, which needs a fixed order of its calls; else UsageError."""
    if not probe.stateful_loss:
        return config
    if world.size > 1:
        raise UsageError("loss: keeps something from call to call, which processes would not share; run one process")
    name = config.machine.executor
    if name != "auto" and not EXECUTORS[name].in_order:
        raise UsageError(
            f"--executor {name}: the loss keeps something from call to call, and only --executor "
            "looped calls it in a stated order: client after client, each step after step"
        )
    return config.with_values(executor=LoopedExecutor.name) if name == "auto" else config


def resolve_for_machine(config: RunConfig, executor: str, problem: LocalProblem, replicas: int = 1) -> RunConfig:
    """Resolve the settings that depend on the executor and the machine: workers, layout, chunk and absolute paths.

    Args:
        config: The settings.
        executor: Name of the executor.
        problem: The local step.
        replicas: Number of runs like this one that train together.
    """
    config = config.with_values(executor=executor)
    layout = config.machine.channels_last
    return config.with_values(
        workers=min(config.machine.workers or cores(), config.clients * replicas),
        channels_last=ThreadedExecutor.default_layout(config, problem) if layout is None else layout,
        chunk=min(config.clients, config.machine.chunk or default_chunk(config, problem.layout.n_params, executor)),
        log_pth=_absolute(config.log.log_pth) or str(default_directory(config.name)),
        data_pth=_absolute(config.data.data_pth),
        train_pth=_absolute(config.data.train_pth),
        val_pth=_absolute(config.data.val_pth),
        resume_pth=_absolute(config.model.resume_pth),
    )


def default_chunk(config: RunConfig, n_params: int, executor: str) -> int:
    """Return the clients of a chunk without --chunk, before the memory limit is applied."""
    row_bytes = n_params * (8 if config.machine.precision == "fp64" else 4)
    rows = 2 if EXECUTORS[executor].in_place else 1  # parameters, gradients
    return min(config.clients, max(1, CHUNK_BYTES // (row_bytes * rows)))


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(Path(path).expanduser())
