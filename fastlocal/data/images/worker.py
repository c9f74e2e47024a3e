"""Decoding process: image files in, pixels out. Imports only Pillow, to start fast.

The first JSON line on standard input holds the settings {"channels", "width", "height", "image_size"}; every further
line is a list of paths. The reply to a list on standard output is a byte and a length (REPLY), and then the pixels,
uint8 [images, channels, height, width], or a JSON object about the file that failed. The process ends with its input,
and so with its parent.
"""

from __future__ import annotations

import json
import struct
import sys

from PIL import Image

REPLY = struct.Struct("=BQ")
PIXELS, STOPPED = 0, 1

GREY_MODES = ("1", "L", "LA", "La")
_DEEP_MODES = ("I", "F")  # and I;16 with its variants: more than 8 bits a value


class Unfit(Exception):
    """A file that cannot be decoded as required; `kind` is corrupt, colour or size."""

    def __init__(self, path: str, kind: str, detail: str = "") -> None:
        super().__init__(path, kind, detail)
        self.path, self.kind, self.detail = path, kind, detail


def centre_square(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to `side` (bilinear, antialiased) and crop the centre side x side, as torchvision."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    scaled = side, int(side * long / short)
    width, height = scaled if width <= height else scaled[::-1]
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def refuse_deep(path: str, mode: str) -> None:
    """Raise Unfit for a Pillow mode of more than 8 bits per value, which decoders would reduce in different ways."""
    if mode in _DEEP_MODES or mode.startswith("I;"):
        raise Unfit(path, "corrupt", f"its mode {mode} has more than 8 bits a value")


def decode(path: str, channels: int, image_size: int | None) -> Image.Image:
    """Decode an image file in mode L (1 channel) or RGB (3); raises Unfit if it is corrupt, or coloured for L."""
    try:
        with Image.open(path) as image:
            refuse_deep(path, image.mode)
            if channels == 1 and image.mode not in GREY_MODES:
                raise Unfit(path, "colour")
            flat = image.convert("L" if channels == 1 else "RGB")
        return flat if image_size is None else centre_square(flat, image_size)
    except Unfit:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise Unfit(path, "corrupt", " ".join(str(error).split())) from None


def _decode_all(paths: list[str], channels: int, width: int, height: int, image_size: int | None) -> bytes:
    planes = []
    for path in paths:
        image = decode(path, channels, image_size)
        if image.size != (width, height):
            raise Unfit(path, "size", f"{image.width}x{image.height}")
        planes += [band.tobytes() for band in image.split()]
    return b"".join(planes)


def main() -> None:
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    first = requests.readline()
    if not first:  # the parent ended before it sent the settings
        return
    settings = json.loads(first)
    for line in requests:
        try:
            kind, content = PIXELS, _decode_all(json.loads(line), **settings)
        except Unfit as stop:
            kind, content = STOPPED, json.dumps({"path": stop.path, "kind": stop.kind, "detail": stop.detail}).encode()
        try:
            replies.write(REPLY.pack(kind, len(content)) + content)
            replies.flush()
        except BrokenPipeError:
            return


if __name__ == "__main__":
    main()
