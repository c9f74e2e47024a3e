"""Reader of images and labels in FFCV's .beton format, version 2, without FFCV.

The file (docs.ffcv.io; github.com/libffcv/ffcv, ffcv/types.py) is little-endian: a header, one descriptor per field,
one metadata record per sample, then pages with the samples' bytes, and a table of their places. FFCV's writer stores
the table's place at the very end, which marks a finished file.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from fastlocal.common.errors import UsageError
from fastlocal.data.types import BadSample, Image

VERSION = 2
JPEG, RAW = 0, 1

_HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page_bytes", "<u4"), ("samples", "<u8"), ("table", "<u8")], align=True
)
_FIELD = np.dtype([("type", "<u1"), ("name", "S16"), ("arguments", "V1024")])
_TABLE = np.dtype([("sample", "<u8"), ("place", "<u8"), ("bytes", "<u8")])
_IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("place", "<u8")])
_EXTENT = np.dtype([("place", "<u8"), ("bytes", "<u8")])
_FLOAT_FIELD, _INT_FIELD, _IMAGE_FIELD = 0, 1, 2
_RECORDS = {
    _FLOAT_FIELD: np.dtype("<f8"),
    _INT_FIELD: np.dtype("<i8"),
    _IMAGE_FIELD: _IMAGE,
    3: _EXTENT,  # bytes
    4: np.dtype("<u8"),  # array
    5: _EXTENT,  # JSON
    6: np.dtype("<u8"),  # tensor
}
_MAX_FIELDS = 256

Array = np.ndarray[Any, np.dtype[Any]]


class BetonImages:
    """RGB images of a .beton file; another process opens the file anew.

    Attributes:
        path: The file.
        image_field: Name of its first image field.
        label_field: Name of its first integer field.
        labels: Labels of all samples.

    Raises:
        UsageError: The file is truncated, unfinished, or not a .beton file; the message names `flag`.
    """

    channels = 3

    def __init__(self, path: Path, flag: str = "--train-pth") -> None:
        self.path = path
        origin = f"{flag} {path}"
        try:
            self._open(origin)
        except OSError as error:
            raise UsageError(f"{origin}: cannot be read ({error.strerror}); expected is a .beton file") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return BetonImages, (self.path,)

    def _open(self, origin: str) -> None:
        size = self.path.stat().st_size
        header = np.fromfile(self.path, _HEADER, count=1)
        if not len(header) or header["version"][0] != VERSION or not 0 < header["fields"][0] <= _MAX_FIELDS:
            raise UsageError(f"{origin}: is no .beton file of version {VERSION}; `fastlocal prepare` makes one")
        n_fields, n_samples, table = (int(header[name][0]) for name in ("fields", "samples", "table"))
        if table == 0 or header["page_bytes"][0] == 0:
            raise UsageError(f"{origin}: was never finished; prepare it again")
        fields = np.fromfile(self.path, _FIELD, count=n_fields, offset=_HEADER.itemsize)
        custom = [int(kind) for kind in fields["type"] if int(kind) not in _RECORDS]
        if custom:
            raise UsageError(f"{origin}: has a field of the unknown type {custom[0]}; give one of FFCV's own fields")
        record = np.dtype([(f"f{i}", _RECORDS[int(kind)]) for i, kind in enumerate(fields["type"])], align=True)
        start = _HEADER.itemsize + fields.nbytes
        whole = size >= table >= start + n_samples * record.itemsize and (size - table) % _TABLE.itemsize == 0
        if len(fields) < n_fields or not whole or (size - table) // _TABLE.itemsize < n_samples or not n_samples:
            raise UsageError(f"{origin}: is cut short, or damaged in its first bytes; copy or prepare it again")
        image = self._first(origin, fields, _IMAGE_FIELD, "image")
        label = self._first(origin, fields, _INT_FIELD, "integer label")
        records = np.fromfile(self.path, record, count=n_samples, offset=start)
        self.image_field, self.label_field = (fields["name"][i].decode("ascii", "replace") for i in (image, label))
        self.labels: Array = records[f"f{label}"].copy()
        self._records: Array = records[f"f{image}"].copy()
        self._table, self._page_bytes = table, int(header["page_bytes"][0])
        if int(self._records["place"].max()) >= table or not self._records["height"].all():
            raise UsageError(f"{origin}: its records point beyond its pages; copy or prepare it again")

    @staticmethod
    def _first(origin: str, fields: Array, kind: int, what: str) -> int:
        found = np.flatnonzero(fields["type"] == kind)
        if not len(found):
            raise UsageError(f"{origin}: has no {what} field; FFCV's RGBImageField and IntField are expected")
        return int(found[0])

    @functools.cached_property
    def _content(self) -> np.memmap[Any, np.dtype[np.uint8]]:
        return np.memmap(self.path, np.uint8, mode="r")

    @functools.cached_property
    def _extents(self) -> tuple[Array, Array]:
        """Places and sizes of all data in the pages, sorted by place."""
        table = np.fromfile(self.path, _TABLE, offset=self._table)
        order = np.argsort(table["place"])
        return table["place"][order], table["bytes"][order]

    def __len__(self) -> int:
        return len(self._records)

    @property
    def heights(self) -> Array:
        """Heights of all images in pixels."""
        heights: Array = self._records["height"]
        return heights

    @property
    def widths(self) -> Array:
        """Widths of all images in pixels."""
        widths: Array = self._records["width"]
        return widths

    @property
    def pages(self) -> Array:
        """int64 [n], page of each image."""
        return self._records["place"].astype(np.int64) // self._page_bytes

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) from the metadata."""
        record = self._records[index]
        return int(record["height"]), int(record["width"])

    def read(self, index: int) -> Image:
        """Decode an image, [height, width, 3]; raises BadSample."""
        height, width = self.size(index)
        content = self._bytes(index)
        if self._records[index]["mode"] == RAW:
            if len(content) != height * width * 3:
                raise BadSample(self._name(index), f"{len(content)} bytes for {width}x{height} pixels")
            return np.array(content).reshape(height, width, 3)
        try:
            with Pillow.open(io.BytesIO(content.tobytes())) as image:
                decoded = np.array(image.convert("RGB"), dtype=np.uint8)
        except UnidentifiedImageError:
            raise BadSample(self._name(index), "it is no image that Pillow knows") from None
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
            raise BadSample(self._name(index), " ".join(str(error).split())) from None
        if decoded.shape != (height, width, 3):
            raise BadSample(self._name(index), f"it is {decoded.shape[1]}x{decoded.shape[0]}, not {width}x{height}")
        return decoded

    def read_encoded(self, index: int) -> bytes | None:
        """Return the JPEG of an image, or None if it is stored raw."""
        return self._bytes(index).tobytes() if self._records[index]["mode"] == JPEG else None

    def _bytes(self, index: int) -> Array:
        places, sizes = self._extents
        place = int(self._records[index]["place"])
        at = int(np.searchsorted(places, place))
        if at == len(places) or places[at] != place or place + int(sizes[at]) > self._table:
            raise BadSample(self._name(index), "the file's table does not list it")
        return self._content[place : place + int(sizes[at])]

    def _name(self, index: int) -> str:
        return f"sample {index} of {self.path}"
