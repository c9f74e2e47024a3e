"""All settings of a run, as frozen dataclasses. No torch.

Every field is also a command-line flag of the same name. None means that the data, the model or the machine decides;
`fastlocal.runs` fills it in, and `config.json` holds the result.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from .training_settings import AlgorithmConfig, ClientConfig, ModelConfig, ScheduleConfig, ServerConfig, SgdConfig

Precision = Literal["fp32", "tf32", "bf16", "fp64"]
Executor = Literal["auto", "stacked", "looped", "threaded"]
SourceKind = Literal["auto", "resident", "torch", "ffcv", "dali"]
WandbMode = Literal["online", "offline", "disabled"]


@dataclass(frozen=True)
class DataConfig:
    """Data set and image transforms."""

    dataset: str = "digits"
    """digits, cifar10, cifar100, fashion_mnist, image_folder, npz, beton, array, synthetic, or text. With clients of
    their own also leaf, csv, parquet, flower, hdf5, client_folders, fedprox_synthetic_iid, _0, _0.5 or _1"""
    data_pth: str | None = None
    """folder or file that holds the data set"""
    train_pth: str | None = None
    """training split of the data set, if it is not below --data-pth"""
    val_pth: str | None = None
    """test split of the data set, if it is not below --data-pth"""
    client_column: str | None = None
    """column of csv or parquet that names each sample's client; None: client, if there is one"""
    label_column: str | None = None
    """column of csv, parquet or flower with the labels (hdf5: their name); None: label"""
    mean: tuple[float, ...] | None = None
    """one value per channel, in units of 1: the model sees (x / 255 - mean) / std; None: the data set's own"""
    std: tuple[float, ...] | None = None
    """one value per channel, in units of 1; None: the data set's own"""
    context: int = 64
    """bytes of a sample of text, which is also the longest input of gpt_char"""
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
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def clients(self) -> int:
        """Number of clients of a round."""
        return self.client.total_batch_size // self.client.batch_size

    @property
    def owned(self) -> bool:
        """Return True if clients own their samples, so that time is counted in rounds."""
        return self.client.partition != "shared"

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
    "algorithm": AlgorithmConfig,
    "server": ServerConfig,
    "schedule": ScheduleConfig,
    "machine": MachineConfig,
    "log": LogConfig,
}
AREA_OF = {spec.name: area for area, kind in AREAS.items() for spec in dataclasses.fields(kind)}
