"""Drawn partitions: who owns what, for any sizes, and what each procedure promises."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fastlocal
from fastlocal import partition
from fastlocal.common.errors import UsageError
from fastlocal.data.partition import procedures, published
from fastlocal.data.partition.build import build

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))


def owned_once(parts: partition.Partition, samples: int) -> np.ndarray[Any, Any]:
    """The owner of each sample, -1 of those that nobody owns, told by a plain loop."""
    owner = np.full(samples, -1)
    for client in range(parts.clients):
        for sample in parts.samples_of(client):
            assert owner[sample] == -1
            owner[sample] = client
    return owner


@settings(max_examples=40)
@given(
    name=st.sampled_from(procedures.NAMES),
    source=st.sampled_from((None, *published.NAMES)),
    samples=st.integers(1, 90),
    classes=st.integers(1, 12),
    clients=st.integers(1, 20),
    least=st.integers(1, 4),
    alpha=st.floats(0.02, 50),
    each=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_sample_has_one_owner_at_most_and_sizes_hold(
    name: str,
    source: str | None,
    samples: int,
    classes: int,
    clients: int,
    least: int,
    alpha: float,
    each: int,
    seed: int,
) -> None:
    labels = np.random.default_rng(seed).integers(0, classes, samples)
    try:
        function = procedures.get(name) if source is None else published.get(source, name)
    except UsageError:
        assume(False)
    known = inspect.signature(function).parameters
    given = {"alpha": alpha, "shards_per_client": each, "classes_per_client": each, "min_client_size": least}
    given = {key: value for key, value in given.items() if key in known}
    about = {"samples": samples, "labels": labels, "clients": clients, "seed": seed, "partition_as": source} | given
    try:
        parts = build(name, **about)
    except UsageError as refused:
        assert "--" in str(refused) or "clients" in str(refused)
        return
    owner = owned_once(parts, samples)
    assert parts.clients == clients and parts.sizes.min() >= given.get("min_client_size", 1)
    if source is None and name != "classes":
        assert (owner >= 0).all()
    again = build(name, **about)
    assert np.array_equal(parts.indices, again.indices) and np.array_equal(parts.offsets, again.offsets)


def test_sizes_of_each_procedure() -> None:
    iid = partition.iid(600, clients=7)
    assert set(iid.sizes.tolist()) == {85, 86}
    assert set(partition.dirichlet_client(LABELS, clients=7).sizes.tolist()) == {85, 86}
    sizes = partition.quantity(600, clients=50, alpha=0.2, min_client_size=3).sizes
    assert sizes.sum() == 600 and sizes.min() >= 3 and sizes.max() > 60


def test_alpha_sets_how_far_clients_are_apart() -> None:
    def largest_share(parts: partition.Partition) -> float:
        counts = [np.bincount(LABELS[parts.samples_of(client)], minlength=10) for client in range(parts.clients)]
        return float(np.mean([count.max() / count.sum() for count in counts]))

    for draw in (partition.dirichlet, partition.dirichlet_client):
        near, far = (largest_share(draw(LABELS, clients=10, alpha=alpha)) for alpha in (1000, 0.1))
        assert near < 0.2 and far > 0.5


def test_dirichlet_by_client_follows_its_priors() -> None:
    """Each client draws as from its own distribution, as long as no class is exhausted."""
    labels, seed = np.repeat(np.arange(4), 5000), 3
    parts = partition.dirichlet_client(labels, clients=1000, alpha=1.0, seed=seed)
    counts = np.array([np.bincount(labels[parts.samples_of(client)], minlength=4) for client in range(300)])
    generator = np.random.default_rng(seed)
    for label in range(4):
        generator.permutation(np.flatnonzero(labels == label))
    priors = generator.dirichlet(np.ones(4), size=1000)[:300]
    # of 20 draws each, within five standard deviations of the sum over clients of the squared scaled errors
    scaled = (counts - 20 * priors) ** 2 / (20 * priors * (1 - priors))
    assert abs(scaled.mean() - 1) < 0.2


def test_shards_are_runs_of_the_sorted_samples() -> None:
    parts = partition.shards(LABELS, clients=10, shards_per_client=2)
    place = np.empty(600, int)
    place[np.argsort(LABELS, kind="stable")] = np.arange(600)
    runs = [sorted(place[parts.samples_of(client)].tolist()) for client in range(10)]
    starts = sorted(run[at] for run in runs for at in range(0, 60, 30))
    assert starts == list(range(0, 600, 30))
    assert all(run[at : at + 30] == list(range(run[at], run[at] + 30)) for run in runs for at in (0, 30))


@pytest.mark.parametrize("each", [1, 3, 10])
def test_classes_of_each_client(each: int) -> None:
    parts = partition.classes(LABELS, clients=13, classes_per_client=each)
    held = [np.unique(LABELS[parts.samples_of(client)]) for client in range(13)]
    assert all(len(own) == each and client % 10 in own for client, own in enumerate(held))
    for label in range(10):
        shares = [
            int((LABELS[parts.samples_of(client)] == label).sum()) for client in range(13) if label in held[client]
        ]
        assert sum(shares) == 60 and max(shares) - min(shares) <= 1


def test_a_million_clients() -> None:
    for parts in (partition.iid(10**6, clients=10**6), partition.quantity(10**6, clients=5 * 10**5)):
        parts.check(10**6)
    assert parts.sizes.min() == 1


def test_labels_may_be_a_tensor_or_a_list_and_torch_stays_out() -> None:
    one = partition.dirichlet(torch.from_numpy(LABELS), clients=5)
    for labels in (LABELS, LABELS.tolist(), LABELS.astype(np.uint8)):
        other = partition.dirichlet(labels, clients=5)
        assert np.array_equal(one.indices, other.indices) and one.meta == other.meta
    assert fastlocal.partition is partition
    with pytest.raises(UsageError, match=r"^labels: are float64 of shape \(600,\); integers \[n\] are expected"):
        partition.dirichlet(LABELS / 2, clients=5)


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("dirichlet", {"alpha": 0.0}, "--alpha 0.0: must be a number above 0"),
        ("quantity", {"alpha": float("nan")}, "--alpha nan: must be a number above 0"),
        ("dirichlet-client", {"alpha": float("inf")}, "--alpha inf: must be a number above 0"),
        ("classes", {"classes_per_client": 11}, "--classes-per-client 11: must be from 1 to the 10 classes"),
        ("shards", {"shards_per_client": 0}, "--shards-per-client 0: must be at least 1"),
        ("shards", {"shards_per_client": 61}, "--shards-per-client 61: 600 samples make no 610 shards"),
        ("iid", {"clients": 601}, "601 clients with at least 1 samples each need 601, of 600"),
        ("iid", {"alpha": 0.5}, "--alpha 0.5: means nothing with --partition iid"),
        ("iid", {"clients": None}, "--partition iid: give the number of clients"),
        ("iid", {"min_client_size": 0}, "--min-client-size 0: must be at least 1"),
        ("dirichlet", {"alpha": 0.01, "min_client_size": 50}, "have fewer than --min-client-size 50 samples after"),
        (
            "dirichlet",
            {"labels": None},
            "--partition dirichlet: needs labels, and the targets of this data set are none",
        ),
        (
            "dirichlet",
            {"partition_as": "pfl"},
            "--partition-as pfl: has no procedure dirichlet; it has dirichlet-client",
        ),
        ("dirichlet", {"partition_as": "flwr"}, "--partition-as flwr: is unknown; did you mean 'flower'?"),
        ("shards", {"partition_as": "flower", "min_client_size": 2}, "--min-client-size 2: means nothing with"),
        ("natural", {}, "--partition natural: this data set has no clients"),
        ("dirichlett", {}, "--partition dirichlett: is unknown; did you mean 'dirichlet'?"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(name: str, given: dict[str, Any], says: str) -> None:
    about: dict[str, Any] = {"samples": 600, "labels": LABELS, "clients": 10, "seed": 0}
    with pytest.raises(UsageError) as refused:
        build(name, **about | given)
    assert says in str(refused.value) and "\n" not in str(refused.value)
