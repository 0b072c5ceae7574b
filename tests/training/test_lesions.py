"""Tumors drawn into scans, taken from other scans, and healed."""

import cv2
import numpy as np
import pyarrow as pa
import pytest

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.labels import ClassMap
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.decode.reading import decode_scans
from braintumor_ray.explain.overlay import contact_sheet
from braintumor_ray.recipes.loader import load_recipe
from braintumor_ray.recipes.schema import LesionSection
from braintumor_ray.splits.splits import LeakReport
from braintumor_ray.training.augment import preview_augmentation
from braintumor_ray.training.guided_data import guided_by
from braintumor_ray.training.lesions import (
    SOME_TUMOR,
    Donor,
    LesionMaker,
    draw_lesion,
    heal,
    transplant,
)
from braintumor_ray.training.options import TrainOptions
from braintumor_ray.training.recipe_network import unit_preprocessing
from braintumor_ray.training.run import RunInputs, RunPlan, training_task
from braintumor_ray.training.run_data import RunData, class_map
from braintumor_ray.training.shards import Shards
from tests.builders import CLASSES, make_model, write_archive

NEGATIVE = 2


def head(size=128, tone=110):
    """A gray ellipse on black: a head without anything inside."""
    picture = np.zeros((size, size), np.uint8)
    cv2.ellipse(
        picture, (size // 2, size // 2), (size * 2 // 5, size * 9 // 20), 0, 0, 360, tone, -1
    )
    return picture


def tumor_at(left, top, side=20, size=128):
    mask = np.zeros((size, size), np.uint8)
    mask[top : top + side, left : left + side] = 255
    return mask


def rng(seed=0):
    return np.random.default_rng(seed)


class TestDrawing:
    def test_the_picture_changes_where_the_mask_is_and_hardly_elsewhere(self):
        plain, inside, outside = head(), [], []
        for seed in range(20):
            drawn = draw_lesion(rng(seed), plain)
            if drawn is None:
                continue
            change = cv2.absdiff(drawn[0], plain).astype(float)
            inside.append(change[drawn[1] > 0].mean())
            outside.append(change[drawn[1] == 0].mean())
        assert len(inside) >= 15
        assert np.mean(inside) > 5 * np.mean(outside)

    def test_lesions_lie_inside_the_head(self):
        plain = head()
        for seed in range(20):
            drawn = draw_lesion(rng(seed), plain)
            if drawn is not None:
                assert (plain[drawn[1] > 0] > 0).all()

    def test_a_picture_without_a_head_stays_as_it_is(self):
        assert draw_lesion(rng(), np.zeros((128, 128), np.uint8)) is None

    def test_the_same_draws_give_the_same_lesion(self):
        one, other = draw_lesion(rng(3), head()), draw_lesion(rng(3), head())
        assert np.array_equal(one[0], other[0])


class TestHealing:
    def test_a_bright_tumor_is_covered_by_the_other_half(self):
        picture, mask = head(), tumor_at(75, 40)
        picture[mask > 0] = 250
        healed = heal(picture, mask)
        assert np.abs(healed[mask > 0].astype(int) - 110).max() <= 2

    def test_a_tumor_across_the_middle_can_not_be_healed(self):
        assert heal(head(), tumor_at(54, 54)) is None


def test_a_transplanted_tumor_keeps_its_place_and_leaves_the_rest():
    donor_picture, mask = head(tone=60), tumor_at(75, 40)
    donor_picture[mask > 0] = 200
    plain = head(tone=110)
    shown = transplant(rng(), plain, Donor(donor_picture, mask, 0))
    assert shown[50, 85] > 150
    assert np.array_equal(shown[:, :40], plain[:, :40])


class TestMaker:
    def test_without_settings_nothing_changes(self):
        picture, mask = head(), tumor_at(75, 40)
        maker = LesionMaker(LesionSection(), NEGATIVE)
        assert maker(rng(), picture, mask, 0) == (picture, mask, 0)
        assert maker(rng(), picture, None, NEGATIVE) == (picture, None, NEGATIVE)

    def test_a_drawn_lesion_is_a_tumor_of_no_known_class(self):
        _, mask, label = LesionMaker(LesionSection(draw=1.0), NEGATIVE)(
            rng(), head(), None, NEGATIVE
        )
        assert label == SOME_TUMOR
        assert mask.any()

    def test_a_transplanted_one_has_its_donors_class(self):
        donor = Donor(head(), tumor_at(75, 40), 3)
        maker = LesionMaker(LesionSection(transplant=1.0), NEGATIVE, [donor])
        _, mask, label = maker(rng(), head(), None, NEGATIVE)
        assert label == 3
        assert np.array_equal(mask, donor.mask)

    def test_a_healed_scan_has_no_tumor(self):
        maker = LesionMaker(LesionSection(heal=1.0), NEGATIVE)
        _, mask, label = maker(rng(), head(), tumor_at(75, 40), 1)
        assert (mask, label) == (None, NEGATIVE)

    @pytest.mark.parametrize("label", [0, NEGATIVE])
    def test_scans_without_truth_are_never_healed_or_given_donors_that_are_not_there(self, label):
        maker = LesionMaker(LesionSection(heal=1.0, transplant=1.0), NEGATIVE)
        assert maker(rng(), head(), None, label)[2] == label


def test_the_preview_shows_what_is_trained_on(tmp_path, monkeypatch):
    """The head's square in its own grays, of the first stage's size, with drawn lesions."""
    write_archive(tmp_path / "scans", 12)
    catalog = load_catalog(tmp_path / "scans")
    recipe = load_recipe(
        "best", ["lesions.draw=1.0", "data.image_size=96", "stages.finetune.image_size=64"]
    )
    shown = {}

    def sheet(tiles, columns, captions, **_):
        shown.update(zip(captions, tiles, strict=True))
        return contact_sheet(tiles, columns, captions)

    monkeypatch.setattr("braintumor_ray.training.augment.contact_sheet", sheet)
    preview_augmentation(catalog, recipe, class_map(catalog, recipe), tmp_path / "sheet.png")
    drawn = [image for caption, image in shown.items() if caption.endswith(", lesion")]
    assert drawn
    assert drawn[0].shape == shown["epoch 1"].shape == (64, 64)
    cut = Preprocessing(96, recipe.data.interpolation, (0,) * 3, (1,) * 3, "head", "head")
    heads = {scan.image.tobytes() for scan in decode_scans(catalog, cut)}
    assert shown[CLASSES[0]].tobytes() in heads
    assert (tmp_path / "sheet.png").stat().st_size > 5000


def planned(labels, recipe):
    """A run whose scans all train, before it begins."""
    scan_ids = pa.array(range(len(labels)), pa.int64())
    columns = {"scan_id": scan_ids, "class_name": labels, "split": ["train"] * len(labels)}
    classes = ClassMap.parse(None, labels, recipe.data.negative_classes)
    shards, pixels = Shards("", (), False), unit_preprocessing(recipe)
    data = RunData(pa.table(columns), shards, classes, LeakReport(0, 0), {})
    model = make_model("small-cnn", classes=len(classes.classes))
    ready = RunInputs(classes, model, pixels, shards, None, "weights: random")
    options = TrainOptions(recipe, "run")
    guided = guided_by(options, None, pixels, data, print)
    return RunPlan(options, ready, data, guided, "none")


def test_where_all_classes_have_a_tumor_no_scan_counts_as_healthy():
    """Cheng's set: the first class is what decisions are against, and has tumors as the others."""
    labels = ["glioma", "meningioma", "pituitary"] * 4
    task = training_task(planned(labels, load_recipe("best")), None)
    assert task.guided_classes == (0, 1, 2)
    assert task.lesions is None
    assert task.train_rows == 12
    healthy = training_task(planned([*labels, "no_tumor"], load_recipe("best")), None)
    assert healthy.guided_classes == (0, 1, 3)
    assert healthy.lesions.negative == 2
    assert healthy.train_rows == 14


def test_lesions_are_drawn_without_guidance_too():
    labels = ["glioma", "no_tumor"] * 4
    for weight in (0, 1):
        recipe = load_recipe("best", [f"guidance.weight={weight}"])
        task = training_task(planned(labels, recipe), None)
        assert task.lesions is not None
        assert task.train_rows == 12
    assert planned(labels, load_recipe("demo")).guided is None


def test_balanced_weights_count_a_scan_as_often_as_it_is_shown():
    """Twice as many tumors, and each scan without one twice: as many of either are shown."""
    labels = ["glioma_tumor"] * 8 + ["no_tumor"] * 4
    for repeat, weights in ((1, [0.75, 1.5]), (2, [1.0, 1.0])):
        settings = ["class_weights=balanced", f"lesions.repeat={repeat}"]
        task = training_task(planned(labels, load_recipe("best", settings)), None)
        assert task.class_weights.tolist() == weights
        assert task.train_rows == 8 + 4 * repeat
