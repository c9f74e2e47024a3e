"""Recipes whose clients own their samples, and that of DiLoCo. Each returns a RunConfig; no torch."""

from __future__ import annotations

from .schema import RunConfig


def each_phase(**values: int) -> dict[str, int]:
    """Repeat values for phases 1 to 3: {"step1": h, "step2": h, "step3": h} for step=h."""
    return {f"{name}{phase}": value for name, value in values.items() for phase in (1, 2, 3)}


def _own_samples(name: str) -> RunConfig:
    """100 clients with samples of their own, 10 of them in each round, 20 local steps of 20 samples."""
    return RunConfig(name=name).with_values(
        model="cnn",
        partition="dirichlet",
        alpha=0.3,
        min_client_size=20,
        population=100,
        batch_size=20,
        total_batch_size=200,
        start_lr=None,
        wd=0.0,
        **each_phase(step=20, eval_freq=10, save_freq=100),
    )


def fedavg_fashion_mnist() -> RunConfig:
    """FedAvg on Fashion-MNIST: 100 clients of Dirichlet 0.3, 10 in each of 200 rounds, the plain mean."""
    return _own_samples("fedavg-fashion-mnist").with_values(dataset="fashion_mnist", client_lr=0.1, rounds=200)


def fedadam_cifar10() -> RunConfig:
    """FedAdam on CIFAR-10 as image files: 100 clients of Dirichlet 0.3, 10 in each of 300 rounds."""
    return _own_samples("fedadam-cifar10").with_values(
        dataset="image_folder",
        aug=True,
        client_lr=0.03,
        rounds=300,
        lr_schedule="cosine",
        server_optimizer="adam",
        server_lr=0.01,
    )


def _published(name: str) -> RunConfig:
    """A published federated experiment: clients with samples of their own, unequal steps, no weight decay."""
    phases = each_phase(step=1, eval_freq=1, save_freq=1000)
    return RunConfig(name=name).with_values(start_lr=None, wd=0.0, last_batch="partial", **phases)


def niid_bench_fashion_mnist() -> RunConfig:
    """NIID-Bench on Fashion-MNIST, as Flower's baseline has it: 10 clients, all in each of 50 rounds of 10 epochs.

    Li et al., "Federated Learning on Non-IID Data Silos", 2022. The others: --partition iid, and --partition classes
    with --classes-per-client 2.
    """
    return _published("niid-bench-fashion-mnist").with_values(
        dataset="fashion_mnist",
        model="lenet",
        partition="dirichlet",
        alpha=0.5,
        partition_as="niid-bench",
        batch_size=64,
        total_batch_size=640,
        local_epochs=10.0,
        client_lr=0.01,
        momentum=0.9,
        wd=1e-5,
        client_state="reset",
        client_epochs="restart",
        rounds=50,
    )


def mcmahan_2nn() -> RunConfig:
    """FedAvg of McMahan et al. 2017 on Fashion-MNIST: 10 of 100 clients a round, 5 epochs, batch 10, IID or shards."""
    return _published("mcmahan-2nn").with_values(
        dataset="fashion_mnist",
        model="2nn",
        partition="iid",
        population=100,
        batch_size=10,
        total_batch_size=100,
        local_epochs=5.0,
        client_lr=0.05,
        rounds=200,
    )


def pfl_cifar10() -> RunConfig:
    """pfl-research's CIFAR-10 benchmark on image files: 50 of 1,000 IID clients, an epoch of batches of 10."""
    return _published("pfl-cifar10").with_values(
        dataset="image_folder",
        model="simple_cnn",
        aug=False,
        partition="iid",
        population=1000,
        batch_size=10,
        total_batch_size=500,
        local_epochs=1.0,
        client_weights="uniform",
        client_lr=0.1,
        rounds=1500,
        **each_phase(step=1, eval_freq=10, save_freq=1000),
    )


def fedprox_synthetic() -> RunConfig:
    """FedProx on its generated clients: 10 of 30 a round, 20 epochs, nine of ten clients stop early.

    Li et al., "Federated Optimization in Heterogeneous Networks", 2020. --prox-mu 0 is FedAvg.
    """
    return _published("fedprox-synthetic").with_values(
        dataset="fedprox_synthetic_1",
        model="logistic",
        partition="natural",
        batch_size=10,
        total_batch_size=100,
        local_epochs=20.0,
        stragglers=0.9,
        algorithm="fedprox",
        prox_mu=1.0,
        client_lr=0.01,
        rounds=200,
    )


def diloco_char() -> RunConfig:
    """DiLoCo on Python's standard library: AdamW on 8 clients, H=50, Nesterov on the server, 40 rounds.

    After Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", 2023; the rate is that
    of this small model. --partition natural makes clients of the modules.
    """
    return RunConfig(name="diloco-char").with_values(
        dataset="text",
        model="gpt_char",
        partition="iid",
        batch_size=8,
        total_batch_size=64,
        start_lr=None,
        client_lr=0.003,
        client_optimizer="adamw",
        beta2=0.95,
        wd=0.1,
        clip_norm=1.0,
        lr_schedule="cosine",
        server_optimizer="nesterov",
        server_lr=0.7,
        server_momentum=0.9,
        rounds=40,
        **each_phase(step=50, eval_freq=10, save_freq=40),
    )
