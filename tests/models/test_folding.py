import pytest
import torch
from torch import nn

from braintumor_ray.models.folding import fold_batch_norms
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
    assert fold_batch_norms(model) is model
    assert count(model) == 1
