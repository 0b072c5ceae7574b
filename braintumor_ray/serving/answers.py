"""From a decoded upload and a predicted row to the answer's JSON."""

import base64
import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from braintumor_ray.explain.overlay import colorize, drawn_heatmap, superimpose
from braintumor_ray.serving.model import ModelCard, Row
from braintumor_ray.serving.schemas import PredictQuery
from braintumor_ray.serving.upload import Upload

_DIGITS = 6  # more than float32 holds of a probability, fewer bytes than a double's


def answer(upload: Upload, row: Row, card: ModelCard, query: PredictQuery) -> dict[str, Any]:
    """The answer of `schemas.Prediction`, as plain values.

    Args:
        upload: with `image`; with `picture` where the query wants one drawn.
        row: the predictor's columns for it.
        card: of the bundle that predicted.
        query: what was asked.
    """
    probabilities = {
        name: _number(p)
        for name, p in zip(card.class_names, row["probabilities"].tolist(), strict=True)
    }
    explained = bool(query.methods)
    return {
        "predicted_class": row["predicted_class"],
        "probabilities": probabilities,
        "decision": _decision(row, card),
        "entropy": _number(float(row["entropy"])),
        "out_of_domain": bool(row["out_of_domain"]),
        "prediction_set": row.get("prediction_set"),
        "cam_class": row["cam_class"] if explained else None,
        "heat": _heat(row) if explained else None,
        "maps": {name: _map(row[name], upload, query) for name in query.methods},
        "scan": _scan(upload, query),
        "bundle_fingerprint": card.fingerprint,
    }


def _decision(row: Row, card: ModelCard) -> dict[str, Any]:
    positive = [name in card.positive_classes for name in card.class_names]
    return {
        "positive": bool(row["decision"]),
        "probability": _number(float(row["probabilities"][positive].sum())),
        "threshold": card.threshold,
        "positive_classes": list(card.positive_classes),
    }


def _heat(row: Row) -> dict[str, float | None]:
    shares = {region: float(row[f"heat_{region}"]) for region in ("inside", "rim", "background")}
    return {region: None if math.isnan(s) else _number(s) for region, s in shares.items()}


def _map(cam: NDArray[np.float16], upload: Upload, query: PredictQuery) -> dict[str, Any]:
    if query.heatmap == "none":
        return {}
    if query.heatmap == "array":
        return {"array": np.round(cam.astype(np.float64), _DIGITS).tolist()}
    assert upload.picture is not None
    heat = drawn_heatmap(cam, (upload.picture.shape[0], upload.picture.shape[1]))
    drawn = colorize(heat) if query.heatmap == "png" else superimpose(upload.picture, heat)
    return {query.heatmap: _png(drawn), "flat": not heat.any()}


def _scan(upload: Upload, query: PredictQuery) -> dict[str, Any]:
    found: dict[str, Any] = {
        "format": upload.format,
        "frame": query.frame,
        "frames": upload.frames,
        "height": upload.height,
        "width": upload.width,
        "pixel_sha256": upload.pixel_sha256,
    }
    if query.scan == "png":
        assert upload.picture is not None
        found["png"] = _png(upload.picture)
    return found


def _png(picture: NDArray[np.uint8]) -> str:
    """Base64 of a gray (H, W) or RGB (H, W, 3) picture; encoded in memory, never on disk."""
    bgr = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 2])[1]
    return base64.b64encode(encoded.tobytes()).decode("ascii")


def _number(value: float) -> float:
    return round(value, _DIGITS)
