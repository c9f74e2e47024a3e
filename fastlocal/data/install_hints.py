"""Installation hints for optional readers of data."""

from __future__ import annotations

FFCV = (
    "install it with pip install 'fastlocal[ffcv]', which on Debian needs "
    "apt-get install g++ python3-dev pkg-config libopencv-dev libturbojpeg0-dev"
)
DALI = "install it with pip install 'fastlocal[dali]'"
PYARROW = "install it with pip install 'fastlocal[pyarrow]'"
H5PY = "install it with pip install 'fastlocal[h5py]'"
