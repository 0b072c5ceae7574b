import pytest
import torch
from torch import nn

from braintumor_ray.engines.engine import for_inference
from braintumor_ray.explain.cam import cams, class_gradient, predicted_class
from braintumor_ray.models.device import use_bf16
from braintumor_ray.models.folding import fold_batch_norms, pairs, sample_of
from braintumor_ray.models.fusing import FusedConvolution, fuse_activations, pack_weights
from tests.builders import make_model
from tests.models.test_folding import trained_looking

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")


def count(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


def is_packed(convolution):
    return convolution.weight.layout is not torch.strided


@pytest.mark.parametrize(
    ("backbone", "fused"),
    [("mobilenetv2_100", 35), ("resnet18", 9), ("efficientnet_b0", 0), ("small-cnn", 5)],
)
def test_features_stay_the_same_with_fewer_activations(backbone, fused):
    folded = fold_batch_norms(trained_looking(backbone))
    before = count(folded, (nn.ReLU, nn.ReLU6))
    found = fuse_activations(folded)
    assert count(found, FusedConvolution) == fused
    assert count(found, (nn.ReLU, nn.ReLU6)) == before - fused
    assert count(folded, FusedConvolution) == 0
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = folded.features(images)
        atol = 1e-5 * float(expected.abs().max())  # oneDNN may add in another order
        torch.testing.assert_close(found.features(images), expected, rtol=0, atol=atol)
        pack_weights(found, bf16=False)
        assert all(is_packed(m) for m in found.modules() if isinstance(m, nn.Conv2d))
        torch.testing.assert_close(found.features(images), expected, rtol=0, atol=atol)


@pytest.mark.skipif(not use_bf16(torch.device("cpu"), "auto"), reason="a CPU without bfloat16")
def test_in_bfloat16_every_number_is_the_same(monkeypatch):
    model, device = trained_looking("mobilenetv2_100"), torch.device("cpu")
    packed = for_inference(model, device, bf16=True)
    monkeypatch.setattr("braintumor_ray.engines.engine.pack_weights", lambda *_, bf16: None)
    found = for_inference(model, device, bf16=True)
    monkeypatch.setattr("braintumor_ray.engines.engine.fuse_activations", lambda plain: plain)
    plain = for_inference(model, device, bf16=True)
    assert count(found, FusedConvolution) > count(plain, FusedConvolution) == 0
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = plain.features(images)
        assert torch.equal(found.features(images), expected)
        atol = 0.02 * float(expected.abs().max())  # packed, sums may be rounded in another order
        torch.testing.assert_close(packed.features(images), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_100", "ghostnet_100"])
def test_maps_that_need_the_gradient_of_a_convolution_of_the_head(backbone):
    model = make_model(backbone=backbone, size=64)
    ready = for_inference(model, torch.device("cpu"), bf16=False)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    expected, found = (
        cams(features, class_gradient(network, features, predicted_class))
        for network in (model, ready)
        for features in (network.features(images).detach(),)
    )
    for name, maps in expected.items():
        torch.testing.assert_close(found[name], maps, rtol=0, atol=1e-4)


class Small(nn.Module):
    """A convolution and its ReLU, whose sum with another map is the feature map."""

    def __init__(self, convolution, other):
        super().__init__()
        self.conv, self.act, self.other = convolution, nn.ReLU(), other

    def forward_features(self, x):
        x = self.conv(x)
        return self.act(x) + self.other(x)


def nothing(x):
    return torch.zeros_like(x)


@pytest.mark.parametrize(
    ("convolution", "other", "fused"),
    [
        (nn.Conv2d(3, 96, 3, padding=1), nothing, 1),
        (nn.Conv2d(3, 96, 3, padding="same"), nothing, 0),
        (nn.Conv2d(3, 96, 3, padding=1, padding_mode="reflect"), nothing, 0),
        (nn.Conv2d(3, 96, 3, padding=1), lambda x: x, 0),
    ],
    ids=["plain", "padding by name", "padding with the picture", "used twice"],
)
def test_only_plain_convolutions_whose_output_nothing_else_takes(convolution, other, fused):
    model = make_model(size=64)
    model.backbone = Small(convolution, other).eval()
    assert count(fuse_activations(model), FusedConvolution) == fused


def test_what_was_added_to_in_place_is_no_output_of_the_convolution():
    model = make_model(size=64)
    model.backbone = Small(nn.Conv2d(3, 96, 3), nothing).eval()
    backbone = model.backbone
    backbone.forward_features = lambda x: backbone.act(backbone.conv(x).add_(1))
    assert pairs(model, sample_of(model), lambda module: isinstance(module, nn.ReLU))[0] == []
