"""Small bundles, scans and folders that several tests need; everything is synthetic."""

import copy
import functools
from pathlib import Path

import cv2
import numpy as np
import torch

from braintumor_ray.models.bundle import BundleFields, save_bundle
from braintumor_ray.models.classifier import Architecture, Classifier

CLASSES = ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")


def disc_scan(seed, size=(96, 112)):
    """A bright disc with noise and a blob: enough of a head for the head mask."""
    random = np.random.default_rng(seed)
    height, width = size
    image = np.zeros(size, np.uint8)
    center = (width // 2, height // 2)
    cv2.ellipse(image, center, (int(width * 0.38), int(height * 0.42)), 0, 0, 360, 120, -1)
    spot = tuple(int(v) for v in np.array(center) + random.integers(-12, 12, 2))
    cv2.circle(image, spot, int(random.integers(4, 10)), int(random.integers(180, 255)), -1)
    noise = random.normal(0, 6, size)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def write_archive(folder, count, seed=0, classes=CLASSES):
    """`count` PNG files in class folders; returns their paths."""
    paths = []
    for index in range(count):
        path = Path(folder) / classes[index % len(classes)] / f"scan{seed}_{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), disc_scan(seed * 100_000 + index))
        paths.append(path)
    return paths


def make_fields(architecture, classes=CLASSES, **changes):
    values = {
        "architecture": architecture.to_dict(),
        "preprocessing": {
            "image_size": architecture.image_size,
            "interpolation": "area",
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
        },
        "class_names": classes,
        "positive_classes": tuple(c for c in classes if c != "no_tumor"),
        "cam_layer": "last feature map",
        "threshold": 0.5,
        "temperature": 1.0,
        "recipe": {"name": "test"},
        "data_fingerprint": "none",
        "metrics": {},
        "versions": {},
    }
    return BundleFields(**values | changes)


def make_model(backbone="small-cnn", head="linear", size=64, classes=4, seed=0, **options):
    """A random network; every call returns one of its own."""
    made = _network(backbone, head, size, classes, seed, tuple(options.items()))
    torch.manual_seed(seed)
    return copy.deepcopy(made)


@functools.lru_cache(maxsize=8)  # large ones take a second to build
def _network(backbone, head, size, classes, seed, options):
    torch.manual_seed(seed)
    model = Classifier(Architecture(backbone, head, classes, size, **dict(options))).eval()
    return model.requires_grad_(False)


def make_bundle(path, seed=0, detector=None, archive=None, **changes):
    """A bundle of a small random network at `path`."""
    model = make_model(seed=seed)
    fields = make_fields(model.architecture, **changes)
    return save_bundle(path, fields, model, detector, "# card\n", archive)
