"""Partitions of training samples among clients; also `fastlocal.partition`. Numpy, no torch."""

from __future__ import annotations

from fastlocal.config.python_names import python_names

from .build import build
from .natural import natural as _natural
from .partition import Partition
from .procedures import (
    classes as _classes,
)
from .procedures import (
    dirichlet as _dirichlet,
)
from .procedures import (
    dirichlet_client as _dirichlet_client,
)
from .procedures import (
    iid as _iid,
)
from .procedures import (
    quantity as _quantity,
)
from .procedures import (
    shards as _shards,
)

iid = python_names()(_iid.iid)
dirichlet = python_names()(_dirichlet.dirichlet)
dirichlet_client = python_names()(_dirichlet_client.dirichlet_client)
shards = python_names()(_shards.shards)
classes = python_names()(_classes.classes)
quantity = python_names()(_quantity.quantity)
natural = python_names()(_natural)
load = python_names()(Partition.load)

__all__ = [
    "Partition",
    "build",
    "classes",
    "dirichlet",
    "dirichlet_client",
    "iid",
    "load",
    "natural",
    "quantity",
    "shards",
]
