"""Encoded images of every kind that Pillow reads become the 8 bits that a viewer shows, or are refused."""

import io
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest

from eidetic_kernels.errors import InputError
from eidetic_training.data import encoded
from eidetic_training.data.encoded import decode, decode_file, is_grey

Image = pytest.importorskip("PIL.Image")
RAMP = np.linspace(0, 65535, 28 * 28).round().astype(np.uint16).reshape(28, 28)
RAMP_OF_8_BITS = np.round(RAMP / 257).astype(np.uint8)
COLOURS = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)


def encode(picture, form="PNG", **options):
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def chunk(kind, content):
    """A chunk of a PNG file."""
    import zlib

    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def png(width, height, depth, colours, rows, transparent=b""):
    """A PNG file of ``rows``, the bytes of each, in any of the format's depths."""
    import zlib

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colours, 0, 0, 0])
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    alpha = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + alpha + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


# ---- more than 8 bits


@pytest.mark.parametrize(("form", "kind"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_grey_of_16_bits_is_scaled_to_8(form, kind):
    data = encode(RAMP.astype(kind), form)
    assert is_grey(data)
    assert np.array_equal(decode(data, 1, None)[0], RAMP_OF_8_BITS)
    assert np.array_equal(decode(data, 3, None), np.stack([RAMP_OF_8_BITS] * 3))


def test_grey_of_16_bits_is_scaled_in_files_and_tables_alike(tmp_path):
    (tmp_path / "ramp.png").write_bytes(encode(RAMP))
    assert np.array_equal(decode_file(tmp_path / "ramp.png", grey=True, resolution=28)[0], RAMP_OF_8_BITS)


def test_whole_numbers_of_12_bits_are_scaled_by_what_they_can_hold():
    rows = [0x000, 0x7FF, 0x800, 0xFFF]  # one row of four numbers, packed
    packed = bytes(int(f"{rows[0]:03x}{rows[1]:03x}{rows[2]:03x}{rows[3]:03x}"[i : i + 2], 16) for i in range(0, 12, 2))
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(packed))]
    start = 8 + len(packed)
    entries = b"".join(
        tag.to_bytes(2, "little") + b"\4\0" + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, value in tags
    )
    data = b"II*\0" + start.to_bytes(4, "little") + packed + len(tags).to_bytes(2, "little") + entries + bytes(4)
    assert decode(data, 1, None).tolist() == [[[0, 127, 128, 255]]]


def test_floating_point_in_0_to_1_is_scaled_and_other_ranges_are_refused():
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    data = encode(ramp, "TIFF")
    assert is_grey(data)
    assert decode(data, 1, None).ravel().tolist() == list(range(256))
    for wrong, found in ((ramp * 255, "0..255"), (ramp - 0.5, "-0.5..0.5"), (np.full_like(ramp, np.nan), "nan..nan")):
        with pytest.raises(InputError, match=f"floating point in {found}, expected 0..1"):
            decode(encode(wrong, "TIFF"), 1, None)


def test_whole_numbers_of_32_bits_are_refused_with_what_was_found():
    numbers = np.arange(16, dtype=np.int32).reshape(4, 4) * 1000 - 5
    with pytest.raises(InputError, match=r"whole, of 32 bits or signed, in -5\.\.14995.*8 or 16 unsigned bits"):
        decode(encode(numbers, "TIFF"), 1, None)


def test_grey_whose_zero_is_white_is_inverted():
    data = bytearray(encode(RAMP, "TIFF"))
    at = data.index((262).to_bytes(2, "little"))
    data[at + 8] = 0  # PhotometricInterpretation: WhiteIsZero
    assert np.array_equal(decode(bytes(data), 1, None)[0], 255 - RAMP_OF_8_BITS)


# ---- orientation


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_in_exif_is_applied(form, orientation):
    shown = np.zeros((16, 24, 3), np.uint8)
    shown[:8, :8], shown[8:, :8], shown[:8, 16:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    # How a camera stores what is shown: the inverse of what EXIF's orientation asks for.
    stored = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.transpose(1, 0, 2),
        6: np.rot90(shown),
        7: shown[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(shown, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    pixels = decode(encode(np.ascontiguousarray(stored), form, exif=exif, **options), 3, None)
    assert pixels.shape == (3, 16, 24)
    assert np.abs(pixels.transpose(1, 2, 0).astype(int) - shown).max() <= (60 if form == "JPEG" else 0)


@pytest.mark.parametrize("broken", [b"II*\0\xff\xff\xff\xff broken", b"no header", b""])
def test_exif_that_cannot_be_read_changes_nothing(broken):
    data = encode(COLOURS, "PNG", exif=b"Exif\0\0" + broken)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(decode(data, 3, None), COLOURS.transpose(2, 0, 1))


# ---- transparency


def test_transparent_pixels_are_shown_on_white():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0], rgba[0, 1], rgba[1, 0] = (255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128)
    for form in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True, "exact": True} if form == "WEBP" else {}
        pixels = decode(encode(rgba, form, **options), 3, None).transpose(1, 2, 0)
        assert pixels.tolist() == [[[255, 0, 0], [255, 255, 255]], [[127] * 3, [255] * 3]], form
    assert decode(encode(rgba), 1, None).tolist() == [[[76, 255], [127, 255]]]


def test_transparent_grey_stays_grey():
    data = encode(np.array([[[7, 255], [7, 0]]], np.uint8))
    assert is_grey(data) and decode(data, 1, None).tolist() == [[[7, 255]]]


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_palettes_transparent_colour_is_white(form):
    picture = Image.new("P", (3, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.putdata([0, 1, 2])
    pixels = decode(encode(picture, form, transparency=1), 3, None)[:, 0].T
    assert pixels.tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 255]]


@pytest.mark.parametrize(
    ("depth", "colours", "row", "transparent", "shown"),
    [
        (8, 0, bytes([10, 20]), b"\0\x0a", [[255] * 3, [20] * 3]),
        (4, 0, bytes([0x5C]), b"\0\x05", [[255] * 3, [204] * 3]),
        (2, 0, bytes([0b01100000]), b"\0\x01", [[255] * 3, [170] * 3]),
        (1, 0, bytes([0b01000000]), b"\0\0", [[255] * 3, [255] * 3]),
        (16, 0, bytes([1, 0, 128, 0]), b"\1\0", [[255] * 3, [128] * 3]),
        (8, 2, bytes([1, 2, 3, 4, 5, 6]), b"\0\1\0\2\0\3", [[255] * 3, [4, 5, 6]]),
        (16, 2, bytes([1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0]), b"\1\0\2\0\3\0", [[255] * 3, [4, 5, 6]]),
    ],
)
def test_a_png_may_name_one_colour_transparent_at_any_depth(depth, colours, row, transparent, shown):
    data = png(2, 1, depth, colours, [row], transparent)
    assert decode(data, 3, None)[:, 0].T.tolist() == shown


# ---- colours


def test_other_colours_become_rgb_and_grey():
    cmyk = Image.fromarray(COLOURS).convert("CMYK")
    assert np.array_equal(decode(encode(cmyk, "TIFF"), 3, None), COLOURS.transpose(2, 0, 1))
    even = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red: an inverted reading would be cyan
    assert np.abs(decode(encode(even, "JPEG", quality=100), 3, None)[:, 0, 0].astype(int) - (255, 0, 0)).max() < 5
    assert decode(encode(even, "TIFF"), 1, None)[0, 0, 0] == 76
    assert decode(encode(Image.fromarray(np.eye(3) > 0)), 3, None)[0].tolist() == (np.eye(3) * 255).tolist()


def test_colours_that_pillow_cannot_convert_are_refused(monkeypatch):
    def convert(picture, mode):
        raise ValueError("conversion from LAB to RGB not supported")

    data = encode(Image.new("LAB", (4, 4)), "TIFF")
    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(InputError, match="its colours are LAB.*Save it as RGB"):
        decode(data, 3, None)


def test_of_several_frames_the_first_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime")]
    for form in ("GIF", "PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if form == "WEBP" else {}
        data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert decode(data, 3, None)[:, 0, 0].tolist() == [255, 0, 0], form


# ---- what is refused


def test_other_formats_are_refused():
    for form in ("EPS", "PPM", "ICO", "TGA", "PCX", "PDF"):
        with pytest.raises(InputError, match="none of PNG, JPEG, WEBP, BMP, GIF, TIFF"):
            decode(encode(Image.new("RGB", (16, 16)), form), 3, None)
    for form in encoded.FORMATS:
        assert decode(encode(Image.new("RGB", (16, 16)), form), 3, None).shape == (3, 16, 16)


@pytest.mark.parametrize("form", encoded.FORMATS)
def test_cut_images_are_refused(form):
    data = encode(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8), form)
    for length in (0, 1, 20, len(data) // 3, len(data) // 2):
        with pytest.raises(InputError):
            decode(data[:length], 3, None)


def test_sizes_are_refused_before_pixels_are_decoded(monkeypatch):
    monkeypatch.setattr(encoded, "_pixels", None)  # decoding would fail
    thin = encode(Image.new("L", (1, 200_000)))
    with pytest.raises(InputError, match="1x200,000 pixels, expected sides that differ by a factor of at most 100"):
        decode(thin, 1, 28)
    with pytest.raises(InputError, match=r"8,200x8,200 pixels, 67,240,000 in all, expected at most 67,108,864"):
        decode(encode(Image.new("1", (8200, 8200))), 1, None)
    with pytest.raises(InputError, match=r"8x16 pixels and would be resized to 6,000x12,000, expected at most"):
        decode(encode(Image.new("L", (8, 16))), 1, 6000)
    with pytest.raises(InputError, match="more pixels than can be decoded, expected at most 67,108,864"):
        decode(png(100_000, 100_000, 1, 0, []), 1, None)
    monkeypatch.setattr(encoded, "MAX_BYTES", 10)
    with pytest.raises(InputError, match="bytes or more, expected at most 10"):
        decode(thin, 1, None)


def test_as_thin_as_is_allowed_is_resized():
    assert decode(encode(Image.new("L", (2, 200), 9)), 1, 28).tolist() == [[[9] * 28] * 28]
    assert decode(encode(Image.new("L", (1, 5000), 9)), 1, None).shape == (1, 5000, 1), "nothing is cut out"


@pytest.mark.slow
def test_a_small_file_of_a_million_rows_takes_little_memory():
    code = """
        import io, resource
        from PIL import Image
        from eidetic_kernels.errors import InputError
        from eidetic_training.data.encoded import decode
        stream = io.BytesIO()
        Image.new("L", (1, 1_000_000)).save(stream, "PNG")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            decode(stream.getvalue(), 1, 28)
        except InputError:
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment
    )
    per_unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * per_unit < 2**26, done.stderr


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    for path in (tmp_path / "notes.png", tmp_path / "nowhere.png", tmp_path, f"{tmp_path}/a\0b"):
        with pytest.raises(InputError, match="cannot be read as an image") as caught:
            decode_file(path, True, 28)
        assert str(path) in str(caught.value)


def test_errors_of_other_kinds_are_told_as_input_errors(monkeypatch):
    data = encode(COLOURS)
    for kind in (OSError, SyntaxError, KeyError, IndexError, MemoryError, OverflowError, ZeroDivisionError):

        def raises(*given, kind=kind):
            raise kind("of Pillow's")

        monkeypatch.setattr(encoded, "_upright", raises)
        with pytest.raises(InputError, match="it is damaged.*of Pillow's"):
            decode(data, 3, None)
