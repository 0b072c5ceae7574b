"""Tumor truth from files: shapes become the right pixels, scans find their own entry."""

import json

import cv2
import numpy as np
import pytest

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.localization.formats import via_outlines
from braintumor_ray.localization.outlines import Outlines, TruthError, ellipse, rectangle
from braintumor_ray.localization.truth import load_truth
from braintumor_ray.phantom.dataset import write_phantoms


def via(regions, name="a.jpg"):
    shapes = [{"shape_attributes": shape, "region_attributes": {}} for shape in regions]
    return {f"{name}123": {"filename": name, "size": 123, "regions": shapes}}


def via_mask(*regions, shape=(10, 12)):
    return via_outlines(json.dumps(via(regions)), "x.json")["a.jpg"].mask(shape, shape)


def disc(shape, cx, cy, rx, ry):
    """Pixels whose middle lies in an ellipse."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1


def test_via_rectangle_covers_exactly_its_pixels():
    expected = np.zeros((10, 12), bool)
    expected[2:5, 3:9] = True
    assert (via_mask({"name": "rect", "x": 3, "y": 2, "width": 6, "height": 3}) == expected).all()


def test_via_polygon_covers_the_pixels_of_a_triangle():
    polygon = {"name": "polygon", "all_points_x": [0, 8, 0], "all_points_y": [0, 0, 8]}
    found = via_mask(polygon, shape=(8, 8))
    y, x = np.mgrid[:8, :8] + 0.5
    # Middles on the hypotenuse have half their pixel covered: they belong to the mask.
    assert (found == (x + y <= 8)).all()


def test_via_circle_and_ellipse_match_the_equation():
    circle = via_mask({"name": "circle", "cx": 30, "cy": 25, "r": 12.5}, shape=(60, 64))
    oval = {"name": "ellipse", "cx": 30, "cy": 25, "rx": 20, "ry": 9, "theta": 0}
    assert np.count_nonzero(circle ^ disc((60, 64), 30, 25, 12.5, 12.5)) <= 6
    assert np.count_nonzero(via_mask(oval, shape=(60, 64)) ^ disc((60, 64), 30, 25, 20, 9)) <= 6


def test_via_ellipse_turns_clockwise_by_radians():
    oval = {"name": "ellipse", "cx": 30, "cy": 30, "rx": 20, "ry": 4}
    quarter = via_mask(oval | {"theta": np.pi / 2}, shape=(60, 60))
    assert np.count_nonzero(quarter ^ disc((60, 60), 30, 30, 4, 20)) <= 6
    eighth = via_mask(oval | {"theta": np.pi / 4}, shape=(60, 60))
    assert eighth[42, 42]  # to the right and down: y grows downwards
    assert not eighth[18, 42]


def test_overlapping_regions_unite_and_cut_no_hole():
    square = {"name": "rect", "x": 1, "y": 1, "width": 6, "height": 6}
    inner = {"name": "rect", "x": 3, "y": 3, "width": 2, "height": 2}
    assert via_mask(square, inner).sum() == 36


def test_outline_in_pixels_scales_to_the_wanted_size_with_another_aspect():
    entry = Outlines((rectangle(100, 50, 300, 150),), in_pixels=True)
    mask = entry.mask((224, 224), scan_shape=(200, 400))
    expected = np.zeros((224, 224), bool)
    expected[56:168, 56:168] = True
    assert (mask == expected).all()


def test_outline_in_pixels_needs_the_scan_size():
    with pytest.raises(TruthError, match="full size"):
        Outlines((rectangle(1, 1, 4, 4),), in_pixels=True).mask((8, 8), None)


def test_ellipse_polygon_has_the_ellipse_area():
    x, y = ellipse(3, 4, 20, 10, 0.4).T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert area == pytest.approx(np.pi * 200, rel=1e-3)


def test_no_region_means_no_tumor_and_an_unlisted_scan_means_not_known(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps(via([])))
    truth = load_truth(tmp_path / "t.json")
    assert not truth.mask("a.jpg", (8, 8), (8, 8)).any()
    assert truth.mask("b.jpg", (8, 8), (8, 8)) is None


def test_whole_via_project_and_regions_by_number_are_read():
    shape = {"name": "rect", "x": 0, "y": 0, "width": 2, "height": 2}
    entry = {"filename": "a.jpg", "regions": {"0": {"shape_attributes": shape}}}
    found = via_outlines(
        json.dumps({"_via_settings": {}, "_via_img_metadata": {"a.jpg1": entry}}), "p.json"
    )
    assert found["a.jpg"].mask((4, 4), (4, 4)).sum() == 4


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({"name": "point", "cx": 1, "cy": 1}, "'point', which has no area"),
        ({"name": "circle", "cx": 1, "cy": 1}, "region 1 of 'a.jpg'.*lacks 'r'"),
        ({"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1, 2]}, "three or more"),
        ({"name": "polygon", "all_points_x": [1, 2, 3], "all_points_y": [1, 2]}, "3 x for 2 y"),
        ({"name": "rect", "x": "left", "y": 1, "width": 1, "height": 1}, "left"),
    ],
)
def test_bad_via_region_is_named(region, message):
    with pytest.raises(TruthError, match=message):
        via_outlines(json.dumps(via([region])), "x.json")


def test_coco_file_is_refused_as_not_via():
    with pytest.raises(TruthError, match="no filename and regions"):
        via_outlines(json.dumps({"images": [], "annotations": []}), "coco.json")


def test_several_boxes_of_a_path_unite(tmp_path):
    (tmp_path / "b.csv").write_text(
        "path,x_min,y_min,x_max,y_max\na/1.jpg,0,0,0.5,0.5\na/1.jpg,0.5,0.5,1,1\na/2.jpg,0,0,1,1\n"
    )
    truth = load_truth(tmp_path / "b.csv")
    assert (len(truth), truth.kind) == (2, "boxes")
    expected = np.kron(np.eye(2, dtype=bool), np.ones((4, 4), bool))
    assert (truth.mask("a/1.jpg", (8, 8)) == expected).all()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg,10,20,60,80", "line 2.*fractions from 0 to 1"),
        ("a.jpg,0.6,0.1,0.4,0.2", "x_min < x_max"),
        ("a.jpg,0.6,,0.8,0.2", "not a number"),
    ],
)
def test_bad_box_is_named(tmp_path, line, message):
    (tmp_path / "b.csv").write_text(f"path,x_min,y_min,x_max,y_max\n{line}\n")
    with pytest.raises(TruthError, match=message):
        load_truth(tmp_path / "b.csv")


def test_box_file_without_a_column_is_refused(tmp_path):
    (tmp_path / "b.csv").write_text("path,x_min,y_min,x_max\na.jpg,0,0,1\n")
    with pytest.raises(TruthError, match="lacks column 'y_max'"):
        load_truth(tmp_path / "b.csv")


def test_yolo_boxes_and_polygons(tmp_path):
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.25\n")
    (tmp_path / "b.txt").write_text("1 0 0 1 0 1 1 0 1\n")
    (tmp_path / "c.txt").write_text("")
    (tmp_path / "classes.txt").write_text("tumor\n")
    truth = load_truth(tmp_path)
    expected = np.zeros((8, 8), bool)
    expected[3:5, 2:6] = True
    assert (truth.mask("x/a.jpg", (8, 8)) == expected).all()
    assert truth.mask("b.png", (8, 8)).all()
    assert not truth.mask("c.png", (8, 8)).any()
    assert len(truth) == 3


def test_yolo_predictions_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.25 0.9\n")
    with pytest.raises(TruthError, match="confidence"):
        load_truth(tmp_path)


def test_mask_images_belong_to_scans_of_another_suffix(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 10:20] = 1  # a label map, not 255
    (tmp_path / "g").mkdir()
    cv2.imwrite(str(tmp_path / "g" / "s1_mask.png"), mask)
    truth = load_truth(tmp_path)
    found = truth.mask("g/s1.jpg", (20, 30), (20, 30))
    assert (found == (mask > 0)).all()
    assert truth.mask("g/s1.jpg", (10, 15), (40, 60)).sum() == pytest.approx(25, abs=6)
    assert truth.mask("g/s1.jpg", (20, 30), (20, 30), frame=1) is None


@pytest.mark.parametrize(("name", "color"), [("a.jpg", (0, 0, 255)), ("a.png", (1, 0, 0))])
def test_mask_in_any_color_is_a_mask(tmp_path, name, color):
    mask = np.zeros((32, 32, 3), np.uint8)
    mask[8:24, 8:24] = color
    cv2.imwrite(str(tmp_path / name), mask)
    found = load_truth(tmp_path).mask("a.jpg", (32, 32))
    assert np.count_nonzero(found ^ mask.any(axis=2)) <= 64  # the edge, in JPEG


def test_mask_of_another_aspect_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.ones((20, 30), np.uint8))
    with pytest.raises(TruthError, match="another aspect"):
        load_truth(tmp_path).mask("a.jpg", (8, 8), (30, 20))


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_damaged_mask_is_named(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(TruthError, match=r"a\.png' is not an image"):
        load_truth(tmp_path).mask("a.jpg", (8, 8))


def test_same_file_name_in_another_folder_is_another_scan(tmp_path):
    lines = "Testing/glioma/1.jpg,0,0,1,1\nTraining/glioma/1.jpg,0,0,1,1\n"
    (tmp_path / "b.csv").write_text("path,x_min,y_min,x_max,y_max\n" + lines)
    truth = load_truth(tmp_path / "b.csv")
    assert truth.find("Testing/no_tumor/1.jpg") is None
    assert truth.find("mri4/Testing/glioma/1.jpg") == "Testing/glioma/1.jpg"
    with pytest.raises(TruthError, match="may be"):
        truth.find("glioma/1.jpg")


def test_two_scans_must_not_share_a_flat_file_name(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps(via([])))
    truth = load_truth(tmp_path / "t.json")
    assert truth.match(["x/a.jpg", "x/b.jpg", "x/a.jpg"]) == {"x/a.jpg": "a.jpg"}
    with pytest.raises(TruthError, match=r"both answer to 'a\.jpg'"):
        truth.match(["x/a.jpg", "y/a.jpg"])


def boxes(folder, *paths):
    """Boxes of full pictures, but of the last path only its left half."""
    lines = [f"{path},0,0,{0.5 if path == paths[-1] else 1},1" for path in paths]
    (folder / "b.csv").write_text("\n".join(["path,x_min,y_min,x_max,y_max", *lines, ""]))
    return load_truth(folder / "b.csv")


@pytest.mark.parametrize("paths", [["1.jpg", "a/1.jpg"], ["a/1.jpg", "1.jpg"]])
@pytest.mark.parametrize("named", ["1.jpg", "a/1.jpg"])
def test_an_entry_is_of_the_scan_that_it_names_by_its_whole_path(tmp_path, paths, named):
    truth = boxes(tmp_path, named)
    assert truth.match(paths) == {named: named}
    assert [truth.of(paths).mask(path, (4, 4)) is not None for path in paths] == [
        path == named for path in paths
    ]


def test_entries_that_other_scans_have_make_none_ambiguous(tmp_path):
    truth = boxes(tmp_path, "a/1.jpg", "b/1.jpg")
    paths = ["1.jpg", "a/1.jpg", "b/1.jpg"]
    assert truth.match(paths) == {"a/1.jpg": "a/1.jpg", "b/1.jpg": "b/1.jpg"}


def test_truth_of_a_catalog_is_of_no_other_scan_of_one_of_its_splits(tmp_path):
    truth = boxes(tmp_path, "1.jpg").of(["1.jpg", "a/1.jpg", "a/2.jpg"])
    assert truth.match(["a/1.jpg", "a/2.jpg"]) == {}
    assert truth.of(["a/1.jpg"]).mask("a/1.jpg", (4, 4)) is None
    assert len(truth) == 1


def test_other_truth_counts_for_the_scan_that_it_names_and_for_no_other(tmp_path):
    paths = ["1.jpg", "a/1.jpg", "s/2.jpg"]
    first = boxes(tmp_path, "1.jpg", "2.jpg").of(paths)
    both = first.under(boxes(tmp_path, "a/1.jpg", "s/2.jpg").of(paths))
    covered = {path: both.mask(path, (4, 4)).mean() for path in paths}
    assert covered == {"1.jpg": 1.0, "a/1.jpg": 1.0, "s/2.jpg": 0.5}


def test_what_goes_before_a_mask_goes_before_it_in_a_split_too(tmp_path):
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "1.png"), np.full((4, 4), 255, np.uint8))
    paths = ["1.jpg", "2.jpg"]
    masks = load_truth(tmp_path / "masks").of(paths)
    both = masks.under(boxes(tmp_path, "2.jpg", "1.jpg").of(paths))
    assert both.mask("1.jpg", (4, 4)).mean() == 0.5
    assert both.of(["1.jpg"]).mask("1.jpg", (4, 4)).mean() == 0.5
    assert both.match(["1.jpg"]) == {"1.jpg": "1.jpg"}


def test_folder_of_scans_and_labels_or_of_nothing_is_refused(tmp_path):
    with pytest.raises(TruthError, match="neither mask images"):
        load_truth(tmp_path)
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((8, 8), np.uint8))
    with pytest.raises(TruthError, match="give the folder of masks"):
        load_truth(tmp_path)


def test_missing_location_is_named(tmp_path):
    for name in ("none", "none.csv", "none.json"):
        with pytest.raises(TruthError, match="none"):
            load_truth(tmp_path / name)


def test_phantom_masks_are_found_exactly(tmp_path):
    write_phantoms(tmp_path / "p", patients=4, seed=1)
    catalog = load_catalog(tmp_path / "p" / "scans")
    truth = load_truth(tmp_path / "p" / "masks" / "tumour")
    matched = truth.match(catalog["path"].to_pylist())
    row = next(row for row in catalog.to_pylist() if row["path"] in matched)
    drawn = cv2.imread(str(tmp_path / "p/masks/tumour" / (row["path"][:-4] + ".png")), 0) > 0
    shape = (row["height"], row["width"])
    assert len(matched) == len(truth)
    assert (truth.mask(row["path"], shape, shape) == drawn).all()


@pytest.mark.real
@pytest.mark.parametrize(
    ("truth", "scans", "matched"),
    [("mri4_boxes.csv", "mri4", 1922), ("br35h_outlines/outlines_via.json", "br35h_outlines", 120)],
)
def test_real_truth_belongs_to_real_scans(real_data, truth, scans, matched):
    index = load_truth(real_data / truth)
    catalog = load_catalog(real_data / scans)
    found = index.match(catalog["path"].to_pylist())
    assert (len(index), len(found)) == (matched, matched)
    rows = [row for row in catalog.to_pylist() if row["path"] in found][:40]
    areas = [
        index.mask(row["path"], (224, 224), (row["height"], row["width"])).mean() for row in rows
    ]
    assert min(areas) > 0
    assert max(areas) < 0.5
