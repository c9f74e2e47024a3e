"""Settings of the model, the clients, their steps, the server and the schedule. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Schedule = Literal["rounds", "epochs"]
Sync = Literal["phases", "constant", "qsr"]


@dataclass(frozen=True)
class ModelConfig:
    """Model and start weights."""

    model: str = "mlp"
    """mlp, cnn, logistic, 2nn, lenet, simple_cnn, resnet20(_gn) to 1202, vgg11 to 19, torchvision.NAME, or gpt_char.
    This is for text; _gn has GroupNorm"""
    n_groups: int = 8
    """groups of each GroupNorm; -1: 8"""
    n_layers: int = 2
    """blocks of gpt_char"""
    width: int = 64
    """width of gpt_char, a multiple of --n-heads"""
    n_heads: int = 4
    """attention heads of each block of gpt_char"""
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
    partition: str = "shared"
    """who owns which training samples: shared (nobody; every epoch's order is dealt to the clients), iid, dirichlet,
    dirichlet-client, shards, classes, quantity, natural (of the data set), or a .npz or .json file. With all but
    shared, time is counted in --rounds"""
    alpha: float | None = None
    """concentration of --partition dirichlet, dirichlet-client and quantity; None: the procedure's default"""
    shards_per_client: int | None = None
    """shards of each client under --partition shards; None: 2"""
    classes_per_client: int | None = None
    """classes of each client under --partition classes; None: 2"""
    min_client_size: int | None = None
    """least samples of a client in a drawn partition; None: the procedure's default"""
    partition_as: Literal["flower", "niid-bench", "pfl"] | None = None
    """draw the partition index for index as this package does; None: as fastlocal does"""
    population: int | None = None
    """number of clients, of which --clients take part in a round; None: that of the partition's file or the data set,
    else --clients"""
    cohort_sampling: str = "uniform"
    """who takes part in a round: uniform (without replacement), replacement (a client drawn twice counts twice),
    weighted (by its samples, with replacement), cyclic, or a JSON file of the clients that can take part in each
    round"""
    clients_drop: float = 0.0
    """probability that a chosen client does not take part in the round after all"""
    client_epochs: Literal["restart", "continue"] | None = None
    """in each round a client begins a new epoch of its own samples, or goes on in the one of its last round; None:
    continue if all clients take part in every round, else restart"""
    local_epochs: float | None = None
    """epochs of its own samples that a client trains in a round, also a fraction, instead of --step1 local steps; None:
    --step1"""
    last_batch: Literal["fill", "drop", "partial"] = "fill"
    """last batch of a client's epoch under --local-epochs: fill (it runs on into the client's next epoch), drop (left
    out if it is short, and with it a client that has no whole batch) or partial (short, as a DataLoader's)"""
    stragglers: float = 0.0
    """probability that a client takes only some of its steps in a round, 1 to all of them alike likely"""
    client_weights: str | None = None
    """weights of the clients in the mean: examples (their samples), uniform, or a .json or .npy file of one weight per
    client; None: examples if clients own samples, else uniform"""
    client_state: Literal["keep", "reset", "average"] | None = None
    """momenta, adamw's means and number of steps, and buffers that a forward pass changes, at the start of a round:
    keep (a client's own), reset (an optimizer that begins, buffers of the global model) or average (over the clients of
    the round before); None: keep if all clients take part in every round, else reset"""
    client_store: Literal["memory", "disk"] = "memory"
    """where the state waits that clients keep: memory, or disk (files in the run directory, of which a round reads and
    writes the rows of its clients)"""
    client_test: float | None = None
    """share of each client's samples that is held out before training; None: 0.2 with --eval-clients, else 0"""
    eval_clients: int | None = None
    """rounds between evaluations by client: of the global model, and of each client's own model after its local steps,
    on the client's held-out samples; a multiple of --eval-freq1; None: none"""
    eval_clients_of: Literal["cohort", "all"] = "cohort"
    """clients on whose samples --eval-clients evaluates the global model: those of the round, or all; own models are
    those of the round in any case"""


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
    client_optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd, as torch.optim.SGD, or adamw, as torch.optim.AdamW with a count of steps for each client"""
    momentum: float = 0.0
    """momentum of sgd, in [0, 1); see --client-state"""
    nesterov: bool = False
    """Nesterov momentum"""
    beta1: float = 0.9
    """decay of adamw's means of gradients, in [0, 1); see --client-state"""
    beta2: float = 0.999
    """decay of adamw's means of squared gradients, in [0, 1)"""
    adam_eps: float = 1e-8
    """added by adamw to the root of the mean of squared gradients"""
    wd: float = 5e-4
    """weight decay, added to the gradient; of adamw decoupled. Its steps multiply parameters by 1 - rate * this"""
    group_weight: bool = False
    """no weight decay for biases and normalisation parameters"""
    clip_norm: float | None = None
    """scale a client's gradient down to at most this norm; None: no clipping"""


@dataclass(frozen=True)
class AlgorithmConfig:
    """Algorithm of local training: terms of the clients' gradients, and the weight of each client in the mean."""

    algorithm: str = "fedavg"
    """fedavg, fedprox, scaffold, fednova or feddyn"""
    prox_mu: float | None = None
    """pull of --algorithm fedprox and fednova to the start of the round; None: 0.01, fednova 0"""
    feddyn_alpha: float | None = None
    """coefficient of the regulariser of --algorithm feddyn; None: 0.01"""
    correction_at: Literal["gradient", "step"] | None = None
    """the algorithm's terms are added to the gradient, so that momentum holds them, or to the step after momentum;
    None: gradient"""


@dataclass(frozen=True)
class ServerConfig:
    """Step of the server from the round's start to its mean."""

    server_optimizer: str = "none"
    """none (the mean), sgd, momentum, nesterov, adam, yogi, adagrad or slowmo"""
    server_lr: float | None = None
    """rate of the server; None: 1, adam and adagrad 0.1, yogi 0.01"""
    server_momentum: float | None = None
    """momentum of the server, in [0, 1); None: 0.9, slowmo 0.5"""
    server_beta1: float | None = None
    """decay of the mean of differences; None: 0.9, adagrad 0"""
    server_beta2: float | None = None
    """decay of the mean of their squares, of adam and yogi; None: 0.99"""
    server_tau: float | None = None
    """added to the root of the mean of squares; None: 1e-3"""
    server_accumulator: float | None = None
    """start of the mean of squares; None: the square of --server-tau"""
    server_bias_correction: bool = False
    """divide the means of adam and yogi by 1 - beta^round"""


@dataclass(frozen=True)
class ScheduleConfig:
    """Epochs, phases and the frequencies of evaluations and checkpoints. H is the number of local steps per round."""

    schedule: Schedule = "rounds"
    """rounds: the phases of the reference's CIFAR program; epochs: those of its ImageNet program"""
    epochs: int = 300
    """epochs to train"""
    rounds: int | None = None
    """communication rounds to train, instead of --epochs"""
    stop_at: str | None = None
    """METRIC=VALUE, val_acc1=0.97 say: end after the evaluation whose accuracy is at least, or whose loss is at most,
    this; METRIC is an accuracy or a loss of metrics.jsonl"""
    steps_per_epoch: int | None = None
    """local steps per epoch; None or -1: as many as the training set allows"""
    decay1: int = 250
    """epoch of the first decay, which begins phase 2"""
    decay2: int = 500
    """epoch of the second decay, which begins phase 3"""
    decay3: int = 225
    """epoch of a third decay (--schedule epochs)"""
    sync: Sync = "phases"
    """rule of H: phases (--step1, --step2, --step3), constant (--step1 in all phases), or qsr, the quadratic
    synchronization rule: max(--h-min, floor((--qsr-alpha / rate)^2))"""
    qsr_alpha: float | None = None
    """coefficient of --sync qsr: the rate at which H would be 1"""
    h_min: int = 1
    """least H of --sync qsr"""
    sync_fragments: int = 1
    """parts into which the parameters are split, of which each round averages the next one, as Streaming DiLoCo does; a
    part is then averaged every --sync-fragments rounds, and clients keep the others"""
    post_local_from: int = 0
    """epoch before which H is 1 (post-local SGD), counted as that of --decay1; from it on, H follows --sync"""
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
    lr_schedule: str = "constant"
    """rate after the warm-up as a function of the local step, or of the round if clients own samples: constant (with
    the decays by --gamma), cosine or linear (both to 0 at the end of the run), or a file of factors of the peak rate,
    one per step or round (.json, or a number per line)"""
