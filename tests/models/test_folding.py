import pytest
import torch
from torch import nn

from braintumor_ray.engines.engine import for_inference
from braintumor_ray.models.folding import fold_batch_norms, round_kernels
from tests.builders import make_model


def trained_looking(backbone):
    """Statistics and weights as after training: no BatchNorm is the identity."""
    model = make_model(backbone, size=64)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.1, generator=generator)
    return model


def count(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("backbone", "left"),
    [
        ("mobilenetv2_100", 0),
        ("efficientnet_b0", 0),
        ("resnet18", 0),
        ("densenet121", 62),  # those that stand before their convolution
        ("small-cnn", 0),
        ("cnn-3conv", 0),
    ],
)
def test_features_stay_the_same_with_fewer_batch_norms(backbone, left):
    model = trained_looking(backbone)
    before = count(model)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    folded = fold_batch_norms(model)
    assert count(folded) == left
    assert count(model) == before
    with torch.no_grad():
        wanted = model(images)
        torch.testing.assert_close(folded(images), wanted, rtol=1e-4, atol=1e-5)


def test_a_convolution_whose_output_is_used_twice_is_left_alone():
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 96, 3), nn.BatchNorm2d(96)

        def forward_features(self, x):
            x = self.conv(x)
            return x + self.norm(x)

    model = make_model(size=64)
    model.backbone = Forked().eval()
    model.backbone.norm.running_mean.fill_(0.5)
    same = fold_batch_norms(model)
    assert count(same) == count(model) == 1
    assert torch.equal(same.backbone.conv.weight, model.backbone.conv.weight)


class TestKernelsInBfloat16:
    def kernels(self):
        weight = torch.randn(64, 1, 3, 3, generator=torch.Generator().manual_seed(0))
        return weight - weight.mean(dim=(2, 3), keepdim=True)  # edge filters

    def test_a_smooth_picture_is_seen_as_before(self):
        layer = nn.Conv2d(64, 64, 3, groups=64, bias=False)
        layer.weight.data = self.kernels()
        plain = layer.weight.data.bfloat16().float()
        round_kernels(layer)
        kept = layer.weight.data
        assert torch.equal(kept.bfloat16().float(), kept)
        leaks = [w.sum(dim=(2, 3)).abs().mean() for w in (kept, plain)]
        assert leaks[0] < leaks[1] / 10
        assert (kept - self.kernels()).abs().max() < 2 * (plain - self.kernels()).abs().max()

    def test_a_weight_alone_is_rounded_to_the_nearest(self):
        layer = nn.Conv2d(16, 8, 1)
        wanted = layer.weight.data.bfloat16().float()
        round_kernels(layer)
        assert torch.equal(layer.weight.data, wanted)

    def test_predictors_in_bfloat16_have_such_kernels_and_leave_the_network_alone(self):
        model = trained_looking("mobilenetv2_100")
        before = {name: p.clone() for name, p in model.named_parameters()}
        ready = for_inference(model, torch.device("cpu"), bf16=True)
        folded = fold_batch_norms(model)
        round_kernels(folded.backbone)
        weights = folded.backbone.state_dict()
        for name, value in ready.backbone.state_dict().items():
            if value.dtype is torch.bfloat16 and value.dim() == 4:
                assert torch.equal(value.float(), weights[name])
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
