"""Suspect labels: scans whose label is contradicted by predictions of networks that did not see it.

Confident learning (Northcutt, Jiang and Chuang 2021) by cleanlab. The predictions are
cross-validated with copies and patients kept together: a copy with the same wrong label would
confirm it.
"""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

from braintumor_ray.audit.copies import codes
from braintumor_ray.audit.options import LabelOptions
from braintumor_ray.audit.shortcuts import FOLDS, SEED, usable_rows
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.decode.reading import decode_scans
from braintumor_ray.errors import UsageError
from braintumor_ray.explain.overlay import contact_sheet
from braintumor_ray.extras import require
from braintumor_ray.pages.pictures import Picture, jpeg_uri, load_pictures
from braintumor_ray.splits.splits import grouped_folds
from braintumor_ray.storage import Folder
from braintumor_ray.types import Floats, GrayImage, Ints, Progress

BACKBONE, SIZE = "mobilenetv2_100", 224
_BATCH = 16
LISTED, SHOWN, TILE = 100, 36, 260
# Strong: 1,280 features for some hundred scans; the best held-out likelihood of 0.0003 to 0.1.
_REGULARIZATION = 0.01
_COLUMNS = ("dataset", "path", "frame", "split")


@dataclass(frozen=True)
class CrossValidated:
    """Predictions of scans by networks that saw neither them nor their copies.

    Attributes:
        rows: of the audited scans, int64 (n,).
        names: k classes.
        truth: index of the label of each, int64 (n,).
        probs: float64 (n, k).
        source: what predicted, in words.
    """

    rows: Ints
    names: list[str]
    truth: Ints
    probs: Floats
    source: str


def suspect_labels(
    scans: pa.Table,
    groups: Ints,
    options: LabelOptions,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], pa.Table]:
    """Rank the labels of audited scans, the most doubtful first.

    Args:
        scans: from `audit.combine`.
        groups: int64 (n,), copies and scans of one patient share one.
        options: where the predictions come from.
        progress: called with (scans predicted, scans).

    Returns:
        What goes into audit.json: by data set, or for the folds of a run, `source`, `scans`,
        `classes`, `accuracy` (of the predictions), `suspects`, `by_class` (per split and label
        `scans`, `suspects`, `share`, `likely`) and `first` (the most doubtful); or a `note` where
        nothing can be ranked. And a table of all ranked scans: `dataset`, `path`, `frame`,
        `split`, `label`, `likely`, `quality` (0 doubtful, 1 sure), `suspect`, `row`.

    Raises:
        UsageError: cleanlab is not installed, or `options.folds` is not such a run.
        WeightsError: the weights cannot be loaded.
    """
    require("cleanlab")  # before hours of predictions, not after
    found: dict[str, CrossValidated | None]
    if options.folds is not None:
        found = {"folds": _of_folds(scans, options.folds, progress)}
    else:
        found = _of_features(scans, groups, options.weights, progress)
    summaries, tables = {}, []
    for name, predicted in found.items():
        if predicted is None:
            note = f"fewer than two classes have {FOLDS} independent groups of readable scans"
            summaries[name] = {"note": note}
            continue
        table = _ranked(scans, predicted)
        summaries[name] = _summary(predicted, table)
        tables.append(table)
    return summaries, pa.concat_tables(tables) if tables else pa.table({})


def draw_suspects(scans: pa.Table, ranked: pa.Table) -> tuple[list[dict[str, Any]], Picture | None]:
    """The most doubtful scans as pictures.

    Args:
        scans: from `audit.combine`.
        ranked: from `suspect_labels`.

    Returns:
        Tiles for a page (`image`, and the columns of `ranked`), and one sheet of all; None where
        there is no suspect.
    """
    if not ranked.num_rows:
        return [], None
    suspects = ranked.filter(ranked["suspect"]).sort_by("quality").slice(0, SHOWN)
    pictures = load_pictures(scans.take(suspects["row"]), TILE)
    drawn = [
        (row, picture)
        for row, picture in zip(suspects.to_pylist(), pictures, strict=True)
        if picture is not None
    ]
    if not drawn:
        return [], None
    captions = [f"{row['label']}, likely {row['likely']}" for row, _ in drawn]
    tiles = [{"image": jpeg_uri(picture), **row} for row, picture in drawn]
    return tiles, contact_sheet([picture for _, picture in drawn], 6, captions, TILE)


def labels_csv(ranked: pa.Table) -> bytes:
    """The ranking as a table for people, one row per scan."""
    buffer = io.BytesIO()
    csv.write_csv(ranked.drop_columns(["row"]), buffer)
    return buffer.getvalue()


def held_out_probabilities(features: Floats, truth: Ints, folds: Ints) -> Floats:
    """Probabilities (n, k) of a logistic regression, each scan by the folds without it.

    Args:
        features: (n, m).
        truth: class index, int64 (n,).
        folds: of each scan, int64 (n,).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probs = np.zeros((len(truth), int(truth.max()) + 1))
    for fold in np.unique(folds):
        held_out = folds == fold
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=_REGULARIZATION, max_iter=1000)
        )
        model.fit(features[~held_out], truth[~held_out])
        probs[np.ix_(held_out, model.classes_)] = model.predict_proba(features[held_out])
    return probs


def _of_features(
    scans: pa.Table,
    groups: Ints,
    weights: str,
    progress: Progress | None,
) -> dict[str, CrossValidated | None]:
    """By data set: labels of two sets need not mean the same."""
    datasets = np.array(scans["dataset"].to_pylist())
    found: dict[str, CrossValidated | None] = {}
    extractor = _Extractor(weights)
    for name in dict.fromkeys(datasets.tolist()):
        own = np.flatnonzero(datasets == name)
        kept = usable_rows(scans.take(pa.array(own)), groups[own], len(own))
        rows = own[kept]
        labels = scans["label"].take(pa.array(rows)).to_pylist()
        names, truth = codes(labels)
        if len(names) < 2:
            found[name] = None
            continue
        features = extractor.features(scans.take(pa.array(rows)), progress)
        folds = grouped_folds(labels, groups[rows], FOLDS, SEED, allow_missing=True)
        probs = held_out_probabilities(features, truth, folds)
        source = f"logistic regression on {BACKBONE}, {extractor.line}, {FOLDS} folds"
        found[name] = CrossValidated(rows, names, truth, probs, source)
    return found


class _Extractor:
    """Pooled features of a pretrained network."""

    def __init__(self, weights: str) -> None:
        from braintumor_ray.models.classifier import Architecture, Classifier, normalization_of
        from braintumor_ray.models.weights import load_pretrained

        self._model = Classifier(Architecture(BACKBONE, "linear", 2, SIZE)).eval()
        self.line = load_pretrained(self._model.backbone, BACKBONE, weights)
        mean, std = normalization_of(self._model.backbone)
        self._preprocessing = Preprocessing(SIZE, "area", mean, std)  # type: ignore[arg-type]

    def features(self, scans: pa.Table, progress: Progress | None) -> Floats:
        """Float64 (n, channels)."""
        import torch

        from braintumor_ray.models.classifier import normalize

        found: list[Floats] = []
        for squares in _squares(scans, self._preprocessing):
            with torch.inference_mode():
                images = normalize(torch.from_numpy(squares), self._preprocessing)
                pooled = self._model.features(images).mean(dim=(2, 3))
            found.append(pooled.double().numpy())
            if progress:
                progress(sum(map(len, found)), scans.num_rows)
        return np.concatenate(found)


def _squares(scans: pa.Table, preprocessing: Preprocessing) -> Iterator[GrayImage]:
    """Batches uint8 (b, S, S) of scans that were read before; black where one is gone."""
    blank = np.zeros((preprocessing.image_size,) * 2, np.uint8)
    read = decode_scans(scans, preprocessing)
    while batch := list(islice(read, _BATCH)):
        yield np.stack([blank if scan.image is None else scan.image for scan in batch])


def _of_folds(scans: pa.Table, run: str, progress: Progress | None) -> CrossValidated:
    """Each scan by the fold that held out its pixels."""
    parts: list[CrossValidated] = []
    for fold in _fold_folders(run):
        part = _of_fold(scans, fold)
        parts.append(part)
        if progress:
            progress(sum(len(part.rows) for part in parts), scans.num_rows)
    rows = np.concatenate([part.rows for part in parts])
    if not len(rows):
        raise UsageError(f"--folds '{run}': none of its scans is among the audited ones")
    order = np.argsort(rows, kind="stable")
    return CrossValidated(
        rows[order],
        parts[0].names,
        np.concatenate([part.truth for part in parts])[order],
        np.concatenate([part.probs for part in parts])[order],
        f"{len(parts)} folds of a training run",
    )


def _fold_folders(run: str) -> list[str]:
    folder = Folder(run.rstrip("/"))
    names = sorted(name for name in folder.names() if name.startswith("fold-"))
    if len(names) < 2 or "folds.json" not in folder.names():
        raise UsageError(
            f"--folds '{run}' is not a finished cross-validation; give the --output of "
            "'braintumor-ray train --folds N'"
        )
    return [folder.at(name) for name in names]


def _of_fold(scans: pa.Table, fold: str) -> CrossValidated:
    from braintumor_ray.catalog.schema import read_catalog
    from braintumor_ray.metrics.calibration import softmax
    from braintumor_ray.models.bundle import load_bundle
    from braintumor_ray.predict.predictor import Predictor

    catalog = read_catalog(f"{fold}/catalog.parquet")
    held_out: dict[str, dict[str | None, str]] = {}  # classes by label: copies may have several
    columns = (catalog[n].to_pylist() for n in ("pixel_sha256", "label", "class_name", "split"))
    for digest, label, name, split in zip(*columns, strict=True):
        if split == "test":
            held_out.setdefault(digest, {})[label] = name
    predictor = Predictor(load_bundle(f"{fold}/bundle"))
    names = list(predictor.bundle.fields.class_names)
    audited = zip(scans["pixel_sha256"].to_pylist(), scans["label"].to_pylist(), strict=True)
    found = {
        row: classes.get(label) or next(iter(classes.values()))  # of the run, where labels differ
        for row, (digest, label) in enumerate(audited)
        if (classes := held_out.get(digest)) is not None
    }
    rows = np.array(list(found), np.int64)
    taken = scans.take(pa.array(rows))
    batches = _squares(taken, predictor.bundle.preprocessing)
    logits = [predictor.forward(squares, explain=False).logits for squares in batches]
    return CrossValidated(
        rows,
        names,
        np.array([names.index(name) for name in found.values()], np.int64),
        softmax(
            np.concatenate([np.empty((0, len(names))), *logits]),
            predictor.bundle.fields.temperature,
        ),
        fold,
    )


def _ranked(scans: pa.Table, predicted: CrossValidated) -> pa.Table:
    """All scans, suspects first, each part by the probability of the given label."""
    filtering, ranking = require("cleanlab.filter"), require("cleanlab.rank")
    quality = ranking.get_label_quality_scores(predicted.truth, predicted.probs)
    suspect = filtering.find_label_issues(predicted.truth, predicted.probs, n_jobs=1)
    order = np.lexsort((quality, ~suspect))
    names = np.array(predicted.names, object)
    table = scans.select(list(_COLUMNS)).take(pa.array(predicted.rows[order]))
    columns = {
        "label": names[predicted.truth[order]],
        "likely": names[predicted.probs[order].argmax(axis=1)],
        "quality": quality[order].round(6),
        "suspect": suspect[order],
        "row": predicted.rows[order],
    }
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return table


def _summary(predicted: CrossValidated, ranked: pa.Table) -> dict[str, Any]:
    right = predicted.probs.argmax(axis=1) == predicted.truth
    suspects = ranked.filter(ranked["suspect"])
    return {
        "source": predicted.source,
        "scans": len(predicted.rows),
        "classes": predicted.names,
        "accuracy": float(right.mean()),
        "suspects": suspects.num_rows,
        "by_class": _by_class(ranked, suspects),
        "first": suspects.drop_columns(["row", "suspect"]).slice(0, LISTED).to_pylist(),
    }


def _by_class(ranked: pa.Table, suspects: pa.Table) -> list[dict[str, Any]]:
    """Counts per split and label: a folder that was labeled badly is seen as a whole."""

    def places(table: pa.Table) -> Iterator[tuple[str, str]]:
        splits = (split or "none" for split in table["split"].to_pylist())
        return zip(splits, table["label"].to_pylist(), strict=True)

    scans, doubted = Counter(places(ranked)), Counter(places(suspects))
    likely: dict[tuple[str, str], Counter[str]] = {}
    for place, other in zip(places(suspects), suspects["likely"].to_pylist(), strict=True):
        likely.setdefault(place, Counter())[other] += 1
    return [
        {
            "split": split,
            "label": label,
            "scans": count,
            "suspects": doubted[split, label],
            "share": doubted[split, label] / count,
            "likely": dict(likely.get((split, label), Counter()).most_common()),
        }
        for (split, label), count in sorted(scans.items())
    ]
