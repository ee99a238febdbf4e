"""Image files damaged at random are read or refused with an InputError that names the file, and never anything else."""

import functools
import io
import zlib

import numpy as np
import pytest
from fuzzing import damaged, run_cases

from eidetic_kernels.errors import InputError
from eidetic_training.data.encoded import decode_file

Image = pytest.importorskip("PIL.Image")

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow warns of damage that it can live with


@functools.cache
def good_files():
    """Small files of every format, and of what each format can hold."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (12, 9, 3), dtype=np.uint8))
    clear = Image.fromarray(rng.integers(0, 256, (12, 9, 4), dtype=np.uint8))
    palette = colours.quantize(16)
    deep = Image.fromarray(rng.integers(0, 65536, (12, 9)).astype(np.uint16))
    real = Image.fromarray(rng.random((12, 9)).astype(np.float32))
    whole = Image.fromarray(rng.integers(-9, 9, (12, 9)).astype(np.int32))
    cmyk = colours.convert("CMYK")
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [colours.rotate(90), colours.rotate(180)]}

    def file(picture, form, **options):
        stream = io.BytesIO()
        picture.save(stream, form, **options)
        return stream.getvalue()

    return (
        *(file(colours, form, exif=exif) for form in ("PNG", "JPEG", "WEBP", "TIFF")),
        *(file(colours, form, **frames) for form in ("PNG", "GIF", "WEBP", "TIFF")),
        *(file(clear, form) for form in ("PNG", "WEBP", "TIFF", "BMP")),
        *(file(palette, form, transparency=3) for form in ("PNG", "GIF")),
        *(file(colours.convert("L"), form) for form in ("PNG", "JPEG", "GIF", "BMP")),
        *(file(colours.convert("1"), form) for form in ("PNG", "BMP", "TIFF")),
        *(file(picture, "TIFF") for picture in (deep, real, whole, cmyk, colours.convert("LAB"))),
        *(file(colours, "TIFF", compression=kind) for kind in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
        file(deep, "PNG"),
        file(clear.convert("LA"), "PNG"),
        file(colours, "PNG", transparency=(1, 2, 3)),
        file(cmyk, "JPEG"),
        file(colours, "JPEG", progressive=True),
        file(colours, "WEBP", lossless=True),
        file(palette, "BMP"),
    )


def with_checksums(data):
    """A PNG's chunks with the checksums of what they hold, so that damage reaches what reads them."""
    data, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(data)


def test_good_files_are_read(tmp_path):
    for number, data in enumerate(good_files()):
        (tmp_path / "picture").write_bytes(data)
        try:
            assert decode_file(tmp_path / "picture", False, 8).shape == (3, 8, 8), number
        except InputError as error:  # whole numbers of 32 bits
            assert "which of them is white is not known" in str(error), number


def test_damaged_files_are_read_or_refused(tmp_path):
    path = tmp_path / "picture"

    def case(rng):
        data = damaged(rng.choice(good_files()), good_files(), rng, rng.choice((None, None, (0, 60))))
        if data.startswith(b"\x89PNG") and rng.random() < 0.8:
            data = with_checksums(data)
        path.write_bytes(data)
        grey, resolution = rng.random() < 0.5, rng.choice((1, 8, 28))
        try:
            pixels = decode_file(path, grey, resolution)
        except InputError as error:
            assert str(path) in str(error), error
            raise
        assert pixels.dtype == np.uint8 and pixels.shape == (1 if grey else 3, resolution, resolution)
        return "read"

    ends = run_cases("images", 1000, case)
    assert ends["read"] and ends["InputError"] or sum(ends.values()) < 100
