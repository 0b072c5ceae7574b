"""An untrained bundle for the phantom classes."""

from pathlib import Path

import torch

from braintumor_ray.models.bundle import BundleFields, save_bundle
from braintumor_ray.models.classifier import Architecture, Classifier
from braintumor_ray.phantom.dataset import CLASS_NAMES

SIZE = 32
CARD = """# Model card

**Synthetic.** <script>x</script>

| split | first_class_of_a_card | second_class_of_a_card | third_class_of_a_card |
|---|---|---|---|
| test | 1 | 2 | 3 |
"""


def make_bundle(target: Path, seed: int = 0, **changes) -> Path:
    """A bundle of an untrained network for the phantom classes."""
    torch.manual_seed(seed)
    names = tuple(sorted(CLASS_NAMES))
    architecture = Architecture("small-cnn", "linear", len(names), SIZE)
    settings = {
        "architecture": architecture.to_dict(),
        "preprocessing": {
            "image_size": SIZE,
            "interpolation": "area",
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
        },
        "class_names": names,
        "positive_classes": tuple(n for n in names if n != "no_tumor"),
        "cam_layer": "last",
        "threshold": 0.75,
        "temperature": 1.0,
        "recipe": {"name": "demo", "threshold_by": "f1"},
        "data_fingerprint": "0",
        "metrics": {},
        "versions": {},
    }
    model = Classifier(architecture)
    with torch.no_grad():  # untrained logits hardly differ: let every class be predicted
        model.linear.weight.mul_(40)
        model.linear.bias.zero_()
    fields = BundleFields(**{**settings, **changes})
    save_bundle(target, fields, model, None, CARD)
    return target
