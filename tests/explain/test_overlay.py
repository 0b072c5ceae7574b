"""Overlays: a raw map becomes the picture that torch and the reference notebooks would give."""

import os

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from braintumor_ray.errors import BrainTumorError
from braintumor_ray.explain import overlay
from braintumor_ray.explain.overlay import font_for, shortened, wrapped


@pytest.fixture
def scan():
    gray = np.zeros((200, 160), np.uint8)
    cv2.ellipse(gray, (80, 100), (60, 80), 0, 0, 360, 120, cv2.FILLED)
    return gray


@pytest.fixture
def cam():
    return np.random.default_rng(7).random((7, 7)).astype(np.float16)


def blob(row, column, size=7):
    y, x = np.mgrid[:size, :size]
    return np.exp(-((x - column) ** 2 + (y - row) ** 2) / 2).astype(np.float32)


@pytest.mark.parametrize("shape", [(224, 224), (201, 333), (5, 9), (14, 14), (7, 7)])
def test_heatmap_equals_torch_interpolate_then_min_max(cam, shape):
    tensor = torch.from_numpy(cam.astype(np.float32))[None, None]
    up = torch.nn.functional.interpolate(tensor, shape, mode="bilinear", align_corners=False)[0, 0]
    expected = ((up - up.min()) / (up.max() - up.min())).numpy()
    heat = overlay.heatmap_at(cam, shape)
    assert heat.dtype == np.float32
    np.testing.assert_allclose(heat, expected, atol=2e-6)


def test_heatmap_is_stretched_after_upsampling_so_it_reaches_0_and_1(cam):
    # The peak of a 7x7 map upsampled to 8x8 lies below the raw peak.
    heat = overlay.heatmap_at(cam, (8, 8))
    assert heat.min() == 0
    assert heat.max() == 1


def test_heatmap_does_not_depend_on_the_scale_of_the_raw_map(cam):
    small = overlay.heatmap_at(cam.astype(np.float32) * 1e-9, (64, 64))
    np.testing.assert_allclose(small, overlay.heatmap_at(cam, (64, 64)), atol=1e-5)


def test_all_zero_map_stays_zeros():
    assert not overlay.heatmap_at(np.zeros((7, 7), np.float16), (50, 60)).any()


@pytest.mark.parametrize("value", [1e-7, 0.3, 1234.5, -2.0])
def test_constant_map_is_not_stretched_to_noise(value):
    ripple = np.random.default_rng(0).uniform(-4e-4, 4e-4, (7, 7))
    rounded = (value * (1 + ripple)).astype(np.float32)
    assert not overlay.heatmap_at(np.full((7, 7), value), (224, 224)).any()
    assert not overlay.heatmap_at(rounded, (224, 224)).any()


@pytest.mark.parametrize(
    "bad", [np.full((7, 7), np.nan), np.array([[1.0, np.inf]]), np.zeros((1, 7, 7)), np.zeros(0)]
)
def test_what_is_not_one_finite_map_is_refused(bad):
    with pytest.raises(BrainTumorError, match="cannot be drawn"):
        overlay.heatmap_at(bad, (10, 10))


def test_jet_runs_from_blue_to_red_in_rgb_order():
    blue, red = overlay.colorize(np.array([[0.0, 1.0]]))[0]
    assert blue.tolist() == [0, 0, 128]
    assert red.tolist() == [128, 0, 0]


@pytest.mark.parametrize("name", sorted(overlay.COLORMAPS))
def test_every_color_map_colors_and_clips(name):
    rgb = overlay.colorize(np.array([[-1.0, 0.0, 1.0, 2.0]]), name)
    assert rgb.shape == (1, 4, 3)
    assert rgb.dtype == np.uint8
    assert (rgb[0, 0] == rgb[0, 1]).all()
    assert (rgb[0, 2] == rgb[0, 3]).all()
    assert (rgb[0, 0] != rgb[0, 3]).any()


def test_unknown_color_map_names_the_choices():
    with pytest.raises(BrainTumorError, match=r"'rainbow2'.*jet.*inferno"):
        overlay.colorize(np.zeros((2, 2)), "rainbow2")


def test_superimpose_is_a_weighted_mean_of_scan_and_color():
    gray = np.full((1, 2), 100, np.uint8)
    rgb = overlay.superimpose(gray, np.array([[0.0, 1.0]], np.float32), alpha=0.4)
    assert rgb[0].tolist() == [[60, 60, 111], [111, 60, 60]]


def test_alpha_zero_is_the_scan_and_alpha_one_the_colors(scan, cam):
    heat = overlay.heatmap_at(cam, scan.shape)
    assert (overlay.superimpose(scan, heat, alpha=0)[..., 1] == scan).all()
    assert (overlay.superimpose(scan, heat, alpha=1) == overlay.colorize(heat)).all()


def test_superimpose_refuses_what_does_not_fit(scan, cam):
    with pytest.raises(BrainTumorError, match=r"differ in size.*heatmap_at"):
        overlay.superimpose(scan, cam)
    with pytest.raises(BrainTumorError, match=r"alpha=1\.5"):
        overlay.superimpose(scan, overlay.heatmap_at(cam, scan.shape), alpha=1.5)
    with pytest.raises(BrainTumorError, match="uint8"):
        overlay.superimpose(scan / 255.0, overlay.heatmap_at(cam, scan.shape))


def draw(scan, cam, **options):
    cams = options.pop("cams", {"gradcam": cam, "gradcam_pp": cam})
    told = {"predicted": "glioma_tumor", "probability": 0.973, **options}
    return overlay.panel(scan, cams, **told)


def test_full_panel_has_a_row_per_method_and_compact_one_row(scan, cam):
    one, two = draw(scan, cam, cams={"gradcam": cam}), draw(scan, cam)
    compact = draw(scan, cam, layout="compact")
    assert two.dtype == np.uint8
    assert one.shape[1] == two.shape[1] == compact.shape[1]  # three tiles across
    assert two.shape[0] - one.shape[0] > overlay.TILE_SIZE
    assert compact.shape[0] == one.shape[0]


def test_tiles_keep_the_scans_aspect(cam):
    white = np.full((100, 50), 255, np.uint8)
    picture = draw(white, cam, cams={"gradcam": np.zeros((7, 7))}, colormap="hot", alpha=1.0)
    picture = picture[:, :-80]  # without the color bar
    black = (picture == 0).all(axis=2)  # hot at zero
    rows, columns = black.sum(axis=0).max(), black.sum(axis=1).max() / 2  # heatmap and overlay
    assert rows == pytest.approx(overlay.TILE_SIZE, abs=2)
    assert columns == pytest.approx(overlay.TILE_SIZE / 2, abs=2)


def test_panel_shows_the_hot_place_where_the_map_has_it(scan):
    picture = draw(scan, None, cams={"gradcam": blob(1, 5)}, layout="compact").astype(int)
    redness = picture[..., 0] - picture[..., 2]
    redness[:, -80:] = 0  # color bar
    y, x = np.unravel_index(redness.argmax(), redness.shape)
    left = picture.shape[1] / 2
    assert x > left  # in the overlay, right half of its tile
    assert y < picture.shape[0] / 2


@pytest.mark.parametrize(("truth", "channel"), [("glioma_tumor", 1), ("no_tumor", 0)])
def test_right_is_marked_green_and_wrong_red(scan, cam, truth, channel):
    title = draw(scan, cam, true_class=truth)[20:80].astype(int)
    strongest = title - title.mean(axis=2, keepdims=True)
    assert np.unravel_index(strongest.argmax(), title.shape)[2] == channel
    unknown = draw(scan, cam)[20:60]
    assert np.ptp(unknown, axis=2).max() < 15  # nothing colored where the truth is not known


def test_mask_and_box_are_outlined_on_the_scan_in_white(scan, cam):
    mask = np.zeros_like(scan)
    mask[90:110, 60:100] = 1
    plain = draw(scan, cam, layout="compact")
    for outline in ({"mask": mask}, {"box": (60 / 160, 90 / 200, 100 / 160, 110 / 200)}):
        changed = (draw(scan, cam, layout="compact", **outline) != plain).any(axis=2)
        changed[-60:] = False  # the footer speaks of the outline
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        assert np.ptp(rows) == pytest.approx(20 * 320 / 200, abs=6)
        first_tile = columns[columns < 20 + 280]
        assert np.ptp(first_tile) == pytest.approx(40 * 320 / 200, abs=6)


def test_panel_refuses_what_it_cannot_draw(scan, cam):
    with pytest.raises(BrainTumorError, match="layout 'wide'"):
        draw(scan, cam, layout="wide")
    with pytest.raises(BrainTumorError, match="no maps"):
        draw(scan, cam, cams={})
    with pytest.raises(BrainTumorError, match="mask"):
        draw(scan, cam, mask=np.ones((3, 3)))
    with pytest.raises(BrainTumorError, match="fractions"):
        draw(scan, cam, box=(10, 20, 30, 40))
    with pytest.raises(BrainTumorError, match="uint8"):
        draw(np.zeros((4, 4, 3), np.uint8), cam)


@pytest.mark.parametrize("shape", [(400, 90), (60, 800), (3, 300), (1446, 1200)])
@pytest.mark.parametrize("layout", ["full", "compact"])
def test_no_ink_in_the_margin_whatever_the_aspect_and_the_names(cam, shape, layout):
    gray = np.full(shape, 80, np.uint8)
    long = "a_class_name_that_goes_on_and_on_" * 5
    picture = draw(
        gray,
        cam,
        cams={"m" * 80: cam},
        predicted=long,
        true_class="méningiome " * 20,
        layout=layout,
        box=(0, 0, 1, 1),
    )
    for edge in (picture[:8], picture[-8:], picture[:, :8], picture[:, -8:]):
        assert (edge == 255).all()


def test_long_text_is_cut_to_the_room_with_dots():
    text = shortened("meningioma" * 20, 15, 120)
    assert text.startswith("mening")
    assert "..." in text
    assert text.endswith("ioma")
    assert font_for(15, text).getlength(text) <= 120
    assert shortened("short", 15, 120) == "short"


@pytest.mark.parametrize(
    "text",
    [
        "Grad-CAM of astrocytoma_grade_4_idh_mutant on scan",
        "meningioma_of_the_falx_cerebri heatmap",
    ],
)
def test_a_long_title_is_two_whole_lines(text):
    first, second = wrapped(text, 13, 200)
    assert first + second == text.replace(" " + second, second)
    for line in (first, second):
        assert 0 < font_for(13, line).getlength(line) <= 200


def test_a_title_that_fits_is_one_line_and_one_too_long_for_two_has_dots():
    assert wrapped("scan", 13, 200) == ["scan"]
    assert "..." in wrapped("meningioma_of_the_falx " * 5, 13, 200)[1]
    assert wrapped("m" * 99, 13, 200) == [shortened("m" * 99, 13, 200)]


def test_letters_beyond_ascii_are_drawn_as_themselves():
    glyphs = [bytes(font_for(20, letter).getmask(letter)) for letter in "éß中"[:2]]
    missing = bytes(font_for(20, "\uffff").getmask("\uffff"))
    assert glyphs[0] != glyphs[1]
    assert missing not in glyphs


def test_contact_sheet_holds_every_picture_unscaled_in_order():
    tiles = [np.full((40, 30, 3), 10 * i, np.uint8) for i in range(5)]
    sheet = overlay.contact_sheet(tiles, columns=3, captions=list("abcde"))
    for value, tile in enumerate(tiles):
        assert (sheet == tile[0, 0]).all(axis=2).sum() >= 40 * 30, value
    center = [np.argwhere((sheet == 10 * i).all(axis=2)).mean(axis=0) for i in (0, 1, 3)]
    assert center[1][1] > center[0][1]  # to the right
    assert center[2][0] > center[0][0]  # below


def test_contact_sheet_mixes_gray_and_color_and_sizes():
    tiles = [np.zeros((500, 100), np.uint8), np.zeros((20, 20, 3), np.uint8)]
    sheet = overlay.contact_sheet(tiles, columns=8, tile_size=64)
    assert sheet.shape == (64 + 40, 2 * 64 + 14 + 40, 3)


def test_contact_sheet_refuses_nothing_and_miscounted_captions():
    with pytest.raises(BrainTumorError, match="0 pictures"):
        overlay.contact_sheet([], columns=3)
    with pytest.raises(BrainTumorError, match="1 captions for 2"):
        overlay.contact_sheet([np.zeros((2, 2), np.uint8)] * 2, columns=2, captions=["a"])


def test_png_reads_back_equal_and_leaves_nothing_else(tmp_path):
    rgb = np.random.default_rng(1).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    overlay.write_png(tmp_path / "picture.png", rgb)
    assert os.listdir(tmp_path) == ["picture.png"]
    assert (np.asarray(Image.open(tmp_path / "picture.png")) == rgb).all()


def test_png_that_cannot_be_finished_leaves_the_old_one_whole(tmp_path, monkeypatch):
    old, new = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)
    overlay.write_png(tmp_path / "picture.png", old)

    def half_a_file(self, path, **_):
        path.write_bytes(b"\x89PNG")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half_a_file)
    with pytest.raises(OSError, match="disk full"):
        overlay.write_png(tmp_path / "picture.png", new)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["picture.png"]
    assert (np.asarray(Image.open(tmp_path / "picture.png")) == old).all()
