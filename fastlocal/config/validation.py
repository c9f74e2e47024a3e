"""Checks of a RunConfig before any data is read. Each message is one line that names the flag."""

from __future__ import annotations

import math
import os.path
import re
from collections.abc import Collection, Iterator

from ..common.errors import UsageError
from .model_checks import model_problems
from .optimizer_checks import optimizer_problems
from .schema import RunConfig
from .sync_checks import sync_problems
from .targets import CLIENT_METRICS, Target

MAX_COUNT = 2**31 - 1
"""Maximum of every count: the product of two counts then fits into 64 bits."""

MAX_CLIENTS_FIXED_ORDER = 2**20
"""Maximum number of clients for --reduce-order fixed: with more, its grid is coarser than float32 near 1e-5."""

MAX_SECONDS = 1_000_000
"""Maximum of --timeout."""

MAX_WORKERS = 1024
"""Maximum of --workers: the threads of one process."""

PHASES = (
    *("epochs", "schedule", "steps_per_epoch", "decay1", "decay2", "decay3", "step2", "step3", "eval_freq2"),
    *("eval_freq3", "save_freq2", "save_freq3", "warm_up", "warmup_epochs", "max_lr", "gamma", "start_lr", "lr"),
    *("resume", "replacement", "sampling", "sampling_pages", "post_local_from"),
)
"""Settings that count in epochs or phases, or deal shared samples."""

NOBODY_OWNS = "nobody owns samples with --partition shared; name a partition, such as iid"

PARTITION_PARAMETERS = ("alpha", "shards_per_client", "classes_per_client", "min_client_size", "partition_as")
"""Parameters of drawn partitions."""


def check(config: RunConfig) -> None:
    """Raise UsageError for the first setting of `config` that no data set and no machine can satisfy."""
    for problem in _problems(config):
        raise UsageError(problem)


def _problems(config: RunConfig) -> Iterator[str]:
    checks = (_paths, _counts, model_problems, optimizer_problems, _rates, sync_problems, _clients, _ownership)
    for problems in (*checks, _client_tests, _server):
        yield from problems(config)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _paths(config: RunConfig) -> Iterator[str]:
    paths = {
        "data_pth": config.data.data_pth,
        "train_pth": config.data.train_pth,
        "val_pth": config.data.val_pth,
        "resume_pth": config.model.resume_pth,
        "log_pth": config.log.log_pth,
    }
    for name, path in paths.items():
        if path is None:
            continue
        if not path:
            yield f"{_flag(name)} '': is empty; give a path, or None for the default"
        if path.startswith("~") and os.path.expanduser(path) == path:
            yield f"{_flag(name)} {path}: there is no such user's home; write the path out"


def _counts(config: RunConfig) -> Iterator[str]:
    schedule = config.schedule
    positive = {
        "batch_size": config.client.batch_size,
        "total_batch_size": config.client.total_batch_size,
        "epochs": schedule.epochs,
        "rounds": schedule.rounds,
        "h_min": schedule.h_min,
        "steps_per_epoch": schedule.steps_per_epoch,
        "sampling_pages": config.client.sampling_pages,
        "bn_batches": config.model.bn_batches if config.model.bn else None,
        "n_groups": config.model.n_groups,
        "chunk": config.machine.chunk,
        "workers": config.machine.workers,
        "image_size": config.data.image_size,
        "profile_rounds": config.log.profile_rounds,
        "prefetch": config.data.prefetch,
        "warmup_epochs": config.sgd.warmup_epochs if config.sgd.warm_up else None,
        "keep": config.log.keep,
    }
    for phase in (1, 2, 3):
        for name in ("step", "eval_freq", "save_freq"):
            positive[f"{name}{phase}"] = getattr(schedule, f"{name}{phase}")
    for name, value in positive.items():
        if value is not None and value < 1:
            yield f"{_flag(name)} {value}: must be at least 1"
        if value is not None and value > MAX_COUNT:
            yield f"{_flag(name)} {value}: must be at most {MAX_COUNT}"
    if config.machine.workers is not None and config.machine.workers > MAX_WORKERS:
        yield f"--workers {config.machine.workers}: must be at most {MAX_WORKERS}"
    from_zero = {
        "resume": config.model.resume,
        "post_local_from": schedule.post_local_from,
        "nw": config.data.nw,
        "save_every": config.log.save_every,
    }
    for name, value in from_zero.items():
        if value is not None and not 0 <= value <= MAX_COUNT:
            yield f"{_flag(name)} {value}: must be 0 or more, and at most {MAX_COUNT}"
    for name, seconds in {"save_minutes": config.log.save_minutes, "grace": config.log.grace}.items():
        if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
            yield f"{_flag(name)} {seconds}: must be a finite number, 0 or more"
    limit = config.machine.memory_limit
    if limit is not None and not (math.isfinite(limit) and limit > 0):
        yield f"--memory-limit {limit}: must be a finite number of GiB above 0"
    bucket = config.machine.bucket_mb
    if not (math.isfinite(bucket) and bucket > 0):
        yield f"--bucket-mb {bucket}: must be a finite number of MiB above 0"
    if not 0 < config.machine.timeout <= MAX_SECONDS:
        yield f"--timeout {config.machine.timeout}: must be a number of seconds above 0, at most {MAX_SECONDS}"
    place = re.fullmatch(r"env://|tcp://[^/:]+:(\d{1,5})", config.machine.dist_url)
    if not place or not 1 <= int(place[1] or 1) < 2**16:
        yield f"--dist-url {config.machine.dist_url}: must be env:// or tcp://HOST:PORT, PORT at most 65535"
    tune_seconds = config.machine.tune_seconds
    if not (math.isfinite(tune_seconds) and tune_seconds >= 0):
        yield f"--tune-seconds {tune_seconds}: must be a finite number, 0 or more"
    # the seed of epoch e's permutation is seed + e, and torch's limit is 2^64
    if not 0 <= config.machine.seed < 2**63:
        yield f"--seed {config.machine.seed}: must be 0 or more, and below 2^63"


def _rates(config: RunConfig) -> Iterator[str]:
    sgd = config.sgd
    rates = {"start_lr": sgd.start_lr, "lr": sgd.lr, "client_lr": sgd.client_lr}
    for name, value in (rates | {"max_lr": sgd.max_lr, "gamma": sgd.gamma, "wd": sgd.wd}).items():
        if value is not None and not (math.isfinite(value) and value >= 0):
            yield f"{_flag(name)} {value}: must be a finite number, 0 or more"
    present = {name: value for name, value in rates.items() if value is not None}
    if len(present) != 1:
        flags = " and ".join(_flag(name) for name in present) or "none of --start-lr, --lr and --client-lr"
        yield f"{flags}: give exactly one of --start-lr (per client), --lr (per 256 samples) and --client-lr (as it is)"
    for name, value in present.items():
        if sgd.max_lr is not None and sgd.max_lr < value:
            yield f"--max-lr {sgd.max_lr}: is below {_flag(name)} {value}; the warm-up must rise"
    if not (math.isfinite(sgd.momentum) and 0 <= sgd.momentum < 1):
        yield f"--momentum {sgd.momentum}: must be in [0, 1)"
    if sgd.clip_norm is not None and not (math.isfinite(sgd.clip_norm) and sgd.clip_norm > 0):
        yield f"--clip-norm {sgd.clip_norm}: must be a finite number above 0, or None not to clip"
    if sgd.nesterov and sgd.momentum == 0:
        yield "--nesterov 1: needs momentum; set --momentum above 0 or --nesterov 0"


def _clients(config: RunConfig) -> Iterator[str]:
    client = config.client
    if config.machine.reduce_order == "fixed" and config.machine.wire_format != "full":
        yield f"--wire-format {config.machine.wire_format}: rounds; --reduce-order fixed needs --wire-format full"
    if config.machine.reduce_order == "fixed" and config.clients > MAX_CLIENTS_FIXED_ORDER:
        yield f"--reduce-order fixed: at most {MAX_CLIENTS_FIXED_ORDER} clients, not {config.clients}; use any"
    if client.total_batch_size % client.batch_size:
        lower = client.total_batch_size // client.batch_size * client.batch_size
        near = f"{lower} or {lower + client.batch_size}" if lower else str(client.batch_size)
        yield (
            f"--total-batch-size {client.total_batch_size}: not a multiple of --batch-size {client.batch_size}; "
            f"{near} would do"
        )
    if not (math.isfinite(client.noise_p) and 0 <= client.noise_p <= 1):
        yield f"--noise-p {client.noise_p}: must be a probability in [0, 1]"
    if client.sampling == "quasi-random" and client.replacement:
        yield "--sampling quasi-random: is without replacement; leave --replacement out, or use --sampling shuffle"


def refuse_phases(names: Collection[str], config: RunConfig) -> None:
    """Raise UsageError if one of the settings `names` counts otherwise than the run: in epochs, phases or --step1."""
    if not config.owned:
        return
    if config.client.local_epochs is not None and "step1" in names:
        raise UsageError(_two_counts(config))
    for name in PHASES:
        if name in names:
            raise UsageError(
                f"{_flag(name)}: counts in epochs or phases; with --partition {config.client.partition} time is "
                "counted in rounds: --rounds, --step1, --eval-freq1, --save-freq1, --client-lr and --lr-schedule"
            )


def _two_counts(config: RunConfig) -> str:
    return (
        f"--step1 {config.schedule.step1}: --local-epochs {config.client.local_epochs:g} counts the steps of each "
        "client; give one of them"
    )


def _ownership(config: RunConfig) -> Iterator[str]:
    client, schedule, sgd = config.client, config.schedule, config.sgd
    for name in ("clients_drop", "stragglers"):
        probability = getattr(client, name)
        if not 0 <= probability <= 1:  # also NaN
            yield f"{_flag(name)} {probability}: must be a probability in [0, 1]"
    if client.clients_drop == 1:
        yield f"--clients-drop {client.clients_drop}: no client would ever take part; give less than 1"
    epochs = client.local_epochs
    if epochs is not None and not (math.isfinite(epochs) and epochs > 0):
        yield f"--local-epochs {epochs}: must be a finite number above 0"
    if epochs is not None and epochs > MAX_COUNT:
        yield f"--local-epochs {epochs:g}: must be at most {MAX_COUNT}"
    if epochs is None and client.last_batch != "fill":
        yield f"--last-batch {client.last_batch}: is for --local-epochs; with --step1 batches run on"
    if not config.owned:
        if client.stragglers:
            yield f"--stragglers {client.stragglers}: {NOBODY_OWNS}"
        for name in ("local_epochs", "population", "client_epochs", *PARTITION_PARAMETERS):
            if getattr(client, name) is not None:
                yield f"{_flag(name)}: {NOBODY_OWNS}"
        if client.cohort_sampling != "uniform":
            yield "--cohort-sampling: with --partition shared all clients take part; name a partition, such as iid"
        if client.client_weights == "examples":
            yield "--client-weights examples: with --partition shared nobody owns any; name a partition, such as iid"
        return
    if epochs is not None and schedule.step1 != 1:
        yield _two_counts(config)
    flag = f"--partition {client.partition}"
    if schedule.rounds is None:
        yield f"{flag}: time is counted in rounds; give --rounds"
    if sgd.client_lr is None:
        yield f"{flag}: the rate is that of each client; give --client-lr"
    others = {
        "--schedule epochs": schedule.schedule == "epochs",
        "--warm-up 1": sgd.warm_up,
        "--replacement 1": client.replacement,
        "--sampling quasi-random": client.sampling == "quasi-random",
    }
    for name, present in others.items():
        if present:
            yield f"{name}: is for --partition shared, not for {flag}"
    if client.population is not None and client.population < config.clients:
        yield f"--clients {config.clients}: more than --population {client.population}; a round takes part of it"
    for name, least in {"shards_per_client": 1, "classes_per_client": 1, "min_client_size": 0, "population": 1}.items():
        value = getattr(client, name)
        if value is not None and not least <= value <= MAX_COUNT:
            yield f"{_flag(name)} {value}: must be at least {least} and at most {MAX_COUNT}"
    if client.alpha is not None and not (math.isfinite(client.alpha) and client.alpha > 0):
        yield f"--alpha {client.alpha}: must be a finite number above 0"
    repeats = client.cohort_sampling in ("replacement", "weighted")
    if repeats and client.client_state == "keep":
        yield (
            f"--client-state keep: with --cohort-sampling {client.cohort_sampling} a client may take part twice in a "
            "round, and its state would be two; use reset or average"
        )
    if client.cohort_sampling == "weighted" and client.client_weights == "examples":
        yield (
            "--client-weights examples: --cohort-sampling weighted draws by samples already, which would count twice; "
            "use uniform"
        )


def _client_tests(config: RunConfig) -> Iterator[str]:
    client, every = config.client, config.client.eval_clients
    if config.schedule.stop_at is not None:
        target = Target.parse(config.schedule.stop_at)
        if target.metric in CLIENT_METRICS and every is None:
            yield f"--stop-at {config.schedule.stop_at}: is measured by client; give --eval-clients"
    if not config.owned:
        for name in ("client_test", "eval_clients"):
            if getattr(client, name) is not None:
                yield f"{_flag(name)}: nobody owns samples with --partition shared; name a partition, such as iid"
    if client.client_test is not None and not 0 <= client.client_test < 1:  # also NaN
        yield f"--client-test {client.client_test}: must be a share of a client's samples, from 0 to below 1"
    if every is None:
        if client.eval_clients_of != "cohort":
            yield f"--eval-clients-of {client.eval_clients_of}: give the rounds between evaluations, --eval-clients"
        return
    if not 1 <= every <= MAX_COUNT:
        yield f"--eval-clients {every}: must be at least 1 and at most {MAX_COUNT}"
    if every % config.schedule.eval_freq1:
        yield (
            f"--eval-clients {every}: goes with an evaluation of the test set; give a multiple of "
            f"--eval-freq1 {config.schedule.eval_freq1}"
        )
    if client.client_test == 0:
        yield "--client-test 0: holds out no sample; --eval-clients needs some, 0.2 say"


def _server(config: RunConfig) -> Iterator[str]:
    server = config.server
    for name in ("server_lr", "server_tau", "server_accumulator"):
        value = getattr(server, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            yield f"{_flag(name)} {value}: must be a finite number, 0 or more"
    for name in ("server_momentum", "server_beta1", "server_beta2"):
        value = getattr(server, name)
        if value is not None and not 0 <= value < 1:
            yield f"{_flag(name)} {value}: must be in [0, 1)"
