"""Pictures of the scans that excite a neuron most."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.explain.overlay import (
    contact_sheet,
    font_for,
    heatmap_at,
    superimpose,
    write_png,
)
from braintumor_ray.explain.placement import square_maps
from braintumor_ray.models.bundle import Bundle
from braintumor_ray.models.classifier import Classifier, normalize
from braintumor_ray.pages.pictures import load_squares
from braintumor_ray.types import GrayImage

_TILE = 180


@torch.no_grad()
def activation_maps(
    model: Classifier,
    images: GrayImage,
    neurons: NDArray[np.int64],
    preprocessing: Preprocessing,
    batch_size: int = 32,
) -> NDArray[np.float32]:
    """One neuron's own map A_k for each scan, at the feature map's size.

    Args:
        model: in eval mode.
        images: uint8 (n, S, S).
        neurons: which channel to take of each scan, (n,).
        preprocessing: the bundle's.
        batch_size: scans per forward pass.

    Returns:
        float32 (n, h, w), as the network computes it: not normalized, negative where its last
        activation lets negative values through.
    """
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(images[start : start + batch_size]).to(device)
        features = model.features(normalize(batch, preprocessing)).float()
        channels = torch.from_numpy(neurons[start : start + batch_size]).to(device)
        parts.append(features[torch.arange(len(batch), device=device), channels].cpu().numpy())
    return np.concatenate(parts)


def write_sheets(
    classes: Mapping[str, Sequence[Mapping[str, Any]]],
    scans: pa.Table,
    bundle: Bundle,
    device: torch.device,
    folder: str | Path,
) -> list[str]:
    """Write top_NUMBER_CLASS.png: a row per neuron, its figures, the scans that excite it most.

    Each scan has the neuron's own map over it, and its label and file name below.

    Args:
        classes: by class its neurons, each with `neuron`, `r`, `auroc` and `examples` (`row`,
            `label` and `path`).
        scans: catalog rows that `row` counts.
        bundle: of the network.
        device: where it runs.
        folder: exists.

    Returns:
        The names of the files.
    """
    written = []
    model = bundle.build_model().to(device)
    for number, (name, neurons) in enumerate(classes.items()):
        picked = [(e, found["neuron"]) for found in neurons for e in found["examples"]]
        if not picked:
            continue  # no neuron goes with this class: constant activations only
        rows = scans.take(pa.array([example["row"] for example, _ in picked]))
        images = np.stack(list(load_squares(rows, bundle.preprocessing)))
        channels = np.array([neuron for _, neuron in picked], np.int64)
        maps = activation_maps(model, images, channels, bundle.preprocessing)
        maps = square_maps(maps, bundle.map_frame)
        tiles = [
            superimpose(image, heatmap_at(np.maximum(cam, 0), (image.shape[0], image.shape[1])))
            for image, cam in zip(images, maps, strict=True)
        ]
        names = [f"{e['label']}\n{PurePosixPath(e['path']).name}" for e, _ in picked]
        written.append(f"top_{number}_{_file_name(name)}.png")
        write_png(Path(folder) / written[-1], _sheet(name, neurons, tiles, names))
    return written


def _sheet(
    name: str,
    neurons: Sequence[Mapping[str, Any]],
    tiles: Sequence[NDArray[np.uint8]],
    names: Sequence[str],
) -> NDArray[np.uint8]:
    """A row per neuron of a class: what is known of it, then its scans."""
    most = max(len(found["examples"]) for found in neurons)
    cells, captions, at = list[NDArray[np.uint8]](), list[str](), 0
    for found in neurons:
        count = len(found["examples"])
        blank = np.full((_TILE, _TILE, 3), 255, np.uint8)
        cells += [_figures(found), *tiles[at : at + count], *[blank] * (most - count)]
        captions += [name, *names[at : at + count], *[""] * (most - count)]
        at += count
    return contact_sheet(cells, most + 1, captions, _TILE)


def _figures(found: Mapping[str, Any]) -> NDArray[np.uint8]:
    """A tile with a neuron's number, correlation and AUROC."""
    image = Image.new("RGB", (_TILE, _TILE), "white")
    lines = [f"neuron {found['neuron']}", f"correlation {found['r']:.2f}"]
    lines += [f"AUROC {found['auroc']:.2f}", f"q (FDR) {found['r_q']:.1g}"]
    for row, line in enumerate(lines):
        size = 18 if row == 0 else 15
        ImageDraw.Draw(image).text((8, 40 + 26 * row), line, "black", font_for(size, line))
    return np.array(image)


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in text)
