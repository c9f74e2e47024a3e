"""HDF5 files of samples by client, as TensorFlow Federated distributes EMNIST and CIFAR-100."""

from __future__ import annotations

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.install_hints import H5PY
from fastlocal.data.tables.paths import split_files
from fastlocal.data.tables.samples import to_data_set
from fastlocal.data.types import DataSet


def read(request: DatasetSpec) -> DataSet:
    """Read examples/CLIENT/{pixels or image, label}; pixels that are grey levels become uint8 images.

    Raises:
        UsageError: h5py or a file is missing, or a file is malformed; the message names its flag.
    """
    files = split_files(request, (".h5", ".hdf5"))
    try:
        from fastlocal.data.tables.h5py_files import read_clients
    except ImportError:
        raise UsageError(f"--dataset {request.name} needs h5py; {H5PY}") from None
    train, test = (read_clients(origin, path, request.label_column) for origin, path in files)
    return to_data_set(request.name, train, test)
