"""Cells are drawn where the network looks: layers and gradients tell the same."""

import numpy as np
import pytest
import torch

from braintumor_ray.decode.head import WHOLE, Box
from braintumor_ray.errors import BundleError
from braintumor_ray.models.bundle import GeometryFields, load_bundle
from braintumor_ray.models.geometry import (
    Axis,
    find_geometry,
    layer_frame,
    seen_centers,
    standard_geometry,
    trace_geometry,
)
from tests.builders import make_bundle, make_model

# Worked out by hand: each stride of 2 with symmetric padding moves a center by half a pixel of its
# input to the left, TensorFlow's 'same' padding to the right, convolutions without padding inwards.
NETWORKS = [
    ("mobilenetv2_100", 224, Axis(0, 32)),
    ("resnet50", 256, Axis(0, 32)),
    ("efficientnet_b0", 224, Axis(0, 32)),
    ("densenet121", 224, Axis(14, 32)),  # two such layers, then average pooling of 2 x 2
    ("tf_efficientnet_b0", 256, Axis(31, 32)),
    ("convnext_tiny", 224, Axis(15.5, 32)),  # patches: evenly divided
    ("inception_v3", 224, Axis(37, 32)),
    ("small-cnn", 64, Axis(0, 8)),
    ("cnn-3conv", 64, Axis(8.5, 4)),
]


@pytest.mark.parametrize(("backbone", "size", "axis"), NETWORKS)
def test_gradients_lie_where_the_layers_tell(backbone, size, axis):
    model = make_model(backbone, "linear", size)
    traced = trace_geometry(model)
    assert traced == (axis, axis)
    cells = model.map_shape[1]
    chosen = [(1, cells // 2), (cells // 2, cells - 2)]
    for cell, seen in zip(chosen, seen_centers(model, chosen), strict=True):
        expected = traced.center(*cell)
        assert np.abs(np.subtract(seen, expected)).max() < 0.2 * axis.stride, (cell, seen, expected)


@pytest.mark.parametrize(("backbone", "size"), [("mobilenetv2_100", 128), ("small-cnn", 64)])
def test_the_whole_networks_gradient_lies_there_too(backbone, size):
    """Kernels as they are, averaged over inputs: nearer to its own center than to the usual one."""
    model = make_model(backbone, "linear", size)
    middle = model.map_shape[1] // 2
    images = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(0))
    images.requires_grad_()
    cell = model.features(images)[:, :, middle, middle]
    direction = torch.randn(cell.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((cell * direction).sum(), images)
    energy = gradient.double().square().sum(dim=(0, 1))
    seen = float((energy.sum(dim=1) @ torch.arange(size).double()) / energy.sum())
    own = find_geometry(model).center(middle, middle)[0]
    usual = standard_geometry(size, model.map_shape[1:]).center(middle, middle)[0]
    assert abs(seen - own) < abs(seen - usual) / 2


def test_evenly_divided_pictures_need_no_geometry():
    assert find_geometry(make_model("convnext_atto", "linear", 64)) is None


def test_geometry_that_gradients_do_not_confirm_is_not_used(monkeypatch):
    model = make_model()
    assert find_geometry(model) is not None
    wrong = standard_geometry(64, (8, 8))._replace(rows=Axis(20, 8))
    monkeypatch.setattr("braintumor_ray.models.geometry.trace_geometry", lambda _: wrong)
    assert find_geometry(model) is None


def test_an_operation_that_moves_cells_unseen_is_noticed():
    model = make_model()
    model.backbone.layers[3].register_forward_hook(lambda *seen: seen[2].roll(1, dims=2))
    assert trace_geometry(model) is None


def test_the_neck_joins_maps_of_several_strides():
    model = make_model(
        "mobilenetv2_100", "linear", 128, neck="topdown", neck_stride=8, neck_channels=8
    )
    traced = trace_geometry(model)
    assert traced.rows.stride == 8
    assert -15.5 < traced.rows.offset < 3.5  # between the finest map, 0, and the usual centers


OF_STRIDE_8 = Box(-3.5 / 64, -3.5 / 64, 60.5 / 64, 60.5 / 64)


class TestLayers:
    """`small-cnn`: layers.2 ends on the grid of 32 cells, layers.9 to 14 on the map's of 8."""

    @pytest.mark.parametrize("target", [WHOLE, OF_STRIDE_8], ids=["guided", "traced"])
    def test_layers_have_their_own_frame(self, target):
        frame = layer_frame(make_model(), "layers.2", target)
        assert (frame.left, frame.right) == (-0.5 / 64, 63.5 / 64)

    @pytest.mark.parametrize("target", [WHOLE, OF_STRIDE_8], ids=["guided", "traced"])
    def test_those_of_the_maps_own_grid_lie_as_the_map_does(self, target):
        assert layer_frame(make_model(), "layers.14", target) == target

    def test_behind_a_neck_no_layer_is_on_the_maps_grid(self):
        neck = {"neck": "topdown", "neck_stride": 8, "neck_channels": 8}
        model = make_model("mobilenetv2_100", "linear", 128, **neck)
        frame = layer_frame(model, "blocks.2", WHOLE)
        assert model.map_shape[1:] == (16, 16)
        assert frame.left == -3.5 / 128

    def test_channels_may_come_last(self):
        model = make_model("swin_tiny_patch4_window7_224", "linear", 128)
        for layer in ("patch_embed.proj", "patch_embed"):  # channels first, channels last
            assert layer_frame(model, layer, WHOLE) == WHOLE


class TestBundle:
    GEOMETRY = GeometryFields(offset=(0.0, 0.0), stride=(8.0, 8.0))

    def test_the_frame_follows_from_offset_and_stride(self, tmp_path):
        made = make_bundle(tmp_path / "b", map_geometry=self.GEOMETRY)
        bundle = load_bundle(tmp_path / "b")
        assert bundle.fields.map_geometry == self.GEOMETRY
        assert bundle.fingerprint == made.fingerprint
        assert bundle.map_frame == (-3.5 / 64, -3.5 / 64, 60.5 / 64, 60.5 / 64)

    def test_it_counts_in_the_fingerprint_only_where_it_is(self, tmp_path):
        plain = make_bundle(tmp_path / "a")
        assert plain.map_frame == WHOLE
        assert (
            plain.fingerprint != make_bundle(tmp_path / "b", map_geometry=self.GEOMETRY).fingerprint
        )
        text = (tmp_path / "a" / "bundle.json").read_text()
        assert '"map_geometry": null' in text
        (tmp_path / "a" / "bundle.json").write_text(text.replace('  "map_geometry": null,\n', ""))
        assert load_bundle(tmp_path / "a").fingerprint == plain.fingerprint

    def test_a_stride_of_nothing_is_refused(self, tmp_path):
        make_bundle(tmp_path / "b", map_geometry=self.GEOMETRY)
        path = tmp_path / "b" / "bundle.json"
        path.write_text(path.read_text().replace("8.0,", "0.0,"))
        with pytest.raises(BundleError, match="stride"):
            load_bundle(tmp_path / "b")
