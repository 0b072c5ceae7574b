"""The top-down neck: finer maps from earlier stages."""

import pytest
import torch

from braintumor_ray.errors import UsageError
from braintumor_ray.models.bundle import load_bundle, save_bundle
from braintumor_ray.models.folding import fold_batch_norms
from tests.builders import make_fields, make_model

OPTIONS = {"neck": "topdown", "neck_channels": 16, "pooling": "lse"}


def refined(stride, backbone="mobilenetv2_100", size=96):
    return make_model(backbone, "linear", size, neck_stride=stride, **OPTIONS)


@pytest.mark.parametrize(("stride", "side"), [(16, 6), (8, 12), (4, 24)])
def test_the_map_has_the_stride_that_was_asked_for(stride, side):
    assert refined(stride).map_shape == (16, side, side)


@pytest.mark.parametrize("side", [52, 64, 90])
def test_the_map_of_another_side_is_asked_of_the_network(side):
    """Strides round up: 52 of 64 pixels have 7 of 8 cells, where their share would be 6.5."""
    model = refined(8)
    model.train()
    model.backbone.bn1.eval()
    with torch.no_grad():
        shape = model.features(torch.randn(2, 3, side, side)).shape[2:]
    assert model.map_size(side) == tuple(shape)
    assert model.training
    assert not model.backbone.bn1.training


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_b0", "convnext_atto"])
def test_any_backbone_whose_stages_are_known_takes_a_neck(backbone):
    model = refined(8, backbone)
    with torch.no_grad():
        features = model.features(torch.randn(2, 3, 96, 96))
    assert features.shape == (2, 16, 12, 12)
    assert (features >= 0).all()


def test_a_backbone_without_stages_is_refused_with_a_way_out():
    with pytest.raises(
        UsageError, match=r"'small-cnn' does not give the maps.*model.neck = 'none'"
    ):
        refined(8, "small-cnn")


def test_a_stride_that_no_stage_has_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match=r"neck_stride 12: .*stride 2, 4, 8, 16"):
        refined(12)


def test_folding_takes_the_neck_along_and_changes_nothing():
    model = refined(8)
    folded = fold_batch_norms(model)
    x = torch.randn(1, 3, 96, 96)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded.features(x), model.features(x), rtol=1e-3, atol=1e-4)


def test_log_sum_exp_lies_between_the_mean_and_the_best_cell():
    model = refined(8)
    with torch.no_grad():
        features = model.features(torch.randn(3, 3, 96, 96))
        cells, logits = model.evidence(features), model.logits(features)
    pooled = logits - model.linear.bias
    assert (pooled >= cells.mean((2, 3)) - 1e-4).all()
    assert (pooled <= cells.amax((2, 3)) + 1e-4).all()


def test_log_sum_exp_is_refused_for_heads_that_are_not_linear():
    with pytest.raises(UsageError, match="'lse' is for head 'linear'"):
        make_model("mobilenetv2_100", "mlp", 64, pooling="lse")


def test_a_bundle_keeps_the_neck_and_stores_maps_up_to_32_cells(tmp_path):
    model = refined(4, size=192)
    fields = make_fields(model.architecture)
    bundle = save_bundle(tmp_path / "b", fields, model, None, "# card\n")
    assert bundle.map_shape == (16, 48, 48)
    assert bundle.cam_shape == (32, 32)
    again = load_bundle(tmp_path / "b")
    assert again.build_model().architecture == model.architecture


def test_fingerprints_of_plain_networks_do_not_know_the_later_fields(tmp_path):
    """As a bundle of before the neck had it; found with the code of that time."""
    model = make_model("small-cnn", "linear", 64)
    fields = make_fields(model.architecture, weights_sha256="0" * 64)
    from braintumor_ray.models.bundle import Bundle

    assert Bundle(fields, {}, None).fingerprint == FINGERPRINT


FINGERPRINT = "42a610c0d9f621127662e623f66c6168"
