"""One encoded image (PNG, JPEG, WebP, BMP, GIF, TIFF) as uint8 pixels, whatever it holds and however it is damaged.

What an image becomes:

- Grey of 16 bits is scaled to 8, and so is grey of floating point numbers in [0, 1]. Other ranges are refused, as are
  whole numbers of 32 bits: nothing says which number is white.
- An EXIF orientation is applied.
- Transparent pixels are shown on white, as viewers and web pages show them. What a file stores under a transparent
  pixel is arbitrary, so the colours alone would not be what was seen.
- CMYK, YCbCr and palettes become RGB.
- Of several frames or pages, the first is taken.

An image is refused before it is decoded when its pixels would take too much memory (``MAX_PIXELS``), or when it is so
thin that its central square would say nothing (``MAX_ASPECT``): a file of 2 kB can hold an image of a million rows.
"""

from __future__ import annotations

import contextlib
import io
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eidetic_kernels.errors import InputError

from ._extras import need

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 2**26  # 67,108,864. Decoding so many takes up to 1 GiB.
MAX_ASPECT = 100  # longer side : shorter side, where the central square is cut out
MAX_BYTES = 2**30  # of one encoded image

_MODES = {1: "L", 3: "RGB"}
_GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")
_BITS, _COLOURS_MEAN, _WHITE_IS_ZERO = 258, 262, 0  # TIFF: BitsPerSample, PhotometricInterpretation
_ORIENTATION = 0x0112
_HAVE_ORIENTATION = frozenset(("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"))
_PNG_DEPTH = 24  # the byte that holds a PNG's bits per number
# Larger images are decoded two at a time, so that memory does not grow with the number of threads.
_LARGE_PIXELS = 2**24
_LARGE = threading.BoundedSemaphore(2)


def decode(data: bytes, channels: int, resolution: int | None) -> np.ndarray:
    """An encoded image as uint8 [channels, H, W], where ``channels`` is 1 (grey) or 3 (RGB).

    Args:
        resolution: None keeps the size; otherwise the shorter side is resized to so many pixels (bilinear, antialiased)
            and the central square cut out.

    Raises InputError, which says what is wrong with the image, and leaves it to the caller to name the image.
    """
    try:
        with _open(data) as picture:
            width, height = picture.size
            _check_size(width, height, resolution)
            large = width * height > _LARGE_PIXELS
            with _LARGE if large else contextlib.nullcontext():
                return _pixels(picture, data, _MODES[channels], resolution)
    except InputError:
        raise
    except Exception as error:  # what Pillow raises for a damaged image differs by format, damage and version
        raise InputError(f"it is damaged: {_first_line(error).rstrip('.')}.") from error


def decode_file(path: str | Path, grey: bool, resolution: int) -> np.ndarray:
    """An image file as uint8 [1 or 3, resolution, resolution], resized and cut as a data set's images are.

    Raises InputError, which names the file, when it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        return decode(data, 1 if grey else 3, resolution)
    except InputError as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise InputError(f"{path} cannot be read as an image: {error}.") from error


def is_grey(data: bytes) -> bool | None:
    """Whether an encoded image has no colours, by its header; None if it cannot be opened."""
    try:
        with _open(data) as picture:
            return picture.mode in _GREY
    except Exception:  # decoding finds it again, and says what it is
        return None


def resized(width: int, height: int, covering: tuple[int, int]) -> tuple[int, int]:
    """(width, height) scaled until both sides cover ``covering`` (width, height).

    Raises InputError for a thin image, and for a scaled size of more than ``MAX_PIXELS`` pixels.
    """
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(
            f"it is {_by(width, height)} pixels, expected sides that differ by a factor of at most {MAX_ASPECT}: "
            "cutting out the centre would lose almost all of it. Cut it into pieces, or leave it out."
        )
    scale = max(covering[0] / width, covering[1] / height)
    size = max(covering[0], round(width * scale)), max(covering[1], round(height * scale))
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(
            f"it is {_by(width, height)} pixels and would be resized to {_by(*size)}, expected at most {MAX_PIXELS:,} "
            "pixels. Ask for a lower resolution."
        )
    return size


def _open(data: bytes) -> Image:
    """The image, its header read and its pixels not. Raises InputError for another format or too many bytes."""
    pillow = need("PIL.Image", "decoding images")
    if len(data) > MAX_BYTES:
        raise InputError(f"it has {len(data):,} bytes or more, expected at most {MAX_BYTES:,}. Make it smaller.")
    try:
        return pillow.open(io.BytesIO(data), formats=FORMATS)
    except pillow.UnidentifiedImageError as error:
        raise InputError(f"it is none of {', '.join(FORMATS)}, or its header is damaged. Convert it to PNG.") from error
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise InputError(
            f"it has more pixels than can be decoded, expected at most {MAX_PIXELS:,}: {_first_line(error)} "
            "Make it smaller."
        ) from error


def _check_size(width: int, height: int, resolution: int | None) -> None:
    """Raise InputError for a size whose pixels, decoded or resized, take too much memory."""
    if min(width, height) < 1:
        raise InputError(f"it is {_by(width, height)} pixels, expected at least 1x1.")
    if width * height > MAX_PIXELS:
        raise InputError(
            f"it is {_by(width, height)} pixels, {width * height:,} in all, expected at most {MAX_PIXELS:,}. "
            "Make it smaller."
        )
    if resolution is not None:
        resized(width, height, (resolution, resolution))


def _pixels(picture: Image, data: bytes, mode: str, resolution: int | None) -> np.ndarray:
    picture.load()
    turned = _upright(picture)
    if picture.mode.startswith(("I", "F")):
        turned = _grey_of_8_bits(turned, picture)
    elif _has_transparency(picture):
        turned = _on_white(turned, picture, data)

    if turned.mode != mode:
        turned = _converted(turned, mode)
    if resolution is not None and turned.size != (resolution, resolution):
        turned = _fit(turned, resolution)
    pixels = np.asarray(turned, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _upright(picture: Image) -> Image:
    """Turned and mirrored as the EXIF orientation says; the picture itself where it says nothing."""
    if picture.format != "TIFF" and _HAVE_ORIENTATION.isdisjoint(picture.info):
        return picture  # getexif takes a tenth of the time of a small image
    turns = need("PIL.Image", "decoding images").Transpose
    try:
        orientation = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF that cannot be read: many photographs have it, and viewers show them as they are stored
        return picture

    turn = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def _grey_of_8_bits(turned: Image, picture: Image) -> Image:
    """Grey of 16 bits or of floating point numbers, scaled to 8 bits. Raises InputError where white is not known."""
    values = np.asarray(turned)
    tags = getattr(picture, "tag_v2", {})  # TIFF
    png = picture.format == "PNG"

    if picture.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not (0 <= low and high <= 1):  # not a number is refused as well
            raise InputError(
                f"its numbers are floating point in {low:g}..{high:g}, expected 0..1. Scale them, or save 8 bits."
            )
        grey = np.rint(values * np.float32(255)).astype(np.uint8)
    elif picture.mode.startswith("I;16") or png:  # Pillow before 11 opens a PNG of 16 bits as "I"
        bits = 16 if png else tags.get(_BITS, (16,))[0]
        white = 2**bits - 1
        grey = ((values.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)
    else:
        raise InputError(
            f"its numbers are whole, of 32 bits or signed, in {int(values.min())}..{int(values.max())}, and which of "
            "them is white is not known. Save it with 8 or 16 unsigned bits."
        )

    if tags.get(_COLOURS_MEAN) == _WHITE_IS_ZERO:
        grey = 255 - grey
    transparent = picture.info.get("transparency")
    if png and isinstance(transparent, int):
        grey[values == transparent] = 255
    return need("PIL.Image", "decoding images").fromarray(grey)


def _has_transparency(picture: Image) -> bool:
    if picture.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        return True
    return "transparency" in picture.info and picture.mode in ("1", "L", "P", "RGB")


def _on_white(turned: Image, picture: Image, data: bytes) -> Image:
    """The picture on a white background, as RGB."""
    pillow = need("PIL.Image", "decoding images")
    transparent = picture.info.get("transparency")
    if transparent is not None and picture.format == "PNG" and picture.mode in ("L", "RGB"):
        turned.info["transparency"] = _transparent_of_8_bits(transparent, data[_PNG_DEPTH])

    if turned.mode in ("RGBa", "La"):
        turned = turned.convert(turned.mode.upper())
    if turned.mode != "RGBA":
        turned = turned.convert("RGBA")
    white = pillow.new("RGBA", turned.size, "white")
    return pillow.alpha_composite(white, turned).convert("RGB")


def _transparent_of_8_bits(transparent: int | tuple[int, ...], depth: int) -> int | tuple[int, ...]:
    """A PNG's transparent colour on the scale of 8 bits, to which Pillow brings the pixels and not this colour."""
    if isinstance(transparent, int):
        return transparent * 255 // (2**depth - 1)
    return tuple(value >> 8 if depth == 16 else value for value in transparent)


def _converted(picture: Image, mode: str) -> Image:
    try:
        return picture.convert(mode)
    except ValueError as error:
        raise InputError(f"its colours are {picture.mode}, which cannot be converted. Save it as RGB.") from error


def _fit(picture: Image, resolution: int) -> Image:
    """Resize the shorter side to ``resolution`` (bilinear, antialiased), then cut out the central square."""
    width, height = picture.size
    size = resized(width, height, (resolution, resolution))
    if picture.size != size:
        bilinear = need("PIL.Image", "decoding images").Resampling.BILINEAR
        picture = picture.resize(size, resample=bilinear)
    left, top = (size[0] - resolution) // 2, (size[1] - resolution) // 2
    return picture.crop((left, top, left + resolution, top + resolution))


def _by(width: int, height: int) -> str:
    return f"{width:,}x{height:,}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
