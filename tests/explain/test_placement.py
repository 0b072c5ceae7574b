"""Maps of parts of pictures become maps of the pictures."""

import numpy as np
import pytest

from braintumor_ray.decode.head import WHOLE, Box, head_view
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.explain.placement import picture_maps, square_maps
from tests.builders import disc_scan

TOLERANCE = 0.3 / 28  # of a cell: a small part takes few cells of the picture


def spot(row, column, cells=28):
    cam = np.zeros((1, cells, cells), np.float32)
    cam[0, row, column] = 1
    return cam


def center(cam):
    """Center of mass in fractions of the picture: (x, y)."""
    rows, columns = np.mgrid[: cam.shape[0], : cam.shape[1]] + 0.5
    total = cam.sum()
    return (columns * cam).sum() / total / cam.shape[1], (rows * cam).sum() / total / cam.shape[0]


def test_maps_of_whole_pictures_are_returned_as_they_are():
    cam = spot(3, 4)
    assert picture_maps(cam, [WHOLE]) is cam


@pytest.mark.parametrize(
    "box", [Box(0.2, 0.1, 0.9, 0.8), Box(-0.1, -0.2, 1.1, 1.2), Box(0.4, 0.4, 0.6, 0.7)]
)
def test_a_spot_lies_where_its_part_of_the_picture_lies(box):
    x, y = center(picture_maps(spot(10, 20), [box])[0])
    assert x == pytest.approx(box.left + 20.5 / 28 * (box.right - box.left), abs=TOLERANCE)
    assert y == pytest.approx(box.top + 10.5 / 28 * (box.bottom - box.top), abs=TOLERANCE)


def test_beyond_the_part_there_is_no_heat():
    placed = picture_maps(np.ones((1, 8, 8), np.float32), [Box(0.25, 0.25, 0.75, 0.75)])[0]
    assert placed[:2].max() == placed[:, 6:].max() == 0
    assert np.allclose(placed[2:6, 2:6], 1)


def test_each_map_of_a_batch_has_its_own_part():
    both = np.concatenate([spot(10, 20), spot(10, 20)])
    boxes = [WHOLE, Box(0.0, 0.0, 0.5, 0.5)]
    placed = picture_maps(both, boxes)
    assert np.allclose(placed[0], both[0])
    assert center(placed[1])[0] == pytest.approx(20.5 / 56, abs=TOLERANCE)


class TestCellsThatDoNotDividePictures:
    FRAME = Box(-0.06, -0.06, 0.94, 0.94)  # as of symmetric padding, 8 cells

    def test_a_spot_is_drawn_where_its_cell_looks(self):
        x, y = center(square_maps(spot(10, 20), self.FRAME)[0])
        assert x == pytest.approx(20.5 / 28 - 0.06, abs=TOLERANCE)
        assert y == pytest.approx(10.5 / 28 - 0.06, abs=TOLERANCE)

    def test_the_parts_of_a_picture_and_the_frame_are_joined_in_one_step(self):
        box = Box(0.2, 0.1, 0.9, 0.8)
        x, y = center(picture_maps(spot(10, 20), [box], self.FRAME)[0])
        assert x == pytest.approx(0.2 + (20.5 / 28 - 0.06) * 0.7, abs=TOLERANCE)
        assert y == pytest.approx(0.1 + (10.5 / 28 - 0.06) * 0.7, abs=TOLERANCE)

    def test_beyond_the_frame_the_nearest_cell_counts(self):
        placed = square_maps(np.ones((1, 8, 8), np.float32), self.FRAME)
        assert np.allclose(placed, 1)

    def test_parts_and_whole_pictures_agree(self):
        maps = np.random.default_rng(0).random((3, 8, 8), np.float32)
        nearly = Box(0.0, 0.0, 1.0, 1.0 + 1e-9)  # takes the way of parts
        parts = picture_maps(maps, [nearly] * 3, self.FRAME)
        np.testing.assert_allclose(square_maps(maps, self.FRAME), parts, atol=1e-5)

    def test_no_maps_stay_no_maps(self):
        assert square_maps(np.empty((0, 8, 8), np.float32), self.FRAME).shape == (0, 8, 8)


class TestTheHeadsSquare:
    def shifted(self, top, left, size=(240, 320)):
        picture = np.zeros(size, np.uint8)
        scan = disc_scan(1, (96, 112))
        picture[top : top + 96, left : left + 112] = scan
        return picture

    def test_margins_do_not_matter(self):
        one, _ = head_view(self.shifted(20, 30), 64, crop=True, stretch=True)
        other, _ = head_view(self.shifted(120, 180), 64, crop=True, stretch=True)
        assert np.abs(one.astype(int) - other).mean() < 2

    def test_the_box_is_around_the_head(self):
        _, box = head_view(self.shifted(20, 30), 64, crop=True, stretch=False)
        assert box.left < 50 / 320 < box.right < 160 / 320
        assert box.top < 40 / 240 < box.bottom < 130 / 240

    def test_gain_does_not_matter_where_grays_are_stretched(self):
        picture = self.shifted(20, 30)
        one, _ = head_view(picture, 64, crop=False, stretch=True)
        other, _ = head_view((picture * 0.5).astype(np.uint8), 64, crop=False, stretch=True)
        assert np.abs(one.astype(int) - other).mean() < 3

    def test_a_picture_without_a_head_is_shown_whole(self):
        _, box = head_view(np.full((50, 100), 7, np.uint8), 64, crop=True, stretch=True)
        assert (box.left, box.right) == (0, 1)
        assert (box.top, box.bottom) == (-0.5, 1.5)  # a square around all of it

    def test_plain_preprocessing_is_as_it_was(self):
        plain = Preprocessing(64, "area", (0.0,) * 3, (1.0,) * 3)
        assert plain.square(self.shifted(20, 30))[1] == WHOLE
        assert set(plain.to_dict()) == {"image_size", "interpolation", "mean", "std"}
