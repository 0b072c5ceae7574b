"""Galleries: mistakes, worst first, and good predictions, each scan with its heatmaps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from braintumor_ray.decode.head import WHOLE
from braintumor_ray.decode.preprocess import shrunk
from braintumor_ray.decode.reading import decode_scans
from braintumor_ray.evaluation.evaluated import Evaluated
from braintumor_ray.explain.overlay import Verdict, contact_sheet, panel, tiles_of, write_png
from braintumor_ray.explain.regions import head_weights
from braintumor_ray.localization.truth import TruthIndex
from braintumor_ray.metrics.verdicts import disagreement
from braintumor_ray.pages.names import scan_name
from braintumor_ray.pages.pictures import Picture, jpeg_uri, load_pictures, side_by_side, spread
from braintumor_ray.predict.predictor import Predictor, normalized_entropy
from braintumor_ray.types import Ints

LONGEST = 480
PANEL_WIDTH = 900

TITLES: Mapping[str, tuple[str, str]] = {
    "false_negatives": (
        "False negatives",
        "Scans with a tumor that the decision at the threshold missed, surest miss first.",
    ),
    "false_positives": (
        "False positives",
        "Called tumor at the threshold without one, surest mistake first.",
    ),
    "confused_types": (
        "Confused types",
        "The decision was right, the likeliest class was not; surest mistake first.",
    ),
    "true_positives": (
        "True positives",
        "Decision and likeliest class right, for comparison: from the surest to the least sure.",
    ),
    "least_certain": ("Least certain", "Highest entropy first, right or wrong."),
    "most_certain": ("Most certain", "Lowest entropy first, right or wrong."),
}


@dataclass(frozen=True)
class Gallery:
    """Some scans under one heading; `tiles` are ready for a page, `panels` are the pictures."""

    name: str
    title: str
    text: str
    total: int
    tiles: list[dict[str, Any]]
    panels: list[Picture]


def choose_galleries(evaluated: Evaluated, most: int) -> dict[str, Ints]:
    """Rows of the evaluated catalog for each gallery, in the order they are shown.

    Args:
        evaluated: with at least one measured scan.
        most: scans shown per gallery.

    Returns:
        Every fitting row, per name in `TITLES`, but one of each group of copies, in the order of
        that gallery: the caller shows the first `most` of them. `true_positives`, `least_certain`
        and `most_certain` hold `most` at most.
    """
    rows = evaluated.measured
    truth = np.isin(evaluated.truth.indices, evaluated.positive)[rows]
    decided = evaluated.decisions[rows]
    right = evaluated.predicted[rows] == evaluated.truth.indices[rows]
    score = evaluated.scores[rows]
    entropy = normalized_entropy(evaluated.probs)
    confidence = evaluated.probs.max(axis=1)
    everything = np.ones(len(rows), bool)
    wanted = {
        "false_negatives": (truth & ~decided, score),
        "false_positives": (~truth & decided, -score),
        "confused_types": ((truth == decided) & ~right, -confidence),
        "true_positives": (truth & decided & right, -score),
        "least_certain": (everything, -entropy),
        "most_certain": (everything, entropy),
    }
    copies = evaluated.outputs.image_groups[rows]
    order = {name: _ordered(fits, key, copies) for name, (fits, key) in wanted.items()}
    order["true_positives"] = spread(order["true_positives"], most)
    for name in ("least_certain", "most_certain"):
        order[name] = order[name][:most]
    return {name: rows[index] for name, index in order.items()}


def draw_galleries(
    predictor: Predictor,
    evaluated: Evaluated,
    *,
    most: int = 6,
    truth: TruthIndex | None = None,
) -> list[Gallery]:
    """Read the chosen scans again, explain them and draw a panel for each.

    The maps are of the squares that were measured; the picture keeps the scan's aspect. Galleries
    without a scan are left out.
    """
    chosen = {name: rows.tolist() for name, rows in choose_galleries(evaluated, most).items()}
    wanted = sorted({row for rows in chosen.values() for row in rows[:most]})
    drawing = _Drawing(predictor, evaluated, truth)
    drawn = drawing.panels(wanted)
    galleries = []
    for name, rows in chosen.items():
        shown = [row for row in rows[:most] if row in drawn]
        panels = [drawn[row].panel for row in shown]
        tiles = [{"image": jpeg_uri(drawn[row].strip), **drawing.caption(row)} for row in shown]
        if shown:
            galleries.append(Gallery(name, *TITLES[name], len(rows), tiles, panels))
    return galleries


def write_galleries(galleries: Sequence[Gallery], folder: Path) -> list[str]:
    """Write each gallery as a contact sheet, `gallery_NAME.png`; returns the names."""
    names = []
    for gallery in galleries:
        captions = [scan_name(tile) for tile in gallery.tiles]
        names.append(f"gallery_{gallery.name}.png")
        write_png(folder / names[-1], contact_sheet(gallery.panels, 2, captions))
    return names


class _Drawn(NamedTuple):
    """A scan with its maps: with all words for a file, without any for a page with captions."""

    panel: Picture
    strip: Picture


@dataclass(frozen=True)
class _Drawing:
    """Panels and captions of an evaluation's scans."""

    predictor: Predictor
    evaluated: Evaluated
    truth: TruthIndex | None

    def panels(self, rows: list[int]) -> dict[int, _Drawn]:
        """A drawing per row; rows whose scan cannot be read any more are left out."""
        table = self.evaluated.rows.take(pa.array(rows, pa.int64()))
        limits = self.evaluated.limits
        pictures = load_pictures(table, LONGEST, limits)
        scans = decode_scans(table, self.predictor.bundle.preprocessing, limits=limits)
        read = [
            (row, picture, scan.image, scan.box or WHOLE)
            for row, picture, scan in zip(rows, pictures, scans, strict=True)
            if picture is not None and scan.image is not None
        ]
        squares, boxes = [image for _, _, image, _ in read], [box for *_, box in read]
        heads = head_weights(squares, self.predictor.cam_shape)
        explained = self.predictor.predict(squares, heads, boxes)
        return {
            row: self._drawn(row, picture, {m: explained[m][at] for m in self.predictor.methods})
            for at, (row, picture, *_) in enumerate(read)
        }

    def _drawn(self, row: int, picture: Picture, cams: Mapping[str, NDArray[Any]]) -> _Drawn:
        caption, mask = self.caption(row), self._mask(row, picture)
        drawn = panel(
            picture,
            cams,
            predicted=caption["predicted"],
            probability=caption["probability"],
            true_class=caption["true_class"],
            layout="compact",
            mask=mask,
            verdict=Verdict(
                caption["decision"],
                caption["tumour_probability"],
                caption["threshold"],
                caption["decision_right"],
            ),
        )
        strip = side_by_side(tiles_of(picture, cams, mask))
        return _Drawn(shrunk(drawn, PANEL_WIDTH), shrunk(strip, PANEL_WIDTH))

    def _mask(self, row: int, picture: Picture) -> NDArray[np.bool_] | None:
        if self.truth is None:
            return None
        path, frame = (self.evaluated.rows[name][row].as_py() for name in ("path", "frame"))
        shape = (picture.shape[0], picture.shape[1])
        mask = self.truth.mask(path, shape, self.evaluated.outputs.shapes[row], frame)
        return mask if mask is not None and mask.any() else None

    def caption(self, row: int) -> dict[str, Any]:
        """The caption of a scan; each 'right' is of the rule that it is named after."""
        evaluated, index = self.evaluated, int(self.evaluated.predicted[row])
        positive, decision = evaluated.positive, bool(evaluated.decisions[row])
        return {
            **{name: evaluated.rows[name][row].as_py() for name in ("path", "frame")},
            "predicted": evaluated.fields.class_names[index],
            "probability": float(evaluated.all_probs[row, index]),
            "tumour_probability": float(evaluated.scores[row]),
            "true_class": evaluated.truth.names[row],
            "right": index == int(evaluated.truth.indices[row]),
            "decision": decision,
            "threshold": evaluated.fields.threshold,
            "decision_right": decision == (int(evaluated.truth.indices[row]) in positive),
            "disagreement": disagreement(index in positive, decision),
        }


def _ordered(fits: NDArray[np.bool_], key: NDArray[Any], copies: Ints) -> Ints:
    """Indices that fit, smallest key first, one of each group of copies."""
    index = np.flatnonzero(fits)
    index = index[np.argsort(key[index], kind="stable")]
    return index[np.sort(np.unique(copies[index], return_index=True)[1])]
