"""Guidance: where the evidence should lie, as part of the loss.

A tumor's mask travels with its scan, is warped exactly as the picture is, and becomes the share of
each cell of the map that the tumor covers. The maps are closed form, so that their losses need no
second backward pass. Nothing of this is needed at inference.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from braintumor_ray.decode.head import WHOLE, Box, cut
from braintumor_ray.errors import UsageError
from braintumor_ray.localization.truth import TruthIndex
from braintumor_ray.progress import Log
from braintumor_ray.recipes.schema import GuidanceSection
from braintumor_ray.training.lesions import SOME_TUMOR
from braintumor_ray.types import GrayImage

FULL = 255
LEAST_SHARE, MOST_SHARE = 0.01, 0.06  # of the cells, that a tumor covers
_FINE = (1024, 1024)  # of a mask before it is cut, pixels
_SHARPNESS = 10.0  # of the softplus: evidence is small where the gate is nearly shut


@dataclass(frozen=True)
class GuidanceLoss:
    """Losses on the evidence per cell.

    Attributes:
        settings: the recipe's [guidance] table.
        positive: indices of the positive classes.
    """

    settings: GuidanceSection
    positive: tuple[int, ...]

    def __call__(
        self, evidence: Tensor, gate: Tensor | None, labels: Tensor, coverage: Tensor
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            evidence: (B, k, h, w), before the ReLU: where a map is zero it must learn, too.
            gate: logits of the neck's gate (B, 1, h, w); None: there is none, and the evidence
                itself learns where tumors are.
            labels: int64 (B,).
            coverage: float32 (B, h, w), share of each cell that tumor covers; NaN where unknown.
        """
        known = ~coverage[:, 0, 0].isnan()
        loss = evidence.sum() * 0.0
        if known.any():
            shown = None if gate is None else gate[known].float()
            loss = self._known(evidence[known].float(), shown, labels[known], coverage[known])
        if self.settings.somewhere and not known.all():
            cells = self._cells(evidence, gate, labels)[~known]
            loss = loss + self.settings.somewhere * _somewhere_loss(
                cells, self.settings.outside, len(labels)
            )
        return self.settings.weight * loss

    def _known(
        self, evidence: Tensor, gate: Tensor | None, labels: Tensor, coverage: Tensor
    ) -> Tensor:
        """The loss of scans whose tumor is known, or that have none."""
        classes = torch.tensor(self.positive, device=evidence.device)
        own = coverage[:, None] * (labels[:, None] == classes)[:, :, None, None]
        if gate is None:  # a drawn lesion is of no class: none is asked of it, none forbidden
            drawn = coverage[:, None] * (labels == SOME_TUMOR)[:, None, None, None]
            loss = self._where(evidence[:, classes], own, 1 - own - drawn)
        else:
            loss = self._where(gate, coverage[:, None], 1 - coverage[:, None])
        if self.settings.mass:
            loss = loss + self.settings.mass * _mass_loss(evidence[:, classes], own)
        return loss

    @staticmethod
    def _cells(evidence: Tensor, gate: Tensor | None, labels: Tensor) -> Tensor:
        """What learns where the tumor of each scan is: float32 (B, cells)."""
        cells = evidence[torch.arange(len(labels)), labels] if gate is None else gate[:, 0]
        return cells.float().flatten(1)

    def _where(self, cells: Tensor, target: Tensor, rest: Tensor) -> Tensor:
        """Positive in the target, negative in the rest, (B, c, h, w); the two averaged apart."""
        outside = (rest * functional.softplus(cells)).sum(dim=1).mean()
        loss = _inside(cells, target) + self.settings.outside * outside
        if self.settings.overlap:
            loss = loss + self.settings.overlap * _dice_loss(cells, target)
        return loss


def _inside(cells: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy inside tumors, each tumor's cells averaged first."""
    area = target.sum(dim=(1, 2, 3))
    has = area > 0
    if not has.any():
        return cells.sum() * 0.0
    losses = (target * functional.softplus(-cells)).sum(dim=(1, 2, 3)) / area.clamp(min=0.25)
    return losses[has].mean()


def _dice_loss(cells: Tensor, target: Tensor) -> Tensor:
    """1 - Dice of the evidence's sigmoid and the coverage, over scans with a tumor."""
    area = target.sum(dim=(2, 3))
    scan, channel = (area > 0).nonzero(as_tuple=True)
    if not len(scan):
        return cells.sum() * 0.0
    shown, truth = cells[scan, channel].sigmoid(), target[scan, channel]
    common = (shown * truth).sum(dim=(1, 2))
    both = shown.sum(dim=(1, 2)) + truth.sum(dim=(1, 2))
    return (1 - (2 * common + 0.5) / (both + 0.5)).mean()


def _somewhere_loss(cells: Tensor, outside: float, batch: int) -> Tensor:
    """Some cells are positive and most are negative, (n, cells) of scans with a tumor somewhere.

    Multiple-instance learning with bounds on the size (Kervadec et al. 2019, arXiv 1805.04628):
    without it all that is known of a gate is where it must be shut, and it never opens.
    """
    count = cells.shape[1]
    ordered = cells.sort(dim=1, descending=True).values
    seen = functional.softplus(-ordered[:, : max(1, round(LEAST_SHARE * count))]).mean(dim=1)
    rest = functional.softplus(ordered[:, round(MOST_SHARE * count) :]).mean(dim=1)
    return (seen + outside * rest).sum() / batch


def _mass_loss(cells: Tensor, target: Tensor) -> Tensor:
    """-log of the share of the evidence that lies inside, over scans with a tumor.

    Softplus replaces the ReLU of the map, as it has a gradient everywhere.
    """
    scan, channel = (target.sum(dim=(2, 3)) > 0).nonzero(as_tuple=True)
    if not len(scan):
        return cells.sum() * 0.0
    shown = functional.softplus(cells[scan, channel], beta=_SHARPNESS)
    share = (shown * target[scan, channel]).sum(dim=(1, 2)) / shown.sum(dim=(1, 2))
    return -(share + 1e-4).log().mean()


def coverage(mask: GrayImage, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Share of each cell that a mask, uint8 (S, S) of 0 to 255, covers: float32 (h, w), 0 to 1."""
    cells = cv2.resize(mask, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(cells, np.float32) / np.float32(FULL)


def pack_mask(mask: npt.NDArray[np.bool_]) -> bytes:
    """A mask (S, S) as bytes: a box takes about a hundred."""
    return zlib.compress(np.packbits(mask).tobytes(), 6)


def unpack_mask(packed: bytes, size: int) -> GrayImage:
    """The inverse of `pack_mask`: uint8 (S, S), 0 or 255."""
    bits = np.frombuffer(zlib.decompress(packed), np.uint8)
    return np.unpackbits(bits, count=size * size).reshape(size, size) * np.uint8(FULL)


def packed_masks(
    scans: pa.Table,
    truth: TruthIndex,
    positive: Sequence[str],
    size: int,
    log: Log,
    boxes: Sequence[Box] | None = None,
    *,
    required: bool = True,
) -> list[bytes | None]:
    """The tumor of each training scan at the network's size, packed; None where it is not known.

    Only the given scans are looked up: those of validation and test must not be among them.

    Args:
        scans: catalog rows with path, frame, height, width and class_name.
        truth: masks, boxes or outlines.
        positive: classes that have a tumor.
        size: side of the network's input.
        log: takes what was found and what was not.
        boxes: the part of its picture that each scan's square shows; None: all of it.
        required: refuse truth of other scans. Boxes of a review may all be of a test split.

    Raises:
        UsageError: the truth belongs to no scan of a positive class, and is required.
        TruthError: a mask cannot be read, or two scans share one.
    """
    columns = [scans[n].to_pylist() for n in ("path", "frame", "height", "width", "class_name")]
    truth = truth.of(columns[0])
    found: list[bytes | None] = []
    shown = boxes or [WHOLE] * scans.num_rows
    for path, frame, height, width, name, box in zip(*columns, shown, strict=True):
        mask = None
        if name in positive:
            full = None if height is None or width is None else (int(height), int(width))
            mask = truth.mask(path, (size, size) if box == WHOLE else _FINE, full, frame)
        if mask is not None and box != WHOLE:
            mask = cut(mask.astype(np.uint8) * np.uint8(FULL), box, size) > FULL // 2
        found.append(pack_mask(mask) if mask is not None and mask.any() else None)
    if required or any(found):
        _report(columns[4], found, positive, truth, log)
    else:
        log(f"guidance: no box of '{truth.location}' is of a training scan with a tumor")
    return found


def _report(
    names: Sequence[str | None],
    found: Sequence[bytes | None],
    positive: Sequence[str],
    truth: TruthIndex,
    log: Log,
) -> None:
    guided = sum(packed is not None for packed in found)
    tumors = sum(name in positive for name in names)
    if not guided:
        raise UsageError(
            f"--truth '{truth.location}': none of its {len(truth)} entries belongs to one of "
            f"{tumors} training scans with a tumor; paths are compared below the catalog's root"
        )
    log(
        f"guidance: the tumor is known in {guided} of {tumors} training scans with one; "
        f"{len(names) - tumors} without a tumor count as empty"
    )
    for name in positive:
        members = [packed for own, packed in zip(names, found, strict=True) if own == name]
        if members and not any(packed is not None for packed in members):
            log(
                f"warning: no tumor of class '{name}' is known: its scans cannot teach where "
                "tumors are"
            )
