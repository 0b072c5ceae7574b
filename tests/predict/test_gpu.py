"""The predictor on a CUDA device: the same numbers as on the CPU."""

import numpy as np
import pytest
import torch

from braintumor_ray import Predictor
from braintumor_ray.explain.cam import SCORED_METHODS
from braintumor_ray.explain.regions import head_weights
from braintumor_ray.models.bundle import save_bundle
from braintumor_ray.scoring.predict_stage import ParallelPredictor
from tests.builders import disc_scan, make_fields, make_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SCANS = [disc_scan(seed, (60 + 7 * seed, 110 - 5 * seed)) for seed in range(7)]
NETWORKS = [
    ("small-cnn", "linear", 64),  # closed form
    ("mobilenetv2_100", "linear", 96),  # depthwise convolutions, folded
    ("small-cnn", "attention", 64),  # differentiated with respect to the pooled vector
    ("cnn-3conv", "flatten", 64),  # differentiated with respect to the map
]


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda network: "-".join(map(str, network)))
def bundle(request, tmp_path_factory):
    backbone, head, size = request.param
    model = make_model(backbone, head, size)
    path = tmp_path_factory.mktemp("gpu") / "bundle"
    save_bundle(path, make_fields(model.architecture), model, None, "")
    return path


def shapes_of(columns):
    """Maps stretched to a maximum of 1, by method."""
    maps = {name: columns[name].astype(np.float64) for name in SCORED_METHODS}
    return {
        name: values / np.maximum(values.max(axis=(1, 2), keepdims=True), 1e-9)
        for name, values in maps.items()
    }


def test_in_fp32_cuda_gives_what_the_cpu_gives(bundle):
    cpu, gpu = (
        Predictor.from_bundle(bundle, device=device, precision="fp32")(SCANS)
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(cpu["probabilities"], gpu["probabilities"], atol=1e-5)
    assert cpu["predicted_class"] == gpu["predicted_class"]
    for name, wanted in shapes_of(cpu).items():
        np.testing.assert_allclose(shapes_of(gpu)[name], wanted, atol=5e-3, err_msg=name)


def test_in_bf16_probabilities_stay_near(bundle):
    cpu = Predictor.from_bundle(bundle, device="cpu", precision="fp32")(SCANS)
    predictor = Predictor.from_bundle(bundle, device="cuda")
    assert predictor.bf16 == torch.cuda.is_bf16_supported(including_emulation=False)
    np.testing.assert_allclose(predictor(SCANS)["probabilities"], cpu["probabilities"], atol=0.05)


def test_several_batches_at_a_time_give_what_one_gives(bundle):
    predictor = Predictor.from_bundle(bundle, device="cuda", precision="fp32", batch_size=2)
    size = predictor.bundle.preprocessing.image_size
    squares = np.stack([disc_scan(seed, (size, size)) for seed in range(35)])
    plain = predictor(squares)
    heads = head_weights(squares, predictor.cam_shape)
    threaded = ParallelPredictor(predictor, 4).predict(squares, heads)
    assert threaded["predicted_class"] == plain["predicted_class"]
    np.testing.assert_allclose(threaded["probabilities"], plain["probabilities"], atol=1e-6)
    np.testing.assert_allclose(threaded["heat_inside"], plain["heat_inside"], atol=1e-4)
