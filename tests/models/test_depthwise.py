"""The quick gradient of strided depthwise convolutions equals PyTorch's own."""

import copy

import pytest
import torch
from torch import Tensor, nn

from braintumor_ray.models.depthwise import StridedDepthwise, _Strided, accelerate_depthwise
from braintumor_ray.models.vision_libraries import import_timm

SHAPES = [
    # kernel, stride, padding, height, width
    (3, 2, 1, 14, 14),
    (3, 2, 1, 15, 12),
    (5, 2, 2, 16, 17),
    (3, 3, 0, 11, 10),
    (5, 2, 1, 9, 13),
    (3, (2, 1), (1, 0), 10, 9),
    (1, 2, 0, 8, 7),
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "height", "width"), SHAPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_both_gradients_in_float64(kernel, stride, padding, height, width, layout) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 6, kernel, stride, padding, groups=6, bias=False).double()
    x = torch.randn(2, 6, height, width, dtype=torch.float64).contiguous(memory_format=layout)

    def gradients(function) -> tuple[Tensor, ...]:
        inputs = x.clone().requires_grad_()
        weight = layer.weight.detach().clone().requires_grad_()
        y = function(inputs, weight)
        return (y, *torch.autograd.grad((y.sin()).sum(), (inputs, weight)))

    ours = gradients(lambda a, w: _Strided.apply(a, w, layer.stride, layer.padding))
    theirs = gradients(
        lambda a, w: nn.functional.conv2d(a, w, None, layer.stride, layer.padding, 1, 6)
    )
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "count"), [("mobilenetv2_100", 4), ("efficientnet_b0", 4)])
def test_a_network_learns_the_same(name: str, count: int) -> None:
    torch.manual_seed(0)
    plain = import_timm().create_model(name, num_classes=3).eval()
    plain = plain.to(memory_format=torch.channels_last)  # as a worker trains it
    quick = copy.deepcopy(plain)
    assert accelerate_depthwise(quick) == count
    assert accelerate_depthwise(quick) == 0  # once is enough
    images = torch.randn(2, 3, 64, 64)

    def gradients(model) -> dict[str, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(images)
        logits.float().logsumexp(1).sum().backward()
        return {key: p.grad.double() for key, p in model.named_parameters()}

    ours, theirs = gradients(quick), gradients(plain)
    assert ours.keys() == theirs.keys()
    for key, wanted in theirs.items():
        assert torch.isfinite(ours[key]).all()
        cosine = torch.cosine_similarity(ours[key].flatten(), wanted.flatten(), dim=0)
        assert cosine > 0.99 or wanted.norm() < 1e-6, key


def test_what_is_not_plain_is_left_alone() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, 2, 1, bias=False),  # not depthwise
        nn.Conv2d(4, 4, 3, 1, 1, groups=4, bias=False),  # no stride
        nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False, dilation=2),
        nn.Conv2d(4, 8, 3, 2, 1, groups=4, bias=False),
        nn.Conv2d(4, 4, 3, 2, 1, groups=4),  # with a bias
    )
    assert accelerate_depthwise(model) == 0


def test_float32_inference_and_saved_weights_stay_the_same() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False)
    quick = nn.Sequential(copy.deepcopy(plain))
    accelerate_depthwise(quick)
    x = torch.randn(1, 4, 8, 8)
    assert isinstance(quick[0], StridedDepthwise)
    assert torch.equal(quick(x), plain(x))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quick(x), plain(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quick(x), plain(x))
    assert quick.state_dict().keys() == nn.Sequential(plain).state_dict().keys()
    twin = copy.deepcopy(quick)  # as the average of the weights is made
    assert torch.equal(twin(x), quick(x))


def test_a_frozen_layer_before_it_needs_no_input_gradient() -> None:
    layer = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False))
    accelerate_depthwise(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.randn(1, 4, 8, 8)).float().sum().backward()
    assert layer[0].weight.grad is not None
