"""Pictures for people: smooth, within the head where asked for, sheets with equal cells."""

import cv2
import numpy as np
import pytest

from braintumor_ray.errors import UsageError
from braintumor_ray.explain import overlay, sheets
from braintumor_ray.explain.overlay import NO_HEAD, drawn_heatmap, heatmap_at, panel
from braintumor_ray.explain.sheets import CELL, ROWS, SheetRow, compare_sheet


def head_scan(height=200, width=160):
    gray = np.zeros((height, width), np.uint8)
    cv2.ellipse(gray, (width // 2, height // 2), (60, 80), 0, 0, 360, 120, cv2.FILLED)
    return gray


def one_cell(row, column, cells=7):
    cam = np.zeros((cells, cells), np.float32)
    cam[row, column] = 1
    return cam


def test_a_hot_cell_is_drawn_without_the_kinks_of_bilinear_upsampling():
    def kink(heat):
        """The largest change of slope between neighboring pixels."""
        return np.abs(np.diff(heat, n=2, axis=1)).max()

    plain, smooth = (f(one_cell(3, 3), (224, 224)) for f in (heatmap_at, drawn_heatmap))
    assert kink(smooth) < 0.2 * kink(plain)
    assert np.unravel_index(smooth.argmax(), smooth.shape) == pytest.approx((112, 112), abs=2)
    assert smooth.min() == 0
    assert smooth.max() == 1


def test_a_flat_map_is_drawn_flat_and_a_fine_one_as_it_is():
    assert not drawn_heatmap(np.full((7, 7), 3.0), (50, 50)).any()
    cam = np.random.default_rng(0).random((40, 40))
    np.testing.assert_array_equal(drawn_heatmap(cam, (40, 40)), heatmap_at(cam, (40, 40)))


def test_masked_heat_stays_in_the_head_and_the_hottest_place_there_is_1():
    cam = one_cell(3, 3) + 5 * one_cell(0, 0)
    gray = head_scan()
    heat = drawn_heatmap(cam, gray.shape, head=(gray > 0).astype(np.uint8))
    assert not heat[gray == 0].any()
    assert heat.max() == 1
    assert np.hypot(*(np.array(np.unravel_index(heat.argmax(), heat.shape)) - (100, 80))) < 20


def test_a_panel_with_masked_heat_has_the_scans_gray_around_the_head():
    shown = {"predicted": "a", "probability": 0.9, "layout": "compact"}
    whole = panel(head_scan(), {"gradcam": one_cell(0, 0)}, **shown)
    masked = panel(head_scan(), {"gradcam": one_cell(0, 0)}, mask_head=True, **shown)
    assert whole.shape == masked.shape

    def blue(picture):
        left_half = picture[:, : picture.shape[1] - 60].astype(int)  # without the color bar
        return int((left_half[..., 2] - left_half[..., 0] > 20).sum())

    assert blue(masked) < 0.7 * blue(whole)


def test_panels_of_scans_of_any_aspect_have_one_size():
    shown = {"predicted": "a", "probability": 0.9}
    shapes = {
        panel(head_scan(*size), {"gradcam": one_cell(3, 3)}, **shown).shape
        for size in ((200, 160), (170, 400), (256, 256))
    }
    assert len(shapes) == 1


def test_a_compare_sheet_has_20_rows_of_6_cells():
    row = SheetRow("a very long name " * 9, "glioma 97.0%", head_scan(), {"gradcam": one_cell(1, 1),
                   "gradcam_pp": one_cell(2, 2)})  # fmt: skip
    sheet = compare_sheet([row] * ROWS)
    assert sheet.shape[0] > 20 * CELL
    assert sheet.shape[1] > 6 * CELL
    one = compare_sheet([row])
    long = compare_sheet(
        [row._replace(cams={f"class_{n}_of_a_long_name": one_cell(n, n) for n in range(3)})]
    )
    assert long.shape[0] > one.shape[0]  # its titles have two lines
    assert sheet.shape[1] == one.shape[1]
    assert compare_sheet([row._replace(cams={"gradcam": one_cell(1, 1)})]).shape[1] < one.shape[1]
    with pytest.raises(UsageError, match="21 scans"):
        compare_sheet([row] * (ROWS + 1))


def test_a_compare_sheet_tells_which_scans_have_no_head_to_draw_heat_in(monkeypatch):
    written = []

    def font_for(size, text):
        written.append(text)
        return overlay.font_for(size, text)

    monkeypatch.setattr(sheets, "font_for", font_for)
    noise = np.random.default_rng(0).integers(0, 255, (96, 96), dtype=np.uint8)
    cams = {"gradcam": one_cell(1, 1)}
    rows = [SheetRow("with", "a", head_scan(), cams), SheetRow("without", "b", noise, cams)]
    compare_sheet(rows, mask_head=True)
    assert [text for text in written if text in ("a", "b", NO_HEAD)] == ["a", "b", NO_HEAD]
    written.clear()
    compare_sheet(rows)
    assert NO_HEAD not in written
