"""Packaging of fastlocal: the folder kernels/ is installed as the package fastlocal.kernels.

A top-level package named `kernels` would shadow another well-known one. In the source tree the link fastlocal/kernels
gives the same name to the same folder, for Python started in the tree and for type checkers.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def version() -> str:
    """Read `__version__` from its file without importing it: a build has no torch."""
    text = (ROOT / "fastlocal" / "common" / "version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError("fastlocal/common/version.py holds no line __version__ = '...'")
    return found[1]


def packages() -> list[str]:
    own = find_packages(str(ROOT), include=["fastlocal", "fastlocal.*"], exclude=["*.kernels", "*.kernels.*"])
    kernels = [f"fastlocal.kernels.{name}" for name in find_packages(str(ROOT / "kernels"))]
    return [*own, "fastlocal.kernels", *kernels]


def readme() -> str:
    path = ROOT / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


# Built from source against Debian's libopencv-dev and libturbojpeg0-dev; it names its Python dependencies itself.
FFCV = ["ffcv>=1.0.2"]
DALI = ["nvidia-dali-cuda130"]
WANDB = ["wandb>=0.30"]
TENSORBOARD = ["tensorboard"]
SAFETENSORS = ["safetensors>=0.4"]
PYARROW = ["pyarrow>=15"]
H5PY = ["h5py>=3.10"]
HTA = ["HolisticTraceAnalysis>=0.5"]  # reads traces in one test; brings pandas and jupyterlab
BENCH = ["matplotlib>=3.8"]
REPORT = ["matplotlib>=3.8"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10"]
DEV = [
    *WANDB,
    *TENSORBOARD,
    *SAFETENSORS,
    *PYARROW,
    *H5PY,
    *BENCH,
    *REPORT,
    *DOCS,
    "coverage>=7.10",
    "hypothesis>=6.100",
    "mypy>=1.15",
    "playwright>=1.50",
    "pytest>=8",
    "pytest-xdist>=3.5",
    "ruff>=0.6",
    "scipy>=1.11",  # what the quantiles of Student's t are compared with
    "setuptools>=77",
]
TEST = [*DEV, *FFCV, *DALI, *HTA]

setup(
    name="fastlocal",
    version=version(),
    description="Trains many Local SGD clients at once, as one program over stacked parameters",
    long_description=readme(),
    long_description_content_type="text/markdown",
    author="The fastlocal authors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=packages(),
    package_dir={"fastlocal": "fastlocal", "fastlocal.kernels": "kernels"},
    package_data={
        "fastlocal.data.datasets": ["*.npz", "*.txt"],
        "fastlocal.kernels.native": ["*.cpp", "*.h"],
        "fastlocal.reports": ["*.css", "*.js"],
    },
    install_requires=[
        "numpy>=1.26",
        "pillow",
        "rich>=13",
        "torch>=2.11",
        "torchvision",
        "tyro>=1.0",
        # torch's ordinary Linux builds name the very version they want; its CPU-only builds name none.
        'triton; platform_system == "Linux" and (platform_machine == "x86_64" or platform_machine == "aarch64")',
    ],
    extras_require={
        "ffcv": FFCV,
        "dali": DALI,
        "wandb": WANDB,
        "tensorboard": TENSORBOARD,
        "safetensors": SAFETENSORS,
        "pyarrow": PYARROW,
        "h5py": H5PY,
        "bench": BENCH,
        "report": REPORT,
        "docs": DOCS,
        "dev": DEV,
        "test": TEST,
        "all": [*FFCV, *DALI, *WANDB, *TENSORBOARD, *SAFETENSORS, *PYARROW, *H5PY, *BENCH, *REPORT],
    },
    entry_points={"console_scripts": ["fastlocal = fastlocal.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
