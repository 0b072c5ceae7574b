import cv2
import numpy as np
import pyarrow as pa
import pytest

from braintumor_ray.catalog.labels import ClassMap
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.decode.reading import decode_scans
from braintumor_ray.errors import UsageError
from braintumor_ray.recipes.schema import AugmentSection
from braintumor_ray.training.augment import Augmenter, augment_batch
from tests.builders import CLASSES, disc_scan

NEGATIVE = ("no_tumor", "no")


class TestClasses:
    def test_every_label_is_a_class_by_itself(self):
        classes = ClassMap.parse(None, CLASSES, NEGATIVE)
        assert classes.classes == tuple(sorted(CLASSES))
        assert set(classes.positive) == set(CLASSES) - {"no_tumor"}

    def test_labels_can_be_merged_renamed_and_left_out(self):
        spec = "tumor=glioma_tumor+pituitary_tumor,no_tumor"
        classes = ClassMap.parse(spec, CLASSES, NEGATIVE)
        assert classes.classes == ("no_tumor", "tumor")
        assert classes.positive == ("tumor",)
        assert classes.apply("pituitary_tumor") == "tumor"
        assert classes.apply("meningioma_tumor") is None
        assert classes.indices(["no_tumor", "glioma_tumor", "meningioma_tumor", None]) == [
            0,
            1,
            -1,
            -1,
        ]

    def test_the_mapping_can_be_written_and_read_again(self):
        classes = ClassMap.parse("tumor=glioma_tumor+pituitary_tumor,no_tumor", CLASSES, NEGATIVE)
        assert ClassMap.parse(classes.to_spec(), CLASSES, NEGATIVE) == classes

    def test_without_a_negative_class_the_first_is_the_reference(self):
        assert ClassMap.parse(None, ["a", "b", "c"], NEGATIVE).positive == ("b", "c")

    @pytest.mark.parametrize(
        ("spec", "labels", "words"),
        [
            ("x=glioma,no", ["no"], "'glioma'"),
            ("x=a+a,b", ["a", "b"], "named twice"),
            ("x=a,x=b", ["a", "b"], "is there twice"),
            ("x=,b", ["a", "b"], "NAME"),
            (None, ["a"], "at least two"),
            (None, [], "no labels"),
            (None, ["no", "no_tumor"], "negative_classes"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, spec, labels, words):
        with pytest.raises(UsageError, match=words):
            ClassMap.parse(spec, labels, NEGATIVE)


FULL = AugmentSection(rotation=20, shift=0.2, zoom=0.15, shear=0.15, horizontal_flip=True)


class TestAugmentation:
    def test_it_depends_on_seed_epoch_and_scan_and_on_nothing_else(self):
        image = disc_scan(3, (64, 64))
        base = Augmenter(FULL, 1, 2)(image, -5)
        assert np.array_equal(base, Augmenter(FULL, 1, 2)(image, -5))
        for other in (Augmenter(FULL, 2, 2)(image, -5), Augmenter(FULL, 1, 3)(image, -5)):
            assert not np.array_equal(base, other)
        assert not np.array_equal(base, Augmenter(FULL, 1, 2)(image, 5))

    def test_every_scan_of_a_batch_has_a_draw_of_its_own(self):
        image = disc_scan(3, (64, 64))
        batch = augment_batch(np.stack([image] * 4), np.arange(4), Augmenter(FULL, 0, 0))
        assert len({b.tobytes() for b in batch}) == 4
        alone = augment_batch(image[None], np.array([2]), Augmenter(FULL, 0, 0))
        assert np.array_equal(batch[2], alone[0])

    def test_without_settings_nothing_changes(self):
        image = disc_scan(3, (64, 64))
        assert np.array_equal(Augmenter(AugmentSection(), 0, 0)(image, 1), image)

    def test_a_smaller_result_is_the_same_change_at_another_scale(self):
        image = cv2.GaussianBlur(disc_scan(3, (64, 64)), (0, 0), 3)
        plain = Augmenter(FULL, 0, 0)(image, 1)
        small = Augmenter(FULL, 0, 0, size=32)(image, 1)
        assert small.shape == (32, 32)
        expected = cv2.resize(plain, (32, 32), interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - expected).mean() < 3

    def test_flips_mirror_exactly(self):
        image = disc_scan(3, (64, 64))
        found = {
            Augmenter(AugmentSection(horizontal_flip=True), 0, 0)(image, i).tobytes()
            for i in range(20)
        }
        assert found == {image.tobytes(), np.ascontiguousarray(image[:, ::-1]).tobytes()}

    @pytest.mark.parametrize(("fill", "value"), [("constant", 0), ("nearest", 200)])
    def test_fill_modes(self, fill, value):
        image = np.full((64, 64), 200, np.uint8)
        moved = Augmenter(AugmentSection(shift=0.5, fill=fill), 3, 0)(image, 1)
        assert moved.min() == value

    def test_rotation_stays_within_its_range(self):
        image = np.zeros((65, 65), np.uint8)
        image[8:12, 30:35] = 255  # a mark above the center
        for scan in range(50):
            turned = Augmenter(AugmentSection(rotation=20, fill="constant"), 0, 0)(image, scan)
            rows, columns = np.nonzero(turned > 100)
            angle = np.degrees(np.arctan2(columns.mean() - 32, 32 - rows.mean()))
            assert abs(angle) <= 21


class TestPreprocessing:
    def test_squares_of_the_right_size_are_not_touched(self):
        image = disc_scan(1, (64, 64))
        assert Preprocessing(64, "area", (0, 0, 0), (1, 1, 1)).resize(image) is image

    def test_area_averages(self):
        image = np.array([[0, 100], [100, 200]], np.uint8).repeat(32, 0).repeat(32, 1)
        small = Preprocessing(32, "area", (0, 0, 0), (1, 1, 1)).resize(image)
        assert small[0, 0] == 0
        assert small[-1, -1] == 200
        assert small.mean() == pytest.approx(100, abs=0.5)


class TestErasing:
    """One rectangle of one gray, in the given share of the draws, that leaves most tumors."""

    GRADIENT = np.tile(np.arange(100, dtype=np.uint8), (100, 1))

    def changed(self, scan, erase=1.0):
        out = Augmenter(AugmentSection(erase=erase), 0, 0)(self.GRADIENT, scan)
        return out, out != self.GRADIENT

    def test_area_shape_and_gray(self):
        for scan in range(200):
            out, changed = self.changed(scan)
            rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
            box = out[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert len(np.unique(box)) == 1
            # A column of the gradient may have the same gray already: a side may read one less.
            assert 0.015 * 100**2 <= box.size <= 0.16 * 100**2

    def test_probability(self):
        share = np.mean([self.changed(scan, 0.3)[1].any() for scan in range(1000)])
        assert 0.25 < share < 0.35

    def test_the_source_is_not_changed(self):
        before = self.GRADIENT.copy()
        self.changed(0)
        assert np.array_equal(before, self.GRADIENT)

    def test_off_draws_nothing_more(self):
        """Recipes without it keep their pictures."""
        for scan in range(20):
            off = Augmenter(FULL, 0, 0)(self.GRADIENT, scan)
            on = Augmenter(FULL.model_copy(update={"erase": 1.0}), 0, 0)(self.GRADIENT, scan)
            assert 0.5 < np.mean(off == on) < 1.0


def test_frames_of_a_file_are_read_once(tmp_path, monkeypatch):
    from PIL import Image

    from braintumor_ray.decode import files

    pages = [Image.fromarray(disc_scan(i)) for i in range(5)]
    path = str(tmp_path / "stack.tif")
    pages[0].save(path, save_all=True, append_images=pages[1:])
    opened = []
    original = files.read_file
    monkeypatch.setattr(
        files, "read_file", lambda uri, limits: opened.append(uri) or original(uri, limits)
    )
    preprocessing = Preprocessing(64, "area", (0, 0, 0), (1, 1, 1))
    rows = pa.table({"uri": [path] * 5, "frame": range(5)})
    scans = list(decode_scans(rows, preprocessing))
    assert opened == [path]
    assert [scan.status for scan in scans] == ["ok"] * 5
    assert len({scan.pixel_sha256 for scan in scans}) == 5
