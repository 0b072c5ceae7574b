"""Burned-in text is found, in lines of glyphs, and can be masked; anatomy is not text."""

import cv2
import numpy as np
import pytest

from braintumor_ray.decode.burned_in import masked, text_lines
from braintumor_ray.phantom.dataset import patient_slices

FONT = cv2.FONT_HERSHEY_SIMPLEX


def with_text(gray, text, left, foot, height, level):
    made = gray.copy()
    scale = cv2.getFontScaleFromHeight(FONT, height, 1)
    cv2.putText(made, text, (left, foot), FONT, scale, level, 1, cv2.LINE_AA)
    return made


@pytest.fixture(scope="module")
def phantom():
    gray = np.ascontiguousarray(patient_slices(3)[0].image)
    return cv2.resize(gray, (512, 512), interpolation=cv2.INTER_CUBIC)


def test_phantoms_carry_no_text():
    found = [text_lines(each.image) for number in range(2) for each in patient_slices(number)]
    assert sum(map(bool, found)) == 0


@pytest.mark.parametrize("level", [255, 160])
@pytest.mark.parametrize("height", [12, 24])
@pytest.mark.parametrize(("left", "foot"), [(6, 40), (150, 300)])
def test_a_line_of_text_is_found_where_it_is(phantom, level, height, left, foot):
    made = with_text(phantom, "DOE^JANE 1970", left, foot, height, level)
    lines = text_lines(made)
    assert lines
    assert any(line.top < foot - height / 2 < line.bottom for line in lines)
    assert any(line.left < left + 4 * height < line.right for line in lines)


def test_dark_text_is_found(phantom):
    light = np.maximum(phantom, 150)
    assert text_lines(with_text(light, "DOE^JANE", 100, 100, 20, 0))


def test_side_marks_are_no_text(phantom):
    made = with_text(phantom, "R", 10, 250, 24, 255)
    assert not text_lines(with_text(made, "T1", 10, 500, 24, 255))


@pytest.mark.parametrize("side", [200, 1400])
def test_it_is_found_at_other_sizes_of_the_picture(phantom, side):
    made = with_text(phantom, "DOE^JANE 1970", 8, 40, 20, 230)
    assert text_lines(cv2.resize(made, (side, side), interpolation=cv2.INTER_AREA))


def test_masked_text_is_gone_and_the_rest_is_as_it_was(phantom):
    made = with_text(phantom, "DOE^JANE 1970", 6, 40, 20, 255)
    text = made != phantom
    clean = masked(made, text_lines(made))
    assert not clean[text].any()
    assert not text_lines(clean)
    np.testing.assert_array_equal(clean[100:], phantom[100:])


@pytest.mark.parametrize("shape", [(8, 8), (1, 300), (300, 2)])
@pytest.mark.parametrize("level", [0, 255])
def test_pictures_without_content_are_taken(shape, level):
    assert text_lines(np.full(shape, level, np.uint8)) == []
