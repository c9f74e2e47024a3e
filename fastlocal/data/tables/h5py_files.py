"""Samples by client in an HDF5 file, as TensorFlow Federated distributes them, by h5py."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from fastlocal.common.errors import UsageError, one_line

from .samples import Samples, to_inputs

INPUTS = ("pixels", "image", "x")
"""Names of the inputs in a client's group."""
LABELS = ("label", "y")
"""Names of the labels in a client's group."""


def read_clients(origin: str, path: Path, label_column: str | None) -> Samples:
    """Read examples/CLIENT/{pixels or image, label}, clients sorted by name.

    Args:
        origin: Flag and path, for messages.
        path: The file.
        label_column: Name of the labels; None: one of LABELS.

    Raises:
        UsageError: The file is no HDF5 or has other groups, or a client is without samples.
    """
    inputs, labels, clients = [], [], []
    try:
        with h5py.File(path, "r") as file:
            if "examples" not in file:
                raise UsageError(f"{origin}: has no group examples; examples/CLIENT/pixels and label are expected")
            examples = file["examples"]
            for client in sorted(examples):
                group = examples[client]
                names = [
                    next((name for name in known if name in group), None)
                    for known in (INPUTS, LABELS if label_column is None else (label_column,))
                ]
                if None in names:
                    raise UsageError(
                        f"{origin}: client {client!r} has {', '.join(group)}; pixels and label are expected"
                    )
                inputs.append(np.asarray(group[names[0]]))
                labels.append(np.asarray(group[names[1]]).reshape(-1))
                if not len(labels[-1]) or len(labels[-1]) != len(inputs[-1]):
                    counts = f"{len(inputs[-1])} inputs and {len(labels[-1])} labels"
                    raise UsageError(f"{origin}: client {client!r} has {counts}; leave clients without data out")
                clients.append(client)
    except UsageError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{origin}: cannot be read ({one_line(error, 150)})") from None
    if not clients:
        raise UsageError(f"{origin}: has no clients")
    shapes = {array.shape[1:] for array in inputs}
    if len(shapes) > 1 or any(array.dtype.kind not in "iuf" for array in inputs):
        raise UsageError(
            f"{origin}: inputs are of {len(shapes)} shapes or no numbers; numbers of one shape are expected"
        )
    owners = np.repeat(np.array(clients), [len(array) for array in labels])
    return Samples(origin, to_inputs(origin, np.concatenate(inputs), flat_images=True), np.concatenate(labels), owners)
