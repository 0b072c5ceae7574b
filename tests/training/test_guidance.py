"""Guidance: masks that follow the picture, and losses that move evidence to them."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from braintumor_ray.catalog.labels import ClassMap
from braintumor_ray.decode.head import WHOLE
from braintumor_ray.errors import UsageError
from braintumor_ray.localization.truth import load_truth
from braintumor_ray.models.neck import GATE_BIAS
from braintumor_ray.recipes.loader import load_recipe
from braintumor_ray.recipes.schema import AugmentSection, GuidanceSection
from braintumor_ray.training.augment import Augmenter
from braintumor_ray.training.finish import provisional_bundle
from braintumor_ray.training.guidance import (
    GuidanceLoss,
    coverage,
    pack_mask,
    packed_masks,
    unpack_mask,
)
from braintumor_ray.training.guided_data import (
    Guided,
    begin_gate,
    guided_by,
    known_tumors,
    without_somewhere,
)
from braintumor_ray.training.lesions import SOME_TUMOR
from braintumor_ray.training.loop import StepSettings, TrainableNetwork, train_epoch
from braintumor_ray.training.options import TrainOptions
from braintumor_ray.training.run_data import RunData
from braintumor_ray.training.shards import GuidedRows
from tests.builders import CLASSES, make_model
from tests.training.test_loop import PREPROCESSING

POSITIVE = (0, 1, 3)


def box_mask(size=64, box=(8, 16, 24, 40)):
    mask = np.zeros((size, size), bool)
    top, left, bottom, right = box
    mask[top:bottom, left:right] = True
    return mask


def batch_of(*coverages):
    return torch.tensor(np.stack(coverages), dtype=torch.float32)


@pytest.mark.parametrize("guided", [False, True])
def test_a_guided_network_keeps_the_cells_of_its_targets(guided):
    model = make_model()
    classes = ClassMap(CLASSES, {name: name for name in CLASSES}, tuple(CLASSES[:2]))
    bundle = provisional_bundle(
        load_recipe("demo"), model.architecture, PREPROCESSING, classes, model.state_dict(), "x",
        guided=guided,
    )  # fmt: skip
    assert (bundle.map_frame == WHOLE) == guided


def test_packing_keeps_every_pixel_and_takes_little():
    mask = box_mask(256)
    packed = pack_mask(mask)
    assert len(packed) < 200
    assert np.array_equal(unpack_mask(packed, 256) > 0, mask)


def test_coverage_is_the_share_of_each_cell():
    found = coverage(unpack_mask(pack_mask(box_mask(box=(0, 0, 12, 8))), 64), (8, 8))
    assert found[0, 0] == 1
    assert found[1, 0] == pytest.approx(0.5, abs=0.01)
    assert found.sum() == pytest.approx(1.5, abs=0.01)


def test_a_mask_moves_exactly_as_its_picture():
    settings = AugmentSection(
        rotation=20, shift=0.1, zoom=0.2, shear=5, horizontal_flip=True, fill="constant"
    )
    mask = unpack_mask(pack_mask(box_mask()), 64)
    for epoch in range(20):
        shown, kept = Augmenter(settings, 0, epoch).with_mask(mask, mask, scan_id=7)
        assert np.array_equal(shown, kept)


def test_scanner_styles_leave_the_mask_alone():
    chances = dict.fromkeys(
        ("resolution", "blur", "bias_field", "gamma", "noise", "background", "invert", "jpeg"), 1.0
    )
    image = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    mask = unpack_mask(pack_mask(box_mask()), 64)
    shown, kept = Augmenter(AugmentSection(**chances), 0, 0).with_mask(image, mask, 1)
    assert np.array_equal(kept, mask)
    assert shown.dtype == np.uint8
    assert not np.array_equal(shown, image)


def test_without_new_settings_a_picture_changes_as_it_always_did():
    """The draws of recipes of before stay theirs."""
    settings = AugmentSection(rotation=20, contrast=0.2, erase=1.0)
    image = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    assert int(Augmenter(settings, 0, 3)(image, 5).astype(int).sum()) == SUM_OF_BEFORE


SUM_OF_BEFORE = 271907


def test_a_known_tumor_is_not_erased():
    mask = unpack_mask(pack_mask(box_mask(box=(24, 24, 40, 40))), 64)
    image = np.where(mask > 0, 200, 100).astype(np.uint8)
    for epoch in range(60):
        shown, _ = Augmenter(AugmentSection(erase=1.0), 0, epoch).with_mask(image, mask, 3)
        assert (shown[mask > 0] == 200).mean() >= 0.7


class TestLoss:
    loss = GuidanceLoss(GuidanceSection(), POSITIVE)
    truth = coverage(unpack_mask(pack_mask(box_mask()), 64), (8, 8))

    def of(self, evidence, label=0, cells=None):
        cells = self.truth if cells is None else cells
        return float(self.loss(evidence, None, torch.tensor([label]), batch_of(cells)))

    def evidence(self, inside, outside, channel=0):
        cells = torch.full((1, 4, 8, 8), float(outside))
        cells[0, channel][torch.tensor(self.truth) > 0] = float(inside)
        return cells

    def test_evidence_in_the_tumor_costs_least(self):
        right = self.of(self.evidence(4, -4))
        assert right < self.of(self.evidence(-4, -4))
        assert right < self.of(self.evidence(4, 4))
        assert right < self.of(self.evidence(-4, 4))

    def test_evidence_of_another_tumor_class_does_not_count_as_found(self):
        assert self.of(self.evidence(4, -4)) < self.of(self.evidence(4, -4, channel=1))

    def test_a_scan_without_a_tumor_should_have_no_evidence_of_any(self):
        nothing = np.zeros((8, 8), np.float32)
        quiet, loud = torch.full((1, 4, 8, 8), -4.0), torch.full((1, 4, 8, 8), 4.0)
        assert self.of(quiet, 2, nothing) < 0.3 < 10 < self.of(loud, 2, nothing)

    def test_the_negative_class_is_left_alone(self):
        cells = self.evidence(4, -4)
        changed = cells.clone()
        changed[:, 2] = 9.0
        assert self.of(cells) == self.of(changed)

    def test_a_drawn_lesion_is_asked_of_no_class_and_forbidden_to_none(self):
        """The class loss asks for some tumor there: guidance must not pull the other way."""
        evidence = torch.randn(1, 4, 8, 8, requires_grad=True)
        cells = batch_of(self.truth)
        self.loss(evidence, None, torch.tensor([SOME_TUMOR]), cells).backward()
        slope = evidence.grad[0, list(POSITIVE)]
        inside = cells[0].expand_as(slope) == 1
        assert (slope[inside] == 0).all()
        assert (slope[cells[0].expand_as(slope) == 0] > 0).all()

    def test_scans_whose_tumor_is_not_known_take_no_part(self):
        unknown = np.full((8, 8), np.nan, np.float32)
        evidence = torch.randn(2, 4, 8, 8)
        both = self.loss(evidence, None, torch.tensor([0, 1]), batch_of(self.truth, unknown))
        alone = self.loss(evidence[:1], None, torch.tensor([0]), batch_of(self.truth))
        assert float(both) == pytest.approx(float(alone))
        assert self.of(evidence[:1], 0, unknown) == 0

    def test_a_map_that_is_zero_everywhere_still_learns(self):
        """A loss on the ReLU has no gradient there."""
        evidence = torch.full((1, 4, 8, 8), -3.0, requires_grad=True)
        self.loss(evidence, None, torch.tensor([0]), batch_of(self.truth)).backward()
        assert (evidence.grad[0, 0][torch.tensor(self.truth) > 0] < 0).all()


class TestATumorWhosePlaceIsNotKnown:
    """Of the gate, or of the evidence of its class, some cells are asked and not many."""

    loss = GuidanceLoss(GuidanceSection(somewhere=1.0), POSITIVE)
    unknown = np.full((10, 10), np.nan, np.float32)

    def of(self, gate, label=0):
        evidence = torch.zeros(1, 4, 10, 10)
        return float(self.loss(evidence, gate, torch.tensor([label]), batch_of(self.unknown)))

    def gate(self, shown):
        cells = torch.full((1, 1, 10, 10), -5.0)
        cells.flatten()[:shown] = 5.0
        return cells

    def test_a_few_open_cells_cost_less_than_none_and_than_all(self):
        none, few, all_of_them = (self.of(self.gate(shown)) for shown in (0, 5, 100))
        assert few < 0.1 < 4 < all_of_them
        assert few < 0.1 < 4 < none

    def test_a_shut_gate_learns_to_open(self):
        gate = self.gate(0).requires_grad_(True)
        evidence = torch.zeros(1, 4, 10, 10)
        self.loss(evidence, gate, torch.tensor([0]), batch_of(self.unknown)).backward()
        assert (gate.grad < 0).sum() == 1, "the cell that is nearest to open, of a hundred"

    def test_without_a_gate_the_evidence_of_the_class_is_asked(self):
        evidence = torch.full((1, 4, 10, 10), -5.0)
        before = float(self.loss(evidence, None, torch.tensor([1]), batch_of(self.unknown)))
        evidence[0, 0, 0, :5] = 5.0
        other = float(self.loss(evidence, None, torch.tensor([1]), batch_of(self.unknown)))
        evidence[0, 1, 0, :5] = 5.0
        own = float(self.loss(evidence, None, torch.tensor([1]), batch_of(self.unknown)))
        assert own < 0.1 < before == other

    def test_known_scans_are_as_before(self):
        gate, evidence = torch.randn(1, 1, 8, 8), torch.randn(1, 4, 8, 8)
        cells, labels = batch_of(TestLoss.truth), torch.tensor([0])
        without = GuidanceLoss(GuidanceSection(), POSITIVE)
        assert self.loss(evidence, gate, labels, cells) == without(evidence, gate, labels, cells)


@pytest.mark.parametrize(("known", "enough"), [(0, False), (2, False), (4, True), (40, True)])
def test_where_hardly_a_tumor_is_known_the_gate_begins_half_open_and_scans_are_asked(known, enough):
    model = make_model("mobilenetv2_100", neck="topdown", neck_stride=16, gate=True)
    begin_gate(model, None)
    assert float(model.neck.gate.bias) == GATE_BIAS
    masks = [b"mask"] * known + [None] * (50 - known)  # ten scans have no tumor
    guided = Guided(GuidedRows(masks, np.ones(50, np.int64)), POSITIVE, None, 40)
    begin_gate(model, guided)
    assert float(model.neck.gate.bias) == (GATE_BIAS if enough else 0.0)
    best = load_recipe("best")
    assert without_somewhere(best, None) == best
    assert best.guidance.somewhere > 0
    asked = without_somewhere(best, guided).guidance.somewhere
    assert asked == (0.0 if enough else best.guidance.somewhere)


def test_a_few_steps_of_guidance_move_the_evidence_into_the_tumor():
    torch.manual_seed(0)
    model = make_model("small-cnn", "linear", 64, pooling="lse").requires_grad_(True)
    mask = box_mask()
    random = np.random.default_rng(0)
    images = random.integers(0, 60, (8, 64, 64), dtype=np.uint8)
    images[:, mask] += np.uint8(120)
    cells = torch.tensor(coverage(unpack_mask(pack_mask(mask), 64), (8, 8))).repeat(8, 1, 1)
    labels = torch.zeros(8, dtype=torch.int64)
    settings = StepSettings(
        PREPROCESSING, torch.ones(4), guidance=GuidanceLoss(GuidanceSection(), POSITIVE)
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    batches = [(torch.from_numpy(images), labels, cells)] * 40
    train_epoch(TrainableNetwork(model.train(), guided=True), optimizer, batches, settings)
    model.eval()
    with torch.no_grad():
        from braintumor_ray.models.classifier import normalize

        shown = model.evidence(model.features(normalize(torch.from_numpy(images), PREPROCESSING)))[
            :, 0
        ].relu()
    assert float((shown * cells).sum() / shown.sum()) > 0.8


class TestMasksOfScans:
    def scans(self, paths, classes):
        count = len(paths)
        return pa.table(
            {
                "path": paths,
                "frame": [0] * count,
                "height": [100] * count,
                "width": [200] * count,
                "class_name": classes,
            }
        )

    def truth(self, tmp_path, *lines):
        file = tmp_path / "boxes.csv"
        file.write_text("path,x_min,y_min,x_max,y_max\n" + "\n".join(lines) + "\n")
        return load_truth(file)

    def test_boxes_become_masks_of_the_networks_size(self, tmp_path):
        truth = self.truth(tmp_path, "a/1.png,0.25,0.5,0.5,0.75")
        lines = []
        scans = self.scans(["a/1.png", "a/2.png", "n/3.png"], ["glioma", "glioma", "none"])
        found = packed_masks(scans, truth, ["glioma"], 64, lines.append)
        assert found[1] is None
        assert found[2] is None
        assert np.argwhere(unpack_mask(found[0], 64)).min(axis=0).tolist() == [32, 16]
        assert "known in 1 of 2 training scans" in lines[0]

    def test_a_class_without_any_truth_is_warned_of(self, tmp_path):
        truth = self.truth(tmp_path, "a/1.png,0.25,0.5,0.5,0.75")
        lines = []
        scans = self.scans(["a/1.png", "b/2.png"], ["glioma", "meningioma"])
        packed_masks(scans, truth, ["glioma", "meningioma"], 64, lines.append)
        assert any("no tumor of class 'meningioma'" in line for line in lines)

    @pytest.mark.parametrize("settings", [[], ["lesions.draw=0.5"]])
    def test_boxes_of_a_review_that_are_of_no_training_scan_guide_nothing(self, tmp_path, settings):
        labels = tmp_path / "labels.jsonl"
        box = '"boxes": [[0.2, 0.2, 0.4, 0.4]]'
        labels.write_text(
            "".join(f'{{"path": "{path}", "frame": 0, {box}}}\n' for path in ("v/2.png", "n/3.png"))
        )
        scans = self.scans(["a/1.png", "v/2.png", "n/3.png"], ["glioma", "glioma", "none"])
        scans = scans.append_column("split", [["train", "val", "train"]])
        classes = ClassMap(("glioma", "none"), {}, ("glioma",))
        data = RunData(scans, None, classes, None, {})
        recipe = load_recipe("demo", ["guidance.weight=1", *settings])
        lines = []

        def guided(**options):
            options = TrainOptions(recipe, tmp_path, "none", labels=str(labels), **options)
            model = make_model("resnet18")
            truth = known_tumors(options, model, scans["path"].to_pylist(), lines.append)
            return guided_by(options, truth, PREPROCESSING, data, lines.append)

        found = guided()
        assert (found is None) == (not settings)
        assert lines == [
            f"guidance: no box of '{labels}' is of a training scan with a tumor"
        ]  # once, and the run goes on
        with pytest.raises(UsageError, match="none of its"):
            guided(truth=str(labels))

    def test_boxes_on_further_frames_are_told_not_to_be_used(self, tmp_path):
        labels = tmp_path / "labels.jsonl"
        box = '"boxes": [[0.2, 0.2, 0.4, 0.4]]'
        labels.write_text("".join(f'{{"path": "v.nii", "frame": {n}, {box}}}\n' for n in (7, 8)))
        options = TrainOptions(load_recipe("demo"), tmp_path, "none", labels=str(labels))
        lines = []
        assert known_tumors(options, make_model("resnet18"), ["v.nii"] * 9, lines.append) is None
        assert lines == [
            f"the boxes of 2 scans of '{labels}' are not used: they are on further frames of a "
            "file, and truth is of first ones"
        ]

    def test_truth_of_other_scans_is_refused_before_training(self, tmp_path):
        truth = self.truth(tmp_path, "z/9.png,0.25,0.5,0.5,0.75")
        with pytest.raises(UsageError, match="none of its 1 entries"):
            packed_masks(self.scans(["a/1.png"], ["glioma"]), truth, ["glioma"], 64, print)
