"""The short way through Pillow's JPEG decoder gives what the long way gives, or gives way to it."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from braintumor_ray.decode import jpeg
from braintumor_ray.decode.decode import decode
from braintumor_ray.decode.types import DEFAULT_LIMITS, DecodeLimits
from tests.decode.mutations import encode, slice_like

NOISE = np.random.default_rng(3)
GRAY = slice_like(NOISE, 96, 80)
COLOR = np.stack([GRAY, GRAY // 2, 255 - GRAY], axis=-1)


def color(**options):
    buffer = io.BytesIO()
    Image.fromarray(COLOR).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return color(exif=exif)


ORDINARY = {
    "gray": encode(GRAY, "JPEG"),
    "color": color(),
    "subsampled": color(subsampling=2),
    "progressive": color(progressive=True),
    "restarts": encode(GRAY, "JPEG", restart_marker_blocks=3),
    "comment": encode(GRAY, "JPEG", comment=b"axial"),
    "stored as RGB": color(keep_rgb=True),
    "large": encode(NOISE.integers(0, 255, (512, 400), np.uint8), "JPEG", quality=95),
}
UNUSUAL = {
    "turned": turned(),
    "profile": color(icc_profile=b"no profile"),
}


def both_ways(data, monkeypatch):
    short = decode(data)
    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "plain_gray", lambda data, limits: None)
        return short, decode(data)


def assert_alike(short, long):
    assert (short.status, short.reason, short.mode) == (long.status, long.reason, long.mode)
    assert (short.gray is None) == (long.gray is None)
    if short.gray is not None:
        np.testing.assert_array_equal(short.gray, long.gray)


@pytest.mark.parametrize("kind", ORDINARY)
def test_ordinary_files_go_the_short_way_with_the_same_pixels(kind, monkeypatch):
    assert jpeg.plain_gray(ORDINARY[kind], DEFAULT_LIMITS) is not None
    short, long = both_ways(ORDINARY[kind], monkeypatch)
    assert short.status == "ok"
    assert_alike(short, long)


@pytest.mark.parametrize("kind", ["turned", "profile"])
def test_files_that_need_more_than_pixels_go_the_long_way(kind):
    assert jpeg.plain_gray(UNUSUAL[kind], DEFAULT_LIMITS) is None
    assert decode(UNUSUAL[kind]).status == "ok"


def test_the_pixels_belong_to_the_caller():
    gray = decode(ORDINARY["gray"]).gray
    gray[0, 0] = 7
    assert gray.flags.c_contiguous
    assert gray.base is None


def test_a_picture_over_the_limit_is_refused_before_its_pixels():
    found = decode(ORDINARY["gray"], limits=DecodeLimits(max_pixels=96 * 80 - 1))
    assert found.reason == "80 x 96 pixels is over the limit of 7679"


@pytest.mark.parametrize("kind", ORDINARY)
def test_damaged_files_fare_as_on_the_long_way(kind, monkeypatch):
    rng = random.Random(kind)
    went_short = 0
    for _ in range(120):
        data = damaged(rng, ORDINARY[kind])
        short, long = both_ways(data, monkeypatch)
        assert_alike(short, long)
        went_short += short.gray is not None
    assert went_short  # some damage shows in pixels only: both must show it alike


def damaged(rng, data):
    """Flipped bits, mostly in the header; a cut; a piece twice; bytes in between."""
    kind = rng.randrange(4)
    end = len(data) if rng.random() < 0.4 else min(700, len(data))
    at = rng.randrange(2, end)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[max(2, at - 40) :]
    if kind == 2:
        return data[:at] + rng.randbytes(rng.randrange(1, 4)) + data[at:]
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        changed[min(at + rng.randrange(60), len(data) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)
