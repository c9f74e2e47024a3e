"""All settings of a run, as frozen dataclasses. No torch.

Every field is also a command-line flag of the same name. None means that the data, the model or the machine decides;
`fastlocal.runs` fills it in, and `config.json` holds the result.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

Schedule = Literal["rounds", "epochs"]
Precision = Literal["fp32", "tf32", "bf16", "fp64"]
Executor = Literal["auto", "stacked", "looped", "threaded"]
SourceKind = Literal["auto", "resident", "torch", "ffcv", "dali"]
WandbMode = Literal["online", "offline", "disabled"]


@dataclass(frozen=True)
class DataConfig:
    """Data set and image transforms."""

    dataset: str = "digits"
    """digits, cifar10, cifar100, fashion_mnist, image_folder, npz, beton, array or synthetic"""
    data_pth: str | None = None
    """folder or file that holds the data set"""
    train_pth: str | None = None
    """training split of the data set, if it is not below --data-pth"""
    val_pth: str | None = None
    """test split of the data set, if it is not below --data-pth"""
    mean: tuple[float, ...] | None = None
    """one value per channel, in units of 1: the model sees (x / 255 - mean) / std; None: the data set's own"""
    std: tuple[float, ...] | None = None
    """one value per channel, in units of 1; None: the data set's own"""
    aug: bool | None = None
    """random crop after padding by 4 (random-resized crop for crops of stored images), and horizontal flip, in
    training; None: 1 for RGB images, else 0"""
    image_size: int | None = None
    """side in pixels. --schedule rounds: images of a folder are resized and cropped to centre squares; None: original
    size. --schedule epochs: random-resized crops in training and centre crops (224/256 of the shorter side) in tests,
    of a folder, beton or array; None: 224"""
    check_data: bool = False
    """read prepared files completely and compare their checksums; else sizes and times of change are compared"""
    nw: int = 2
    """worker processes that decode images"""
    source: SourceKind = "auto"
    """resident: decoded in the device's memory; torch: worker processes; ffcv: a .beton file; dali: NVIDIA DALI;
    auto: resident if that fits, else by the data's format"""
    prefetch: int = 4
    """batches that a source other than resident decodes ahead"""
    on_bad_sample: Literal["stop", "skip"] = "stop"
    """an image that cannot be decoded in training ends the run, or is replaced by the next one (by sources that decode
    on demand; resident ends the run)"""


@dataclass(frozen=True)
class ModelConfig:
    """Model and start weights."""

    model: str = "mlp"
    """mlp, cnn, resnet20..1202, resnet20_gn..1202_gn, vgg11..19, or torchvision.NAME"""
    n_groups: int = 8
    """groups of each GroupNorm; -1: 8"""
    bn: bool | None = None
    """re-estimate BatchNorm before each evaluation; None: whether the model has BatchNorm"""
    bn_batches: int = 100
    """batches of --batch-size for the re-estimation of BatchNorm"""
    resume: int = 0
    """epochs of training behind the start weights, added to the epoch count"""
    resume_pth: str | None = None
    """state_dict to start from, by torch.save or as .safetensors; None: weights drawn from the seed"""


@dataclass(frozen=True)
class ClientConfig:
    """Clients and their samples."""

    batch_size: int = 128
    """samples per client and local step"""
    total_batch_size: int = 128
    """samples of all clients per local step; divided by --batch-size it is the number of clients"""
    replacement: bool = False
    """draw samples with replacement"""
    sampling: Literal["shuffle", "quasi-random"] = "shuffle"
    """quasi-random: for a .beton on a slow disk, mix samples only among a few of its pages at a time, these drawn at
    random, so that it is read nearly in sequence; this changes which samples a client sees"""
    sampling_pages: int = 16
    """pages (8 MiB each, as FFCV writes them) that --sampling quasi-random mixes at a time"""
    label_noise: bool = False
    """replace labels at random, anew at each step"""
    noise_p: float = 0.1
    """probability that a label is replaced under --label-noise"""


@dataclass(frozen=True)
class SgdConfig:
    """Local SGD steps. Exactly one of --start-lr, --lr and --client-lr is set."""

    start_lr: float | None = 0.01
    """rate per client: the peak rate is this times the number of clients, the warm-up starts from this"""
    lr: float | None = None
    """rate per 256 samples: the peak rate is this times total batch / 256, the warm-up starts from this"""
    client_lr: float | None = None
    """rate that each client applies, unscaled"""
    max_lr: float | None = None
    """peak rate after a warm-up; None or -1: from --start-lr, --lr or --client-lr"""
    warm_up: bool = False
    """raise the rate linearly to its peak at the start"""
    warmup_epochs: int = 5
    """epochs of the warm-up"""
    gamma: float = 0.1
    """factor of each rate decay"""
    momentum: float = 0.0
    """momentum, in [0, 1); it stays with its client"""
    nesterov: bool = False
    """Nesterov momentum"""
    wd: float = 5e-4
    """weight decay, added to the gradient"""
    group_weight: bool = False
    """no weight decay for biases and normalisation parameters"""
    clip_norm: float | None = None
    """scale a client's gradient down to at most this norm; None: no clipping"""


@dataclass(frozen=True)
class ScheduleConfig:
    """Epochs, phases and the frequencies of evaluations and checkpoints. H is the number of local steps per round."""

    schedule: Schedule = "rounds"
    """rounds: the phases of the reference's CIFAR program; epochs: those of its ImageNet program"""
    epochs: int = 300
    """epochs to train"""
    rounds: int | None = None
    """communication rounds to train, instead of --epochs"""
    steps_per_epoch: int | None = None
    """local steps per epoch; None or -1: as many as the training set allows"""
    decay1: int = 250
    """epoch of the first decay, which begins phase 2"""
    decay2: int = 500
    """epoch of the second decay, which begins phase 3"""
    decay3: int = 225
    """epoch of a third decay (--schedule epochs)"""
    step1: int = 1
    """H in phase 1"""
    step2: int = 1
    """H in phase 2"""
    step3: int = 1
    """H in phase 3"""
    eval_freq1: int = 1
    """rounds between evaluations in phase 1"""
    eval_freq2: int = 1
    """rounds between evaluations in phase 2"""
    eval_freq3: int = 1
    """rounds between evaluations in phase 3"""
    save_freq1: int = 100
    """rounds (--schedule epochs: epochs) between named checkpoints in phase 1"""
    save_freq2: int = 100
    """the same in phase 2"""
    save_freq3: int = 100
    """the same in phase 3"""
    eval_on_start: bool = False
    """evaluate and save before the first round"""


@dataclass(frozen=True)
class MachineConfig:
    """Device, precision, executor and communication."""

    device: str | None = None
    """cpu, cuda or cuda:N; None: cuda where present, else cpu"""
    precision: Precision | None = None
    """None: fp32, and bf16 for --schedule epochs on a GPU. bf16 has the exponents of fp32, so that gradients do not
    vanish and no loss scaling is needed; fp16, which would need it per client, is not offered"""
    executor: Executor = "auto"
    """stacked: all resident clients at once; looped: one after the other; threaded: one in each worker thread of a CPU;
    auto: the fastest of them, by timing if the run is long enough"""
    tune_seconds: float = 5.0
    """seconds that --executor auto may time for, from 30 on compiled steps too, and then --conv-strategy auto; 0: a
    fixed rule, threaded for convolutions of several clients on a CPU and else stacked"""
    workers: int | None = None
    """threads of --executor threaded; None: one per core that this process may use, at most OMP_NUM_THREADS"""
    channels_last: bool | None = None
    """--executor threaded computes convolutions channels-last; None: in fp32, except as auto times"""
    chunk: int | None = None
    """clients resident at once; None: as many as fit comfortably into --memory-limit"""
    memory_limit: float | None = None
    """GiB that the run may take (8, 8GiB, 500MiB), on a GPU of its memory; None: all free memory"""
    conv_strategy: str = "auto"
    """stacked convolutions: grouped, loop, im2col or triton, also per layer (loop,conv1=im2col); auto: the fastest of
    them for each layer, timed at the start. Other than auto, it makes --executor auto stacked"""
    compile: bool | None = None
    """compile the stacked forward and backward pass with torch.compile; None: 0"""
    cuda_graph: bool | None = None
    """capture the stacked local step as a CUDA graph and replay it; None: on a GPU, if the step allows it"""
    deterministic: bool = False
    """bit-identical repeats on one device, by deterministic algorithms only"""
    seed: int = 0
    """seed of start weights, sampling, augmentation and label noise"""
    on_nan: Literal["stop", "continue"] = "stop"
    """at a loss that is not finite, stop or continue"""
    dist_url: str = "env://"
    """how processes find each other: env:// by variables of torchrun or srun, or tcp://HOST:PORT of the first one"""
    timeout: float = 600.0
    """seconds that processes wait for each other before the run ends, naming those that are missing"""
    bucket_mb: float = 25.0
    """MiB of a bucket of parameters between processes; several buckets are on the way at once"""
    wire_format: Literal["full", "bf16", "fp16"] = "full"
    """of parameters between processes (within a node always full); the rounding errors of 16 bits are added in the next
    round"""
    reduce_order: Literal["any", "fixed"] = "any"
    """fixed: the mean is the same to the bit on any number of processes and with any --chunk, at four times the bytes;
    parameters beyond 16,777,216 make it NaN"""


@dataclass(frozen=True)
class LogConfig:
    """Output files and logging."""

    log_pth: str | None = None
    """run directory; None: a fresh runs/NAME_TIME"""
    debug: bool = False
    """also write steps.jsonl: step, client, rate and loss of every local step"""
    wandb: WandbMode = "disabled"
    """Weights & Biases"""
    wandb_entity: str | None = None
    """account or team that wandb logs to; None: wandb's default"""
    wandb_project: str = "fastlocal"
    """wandb project"""
    wandb_save: bool = False
    """also upload checkpoints to wandb"""
    tensorboard: bool = False
    """also write TensorBoard event files into the run directory"""
    profile: bool = False
    """profile the rounds after the first: a trace, a table of times and memory snapshots"""
    profile_rounds: int = 3
    """number of profiled rounds"""
    save_every: int | None = None
    """rounds between saves of resume.pt, 0 for none; None: at each evaluation, or by --save-minutes alone"""
    save_minutes: float | None = None
    """minutes between saves of resume.pt, within long rounds too; None: by rounds alone"""
    keep: int = 2
    """saved states to keep: resume.pt and those before it"""
    grace: float = 30.0
    """seconds after Ctrl-C or SIGTERM in which the current chunk may end and be saved"""


@dataclass(frozen=True)
class RunConfig:
    """All settings of one run."""

    name: str = "train"
    """the recipe's name; part of the default run directory's"""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    client: ClientConfig = field(default_factory=ClientConfig)
    sgd: SgdConfig = field(default_factory=SgdConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def clients(self) -> int:
        """Number of clients."""
        return self.client.total_batch_size // self.client.batch_size

    def with_values(self, **values: Any) -> RunConfig:
        """Return a copy with new values of the named fields, of any area."""
        areas: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            areas.setdefault(AREA_OF[name], {})[name] = value
        changed = {area: dataclasses.replace(getattr(self, area), **fields) for area, fields in areas.items()}
        return dataclasses.replace(self, **changed)

    def value(self, name: str) -> Any:
        """Return the value of the field `name`, of any area."""
        return getattr(getattr(self, AREA_OF[name]), name)

    def with_name(self, name: str) -> RunConfig:
        """Return a copy with another name."""
        return dataclasses.replace(self, name=name)

    def to_json(self) -> str:
        """Return the text of config.json."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


AREAS: dict[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    "client": ClientConfig,
    "sgd": SgdConfig,
    "schedule": ScheduleConfig,
    "machine": MachineConfig,
    "log": LogConfig,
}
AREA_OF = {spec.name: area for area, kind in AREAS.items() for spec in dataclasses.fields(kind)}
