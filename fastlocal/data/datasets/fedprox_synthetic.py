"""The generated clients of FedProx (Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020), drawn from the seed.

30 clients, whose numbers of samples are 50 + floor(lognormal(4, 2)). Client k has a linear model of its own, and labels

    y = argmax(W_k x + b_k)        W_k, b_k ~ N(u_k, 1)        u_k ~ N(0, a)

of inputs x [60] ~ N(v_k, S), where S is diagonal with S_jj = j^-1.2, v_k ~ N(B_k, 1) and B_k ~ N(0, b). In
fedprox_synthetic_1, a = b = 1, and so on; these are standard deviations, as in the authors' code. In
fedprox_synthetic_iid all clients share W, b and v = 0. A tenth of each client's samples is for tests.
"""

from __future__ import annotations

import numpy as np
import torch

from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.partition.natural import natural
from fastlocal.data.types import DataSet, Split

CLIENTS, FEATURES, CLASSES = 30, 60, 10
LEAST = 50
LOGNORMAL = (4.0, 2.0)
"""Mean and standard deviation of the logarithm of the sizes above LEAST."""
TEST_SHARE = 10
"""One in this many samples of a client, from the last on, is for tests."""
SPREADS = {"iid": None, "0": 0.0, "0.5": 0.5, "1": 1.0}
"""a and b of each data set."""


def read(request: DatasetSpec) -> DataSet:
    """Draw features [n, 1, 1, 60] of 30 natural clients in 10 classes."""
    spread = SPREADS[request.name.rpartition("_")[2]]
    draws = np.random.Generator(np.random.Philox(request.seed))
    sizes = LEAST + np.floor(draws.lognormal(*LOGNORMAL, CLIENTS)).astype(np.int64)
    scale = np.arange(1, FEATURES + 1) ** -0.6
    shared = draws.normal(size=(CLASSES, FEATURES + 1))
    parts: dict[bool, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {False: [], True: []}  # type: ignore[type-arg]
    for client, size in enumerate(sizes):
        model, centre = shared, np.zeros(FEATURES)
        if spread is not None:
            model = draws.normal(draws.normal(0, spread), 1, size=shared.shape)
            centre = draws.normal(draws.normal(0, spread), 1, size=FEATURES)
        inputs = centre + scale * draws.normal(size=(size, FEATURES))
        labels = (inputs @ model[:, :FEATURES].T + model[:, FEATURES]).argmax(axis=1)
        trained = size - size // TEST_SHARE
        for tests, place in ((False, slice(trained)), (True, slice(trained, None))):
            owners = np.full(len(labels[place]), client)
            parts[tests].append((inputs[place], labels[place], owners))
    splits = {}
    for tests, found in parts.items():
        inputs, labels = (np.concatenate([part[column] for part in found]) for column in (0, 1))
        features = torch.from_numpy(inputs.astype(np.float32)).reshape(-1, 1, 1, FEATURES)
        splits[tests] = Split(features, torch.from_numpy(labels))
    clients = natural(np.concatenate([part[2] for part in parts[False]]), labels=splits[False].targets.numpy())
    return DataSet(request.name, splits[False], splits[True], classes=CLASSES, mean=None, std=None, natural=clients)
