"""What guides a run: where its training scans have tumors, and which are drawn into them."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import pyarrow as pa

from braintumor_ray.catalog.reviewed import boxes_by_path, read_reviewed
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.errors import UsageError
from braintumor_ray.localization.truth import TruthIndex, load_truth, reviewed_truth
from braintumor_ray.models.classifier import Classifier
from braintumor_ray.progress import Log
from braintumor_ray.recipes.schema import Recipe
from braintumor_ray.training.guidance import packed_masks, unpack_mask
from braintumor_ray.training.lesions import BANK_SIZE, Donor, LesionMaker
from braintumor_ray.training.options import TrainOptions
from braintumor_ray.training.run_data import RunData
from braintumor_ray.training.shards import GuidedRows

ENOUGH_KNOWN = 0.1  # of the training scans with a tumor


def known_tumors(
    options: TrainOptions, model: Classifier, paths: Sequence[str], log: Log
) -> TruthIndex | None:
    """Where tumors are, read before anything is decoded; boxes of reviewers go before `--truth`.

    Args:
        options: of the run.
        model: its network.
        paths: of all scans: of two that share a tumor, one may be in another split.
        log: takes a line.

    Raises:
        TruthError: it cannot be read, or two scans share a tumor.
        UsageError: guidance was asked for and the head cannot be guided.
    """
    recipe = options.recipe
    wanted = options.truth is not None or recipe.lesions.active
    if wanted and recipe.guidance.weight and model.linear is None:
        raise UsageError(
            f"guidance needs the evidence of each cell, which model.head '{recipe.model.head}' on "
            f"{recipe.model.backbone} does not give; set model.head = 'linear', or leave out "
            "--truth and [lesions]"
        )
    truth = None if options.truth is None else load_truth(options.truth).of(paths)
    if options.labels is None:
        return truth
    reviewed = read_reviewed(options.labels)
    if further := sum(bool(seen.frame and seen.boxes) for seen in reviewed.values()):
        log(
            f"the boxes of {further} scans of '{options.labels}' are not used: they are on further "
            "frames of a file, and truth is of first ones"
        )
    if not boxes_by_path(reviewed):
        return truth
    if recipe.guidance.weight and model.linear is None:
        log(f"the boxes of '{options.labels}' are not used: this head cannot be guided by them")
        return truth
    boxes = reviewed_truth(options.labels).of(paths)
    return boxes if truth is None else truth.under(boxes)


@dataclass(frozen=True)
class Guided:
    """What guides a run.

    Attributes:
        rows: of the training scans, in the order of `RunData.of`.
        positive: indices of the classes with a tumor.
        lesions: changes which scans have one; None: nothing is changed.
        tumors: training scans of positive classes.
    """

    rows: GuidedRows
    positive: tuple[int, ...]
    lesions: LesionMaker | None
    tumors: int

    @property
    def knows_enough(self) -> bool:
        """Whether known tumors can teach where tumors are: a few boxes of a review cannot."""
        known = sum(mask is not None for mask in self.rows.masks)
        return known >= max(1, ENOUGH_KNOWN * self.tumors)

    @property
    def fingerprint(self) -> str:
        """Digest of the known tumors."""
        return sha256(b"".join(mask or b"-" for mask in self.rows.masks)).hexdigest()


def guided_by(
    options: TrainOptions,
    truth: TruthIndex | None,
    preprocessing: Preprocessing,
    data: RunData,
    log: Log,
) -> Guided | None:
    """Masks of the training scans and what is drawn into them; None: neither is of use.

    Raises:
        UsageError: `--truth` is of no training scan with a tumor.
    """
    recipe, classes = options.recipe, data.classes
    if not (recipe.lesions.active or (truth and recipe.guidance.weight)):
        return None
    scans = data.rows_of("train")
    size = recipe.data.image_size
    masks: list[bytes | None] = [None] * scans.num_rows
    if truth is not None:
        cropped = preprocessing.crop != "none"
        boxes = data.shards.boxes(scans["scan_id"].to_numpy()) if cropped else None
        required = options.truth is not None
        masks = packed_masks(scans, truth, classes.with_tumor, size, log, boxes, required=required)
    if not (any(masks) or recipe.lesions.active):
        return None
    positive = tuple(classes.classes.index(name) for name in classes.with_tumor)
    negative = [i for i in range(len(classes.classes)) if i not in positive]
    names = scans["class_name"].to_pylist()
    repeats = np.array([1 if n in classes.with_tumor else recipe.lesions.repeat for n in names])
    lesions = None
    if recipe.lesions.active and negative:
        donors = _donors(data, scans, masks, size) if recipe.lesions.transplant else []
        lesions = LesionMaker(recipe.lesions, negative[0], donors)
    tumors = sum(name in classes.with_tumor for name in names)
    return Guided(GuidedRows(masks, repeats.astype(np.int64)), positive, lesions, tumors)


def begin_gate(model: Classifier, guided: Guided | None) -> None:
    """Let an untrained gate begin half open where hardly a tumor is known.

    Only classes that see all cells can then find out where to look: a gate that begins shut leaves
    them nothing (validation accuracy after four epochs 0.44 instead of 0.83).
    """
    if guided is not None and not guided.knows_enough and model.neck is not None:
        model.neck.set_gate(0.0)


def without_somewhere(recipe: Recipe, guided: Guided | None) -> Recipe:
    """The recipe as workers train it: where enough tumors are known, the others are asked nothing.

    What is known teaches more exactly where tumors are.
    """
    if guided is None or not guided.knows_enough:
        return recipe
    guidance = recipe.guidance.model_copy(update={"somewhere": 0.0})
    return recipe.model_copy(update={"guidance": guidance})


def _donors(data: RunData, scans: pa.Table, masks: list[bytes | None], size: int) -> list[Donor]:
    """Training scans whose tumor may be transplanted."""
    ids = scans["scan_id"].to_numpy()
    known = {int(scan): mask for scan, mask in zip(ids, masks, strict=True) if mask is not None}
    order = {name: index for index, name in enumerate(data.classes.classes)}
    label = dict(zip(ids.tolist(), scans["class_name"].to_pylist(), strict=True))
    found = data.shards.squares_of(np.array(list(known), np.int64), size, BANK_SIZE)
    return [
        Donor(square, unpack_mask(known[scan], size), order[label[scan]]) for scan, square in found
    ]
