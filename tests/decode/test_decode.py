"""Every file gives pixels or a true reason, and the same pixels however they are stored."""

import gzip
import io
import subprocess
import sys
from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from braintumor_ray.decode.decode import decode, probe, sniff
from braintumor_ray.decode.raster import rescale
from braintumor_ray.decode.types import DecodeLimits
from tests.decode.mutations import (
    MAY_DECODE,
    bomb_png,
    encode,
    intact_images,
    mutated_images,
    slice_like,
)

GRAY = slice_like(np.random.default_rng(3), 96, 70)


def saved(image: Image.Image, name: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def pixels(data: bytes, **options) -> np.ndarray:
    decoded = decode(data, **options)
    assert decoded.reason is None, decoded.reason
    assert decoded.status == "ok"
    assert decoded.gray.dtype == np.uint8
    assert decoded.gray.flags.c_contiguous
    assert decoded.gray.flags.writeable
    return decoded.gray


def single_color(color) -> np.ndarray:
    """A ramp, which is no blank picture, with one pixel of a color at its start."""
    picture = np.repeat(np.arange(64, dtype=np.uint8).reshape(8, 8)[..., None], 3, axis=2)
    picture[0, 0] = color
    return picture


def reason(data: bytes | None, **options) -> str:
    decoded = decode(data, **options)
    assert decoded.gray is None
    assert decoded.status == "quarantined"
    return decoded.reason


# ---- the same pixels whatever the container -----------------------------------------------------


@pytest.mark.parametrize("name", ["PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_gray_pixels_keep_their_value_in_every_lossless_container(name, mode):
    decoded = decode(saved(Image.fromarray(GRAY).convert(mode), name))
    assert decoded.format == name.lower()
    assert decoded.mode == ("L" if (name, mode) == ("BMP", "P") else mode)  # as Pillow has it
    np.testing.assert_array_equal(decoded.gray, GRAY)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff_gives_the_stored_pixels(compression):
    np.testing.assert_array_equal(pixels(encode(GRAY, "TIFF", compression=compression)), GRAY)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_color_jpeg_gives_its_luma_plane_as_opencv_does(options):
    data = saved(Image.fromarray(GRAY).convert("RGB"), "JPEG", quality=90, **options)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(pixels(data), expected)


@pytest.mark.parametrize(
    ("color", "luma"), [((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29)]
)
def test_colors_become_bt601_luma(color, luma):
    assert pixels(encode(single_color(color), "PNG"))[0, 0] == luma


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_pixels_are_black_and_opaque_ones_unchanged(mode):
    image = Image.fromarray(GRAY).convert(mode)
    alpha = np.full_like(GRAY, 255)
    alpha[:20], alpha[20:40] = 0, 128
    image.putalpha(Image.fromarray(alpha))
    gray = pixels(saved(image, "PNG"))
    assert not gray[:20].any()
    np.testing.assert_allclose(gray[20:40], GRAY[20:40] * (128 / 255), atol=0.5)
    np.testing.assert_array_equal(gray[40:], GRAY[40:])


def test_a_transparent_palette_entry_is_black():
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    image.putpalette([value for level in range(200, 72, -2) for value in (level,) * 3])
    found = pixels(saved(image, "PNG", transparency=0))
    assert found[0, :3].tolist() == [0, 198, 196]


def test_one_bit_images_are_black_and_white_and_no_scans():
    data = saved(Image.fromarray(GRAY > 60), "PNG")
    assert probe(data).mode == "1"
    assert decode(data).reason == "blank slice: only a handful of gray levels"


def test_inverted_cmyk_jpeg_is_not_a_negative():
    data = saved(Image.fromarray(GRAY).convert("RGB").convert("CMYK"), "JPEG", quality=98)
    assert np.abs(pixels(data).astype(int) - GRAY).mean() < 3


# ---- more than eight bits -----------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 256, 257])
@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_eight_bits_in_a_sixteen_bit_container_come_back_exactly(name, step):
    np.testing.assert_array_equal(pixels(encode(GRAY.astype(np.uint16) * step, name)), GRAY)


def test_sixteen_bit_range_is_stretched_between_percentiles():
    ramp = np.linspace(100, 3000, 10_000).astype(np.uint16).reshape(100, 100)
    ramp[0, 0] = 65535
    gray = pixels(encode(ramp, "PNG"))
    assert gray[0, 1] == 0
    assert gray[-1, -1] == 255
    assert abs(int(gray[50, 0]) - 128) <= 2  # one hot pixel has not darkened the rest


def test_float_tiff_is_stretched_and_nan_is_lowest():
    values = GRAY.astype(np.float32) / 300 - 0.2
    values[5, 5] = np.nan
    gray = pixels(encode(values, "TIFF"))
    assert gray[5, 5] == 0
    assert gray.max() == 255
    assert np.corrcoef(gray.ravel(), GRAY.ravel())[0, 1] > 0.99


def test_a_float_image_without_finite_values_is_refused():
    values = np.full((8, 8), np.nan, np.float32)
    assert reason(encode(values, "TIFF")) == "no finite pixel values"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_a_constant_image_is_blank(dtype):
    decoded = decode(encode(np.full((9, 7), 100, dtype), "TIFF"))
    assert (decoded.status, decoded.reason) == ("skipped", "blank slice")


def test_a_few_bright_pixels_on_a_flat_image_survive():
    samples = np.zeros((100, 100), np.uint16)
    samples[50, 50] = 4000
    assert rescale(samples)[50, 50] == 255


@pytest.mark.parametrize("step", [1, 16, 257])
def test_sixteen_bit_color_png_equals_its_gray_twin(step):
    wide = GRAY.astype(np.uint16) * step
    color = cv2.imencode(".png", np.dstack([wide] * 3))[1].tobytes()
    np.testing.assert_array_equal(pixels(color), pixels(encode(wide, "PNG")))


def test_sixteen_bit_min_is_white_tiff_is_inverted():
    data = encode(GRAY.astype(np.uint16), "TIFF")
    tag = b"\x06\x01\x03\x00\x01\x00\x00\x00"  # 262, SHORT, one value
    assert data.count(tag + b"\x01\x00") == 1
    white = data.replace(tag + b"\x01\x00", tag + b"\x00\x00")
    np.testing.assert_array_equal(pixels(white), 255 - GRAY)


# ---- orientation, pages, limits -----------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF"])
def test_stored_orientation_is_always_applied(name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(GRAY), name, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    gray = pixels(data)
    np.testing.assert_array_equal(gray, expected)
    header = probe(data)
    assert (header.height, header.width) == gray.shape


def test_orientation_applies_to_sixteen_bits_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(GRAY.astype(np.uint16)), "PNG", exif=exif)
    np.testing.assert_array_equal(pixels(data), np.rot90(GRAY, -1))


def test_pages_of_a_tiff_are_frames():
    pages = [Image.fromarray(GRAY[:64] // 4 + value) for value in (10, 20, 30)]
    data = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert probe(data).frames == 3
    assert [int(pixels(data, frame=k).min()) for k in range(3)] == [10, 20, 30]
    assert reason(data, frame=3) == "frame 3 is out of range: the file has 3"
    assert reason(data, frame=-1) == "frame -1 is out of range: the file has 3"


def test_other_formats_have_one_frame():
    assert reason(encode(GRAY, "JPEG"), frame=1) == "frame 1 is out of range: the file has 1"


def test_a_bomb_is_refused_from_its_header():
    data = bomb_png()
    assert len(data) < 5000
    assert reason(data) == "60000 x 60000 pixels is over the limit of 64000000"
    assert (probe(data).width, probe(data).height) == (60000, 60000)


def test_limits_are_the_callers():
    data = encode(GRAY, "PNG")
    small = DecodeLimits(max_pixels=GRAY.size - 1)
    assert reason(data, limits=small) == f"70 x 96 pixels is over the limit of {GRAY.size - 1}"
    assert reason(data, limits=DecodeLimits(max_bytes=10)).endswith("is over the limit of 10")
    pixels(data, limits=DecodeLimits(max_pixels=GRAY.size, max_bytes=len(data)))


# ---- reasons ------------------------------------------------------------------------------------

JPEG = encode(GRAY, "JPEG")
PNG = encode(GRAY, "PNG")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, "file missing or unreadable"),
        (b"", "empty file (0 bytes)"),
        (b"PK\x03\x04 and more", "not an image: starts with 'PK' (zip archive)"),
        (b"GIF89a", "not an image: starts with 'GIF8' (GIF is not readable here)"),
        (bytes(500), "not an image: starts with zero bytes"),
        (b"BMW is not a bitmap, and this is a text", "not an image in a known format"),
        (JPEG[:-2], "truncated JPEG: the data end early"),
        (JPEG[: len(JPEG) // 2], "truncated JPEG: the data end early"),
        (
            JPEG[: len(JPEG) // 2] + b"\xff\xd9",
            "truncated JPEG: ends before the last scan is complete",
        ),
        (
            JPEG[: len(JPEG) // 2] + bytes(100_000),
            "truncated JPEG: no end marker after the last scan",
        ),
        (PNG[:-12], "truncated PNG: no IEND chunk"),
        (PNG[:200], "truncated PNG: ends inside a chunk"),
        (PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], "PNG: bad checksum in IDAT"),
        (PNG[:20] + bytes([PNG[20] ^ 1]) + PNG[21:], "PNG: bad checksum in IHDR"),
        (encode(GRAY, "BMP")[:-300], "truncated BMP: the data end early"),
        (encode(GRAY, "TIFF")[:-300], "truncated TIFF: the data end early"),
    ],
)
def test_reasons_are_true_and_specific(data, expected):
    assert reason(data) == expected


def test_foreign_types_are_reasons_too():
    assert reason("a path") == "not bytes but str"
    np.testing.assert_array_equal(pixels(bytearray(PNG)), GRAY)
    np.testing.assert_array_equal(pixels(memoryview(PNG)), GRAY)


def test_an_image_that_is_truly_mid_gray_at_its_end_is_not_called_truncated():
    for options in ({}, {"progressive": True}):
        gray = np.tile(GRAY[:64, :56], (2, 2))
        gray[-16:, -16:] = 128
        data = encode(gray, "JPEG", **options)
        assert (pixels(data)[-8:, -8:] == 128).all()


def test_bytes_after_the_end_marker_do_no_harm():
    np.testing.assert_array_equal(pixels(JPEG + bytes(1000)), pixels(JPEG))


def test_a_recognized_format_without_a_reader_is_named(monkeypatch):
    monkeypatch.setattr("braintumor_ray.decode.decode.reader", lambda name: None)
    assert reason(JPEG) == "JPEG is not readable here"
    assert reason(bytes(128) + b"DICM" + bytes(400)) == "DICOM is not readable here"
    assert probe(gzip.compress(bytes(344) + b"n+1\0")).reason == "NIfTI is not readable here"


def test_content_decides_whatever_volume_formats_look_like():
    assert sniff(b"II*\0" + bytes(124) + b"DICM") == "dicom"
    nifti = bytes(344) + b"n+1\0" + bytes(100)
    assert sniff(nifti) == "nifti"
    assert sniff(gzip.compress(nifti)) == "nifti"
    assert sniff(gzip.compress(b"a text")) is None
    assert sniff(b"\x1f\x8b not gzip") is None


# ---- headers ------------------------------------------------------------------------------------


def test_probe_reads_the_header_from_the_first_bytes_alone():
    large = np.tile(slice_like(np.random.default_rng(0), 150, 150), (8, 9))
    for name in ("JPEG", "PNG", "BMP"):
        header = probe(encode(large, name)[:4096])
        assert (header.format, header.mode) == (name.lower(), "L")
        assert (header.height, header.width, header.frames) == (*large.shape, 1)


def test_probe_gives_a_reason_where_the_header_is_not_there():
    assert probe(b"").reason == "empty file (0 bytes)"
    assert probe(encode(GRAY, "JPEG")[:100]).reason == "truncated JPEG: the data end early"
    assert probe(encode(GRAY, "TIFF")[:8]).reason is not None


# ---- many files ---------------------------------------------------------------------------------


def test_of_300_mutated_files_none_raises_and_the_50_intact_ones_decode():
    bad, good = mutated_images(seed=0, n=300), intact_images(seed=99, n=50)
    for k, whole in enumerate(good):
        bad.insert(7 * k, whole)
    outcomes = [(kind, decode(data)) for _, data, kind in bad]
    assert Counter(kind for kind, _ in outcomes)["intact"] == 50
    for kind, decoded in outcomes:
        if kind == "intact":
            assert decoded.status == "ok"
        elif kind not in MAY_DECODE:
            assert decoded.status == "quarantined", kind
        assert (decoded.gray is None) == bool(decoded.reason)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF", "BMP"])
def test_no_prefix_of_an_image_passes_for_whole(name):
    whole = encode(GRAY, name)
    for cut in np.linspace(1, len(whole) - 4, 60).astype(int):
        assert decode(whole[:cut]).status == "quarantined", cut


MEMORY_PROBE = """
import resource, sys
from tests.decode.mutations import mutated_images
from braintumor_ray.decode.decode import decode
files = mutated_images(0, 300)
decode(files[3][1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _, data, _ in files:
    decode(data)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_mutated_files_do_not_cost_memory():
    grown = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEMORY_PROBE],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    unit = 1024 if sys.platform == "linux" else 1
    assert int(grown.stdout) * unit < 100 * 2**20  # one 60000 x 60000 image would be 3.6 GB


SEEDS = [data for _, data, _ in intact_images(seed=5, n=4)] + [b"BM", b"\x1f\x8b", bytes(400)]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=600), st.sampled_from(SEEDS), st.integers(0, 5000), st.integers(-1, 2))
def test_arbitrary_bytes_never_raise(noise, seed, where, frame):
    for data in (noise, seed[:where] + noise, seed[:where] + noise + seed[where:]):
        decoded, header = decode(data, frame=frame), probe(data)
        assert (decoded.gray is None) != (decoded.reason is None)
        assert (header.width == 0) == (header.reason is not None)


# ---- real scans ---------------------------------------------------------------------------------


@pytest.mark.real
def test_every_real_scan_decodes_to_the_size_its_header_says(real_data):
    files = sorted((real_data / "mri4").rglob("*.jpg"))
    files += [p for p in sorted((real_data / "br35h_outlines").rglob("*.*")) if p.suffix != ".json"]
    assert len(files) >= 2900
    for path in files:
        data = path.read_bytes()
        decoded, header = decode(data), probe(data)
        assert decoded.status == "ok", (path, decoded.reason)
        assert decoded.gray.shape == (header.height, header.width)
        assert decoded.mode == header.mode
