"""Transformers explain, too: their tokens become a grid, with maps as exact as those of CNNs."""

import numpy as np
import pytest
import torch
from torch import nn

from braintumor_ray.errors import UsageError
from braintumor_ray.explain.cam import cams, class_gradient, predicted_class
from braintumor_ray.explain.library import library_cams
from braintumor_ray.models import classifier
from braintumor_ray.models.classifier import Architecture, Classifier, build_backbone
from braintumor_ray.models.geometry import find_geometry
from braintumor_ray.models.tokens import FeatureLayout, as_map
from braintumor_ray.models.vision_libraries import import_grad_cam, import_timm
from tests.builders import make_model
from tests.explain.test_cam import formulas_in_float64, images, stretched

VIT, SWIN = "vit_small_patch16_224", "swin_tiny_patch4_window7_224"


def explained(model, x):
    with torch.no_grad():
        features = model.features(x)
    gradient = class_gradient(model, features, predicted_class)
    return gradient, cams(features, gradient)


def vit_grid(tokens):
    """As the grad-cam library's documentation has it for ViT: without the class token."""
    side = int((tokens.shape[1] - 1) ** 0.5)
    grid = tokens[:, 1:, :].reshape(len(tokens), side, side, tokens.shape[2])
    return grid.transpose(2, 3).transpose(1, 2)


def swin_grid(features):
    """As the grad-cam library's documentation has it for Swin."""
    return features.transpose(2, 3).transpose(1, 2)


class Plain(nn.Module):
    """The backbone and the head, written down without this package."""

    def __init__(self, model, grid):
        super().__init__()
        self.backbone, self.head, self.grid = model.backbone, model.head, grid

    def forward(self, x):
        return self.head(self.grid(self.backbone.forward_features(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize(("name", "grid", "size"), [(VIT, vit_grid, 96), (SWIN, swin_grid, 128)])
class TestAgreement:
    def test_grad_cam_is_that_of_the_library_on_the_plain_network(self, name, grid, size):
        model = make_model(name, "linear", size)
        plain, x = Plain(model, grid).requires_grad_(True), images(size)
        with torch.no_grad():
            torch.testing.assert_close(plain(x), model(x), rtol=1e-4, atol=1e-5)
        gradient, maps = explained(model, x)
        target = import_grad_cam().utils.model_targets.ClassifierOutputTarget
        with import_grad_cam().GradCAM(
            model=plain, target_layers=[model.backbone.norm], reshape_transform=grid
        ) as library:
            theirs = library(input_tensor=x, targets=[target(int(c)) for c in gradient.classes])
        ours = torch.nn.functional.interpolate(
            maps["gradcam"][:, None], (size, size), mode="bilinear", align_corners=False
        )[:, 0]
        assert np.abs(stretched(ours).numpy() - theirs).max() < 1e-4

    def test_maps_are_those_of_the_whole_network_in_float64(self, name, grid, size):
        model = make_model(name, "linear", size)
        x = images(size)
        gradient, maps = explained(model, x)
        with torch.no_grad():
            features = model.double().features(x.double())
        expected = formulas_in_float64(model, features, gradient.classes)
        for method, found in maps.items():
            difference = stretched(found.double()) - stretched(expected[method])
            assert difference.abs().max() < 1e-4, method

    def test_maps_have_the_closed_form(self, name, grid, size):
        model = make_model(name, "linear", size)
        assert model.pools
        assert model.linear is model.head
        assert find_geometry(model) is None  # patches divide the picture evenly


@pytest.mark.parametrize(
    ("name", "size"),
    [(VIT, 64), (SWIN, 128), ("mvitv2_tiny", 128), ("hiera_tiny_224", 128),
     ("vit_small_patch16_dinov3", 64), ("twins_svt_small", 128)],
)  # fmt: skip
def test_cells_are_in_the_order_of_the_picture(name, size):
    """The gradient of a corner's cell is strongest there, or next to it where padding moves it."""
    model = make_model(name, "linear", size)
    _, height, width = model.map_shape
    for row, column in ((0, width - 1), (height - 1, 0)):
        x = images(size, count=4).requires_grad_()
        cell = model.features(x)[:, :, row, column]
        direction = torch.randn(cell.shape, generator=torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad((cell * direction).sum(), x)
        energy = gradient.square().sum(dim=(0, 1))[None, None]
        parts = torch.nn.functional.adaptive_avg_pool2d(energy, (height, width))[0, 0]
        strongest = divmod(int(parts.argmax()), width)
        assert np.abs(np.subtract(strongest, (row, column))).max() <= 1


class TestOtherPooling:
    def test_an_attention_pool_is_differentiated(self, monkeypatch):
        def build(*_):
            return import_timm().models.VisionTransformer(
                img_size=64, embed_dim=32, depth=2, num_heads=2, class_token=False,
                global_pool="map", num_classes=0,
            )  # fmt: skip

        monkeypatch.setattr(classifier, "build_backbone", build)
        model = Classifier(Architecture("any", "linear", 4, 64)).eval().requires_grad_(False)
        assert not model.pools
        x = images(64)
        torch.testing.assert_close(model(x), model.head(model.backbone(x)), rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            features = model.features(x)
        gradient, maps = explained(model, x)
        assert gradient.full is not None
        expected = formulas_in_float64(model, features, gradient.classes)
        for method, found in maps.items():
            difference = stretched(found.double()) - stretched(expected[method])
            assert difference.abs().max() < 1e-4, method

    def test_a_class_token_is_replaced_by_the_average(self):
        model = make_model(VIT, "linear", 64)
        x = images(64)
        tokens = model.backbone.forward_features(x)
        torch.testing.assert_close(model(x), model.head(tokens[:, 1:].mean(dim=1)))


class TestLayers:
    @pytest.mark.parametrize(
        ("name", "layer"),
        [(VIT, "blocks.11.norm1"), (VIT, "patch_embed.proj"), (SWIN, "layers.2"), (SWIN, "norm")],
    )
    def test_the_library_explains_inner_layers(self, name, layer):
        model = make_model(name, "linear", 64 if name == VIT else 128)
        maps = library_cams(model, images(model.architecture.image_size, 1), [1], "gradcam", layer)
        assert maps.shape == (1, *[model.architecture.image_size] * 2)
        assert maps.max() == pytest.approx(1, abs=1e-3)

    def test_the_last_norm_gives_the_map_of_the_target_layer(self):
        model = make_model(VIT, "linear", 64)
        x = images(64)
        theirs = [library_cams(model, x, [0, 1], "gradcam", layer) for layer in (None, "norm")]
        np.testing.assert_allclose(*theirs, atol=1e-5)

    def test_a_layer_without_a_grid_is_refused(self):
        with pytest.raises(UsageError, match="no square grid"):
            as_map(torch.zeros(2, 11, 8), FeatureLayout("tokens", 1))

    @pytest.mark.parametrize(
        ("name", "layer", "size", "grid"),
        [("resnet18", "layer1", 128, None), ("resnet18", "layer1", 256, None),
         (SWIN, "layers.0", 128, swin_grid)],
    )  # fmt: skip
    def test_inner_maps_are_those_of_the_library_by_itself(self, name, layer, size, grid):
        """ResNet's first stage has 64 channels, of 64 x 64 cells at 256 pixels."""
        model, x = make_model(name, "linear", size).requires_grad_(True), images(size, 1)
        library = import_grad_cam()
        targets = [library.utils.model_targets.ClassifierOutputTarget(1)]
        target = model.backbone.get_submodule(layer)
        with library.GradCAM(model, [target], reshape_transform=grid) as cam:
            expected = cam(x, targets)
        found = library_cams(model, x, [1], "gradcam", layer)
        np.testing.assert_allclose(found, expected, atol=1e-4)

    def test_as_many_channels_as_cells_on_a_side_are_in_the_backbones_own_place(self):
        cube = torch.arange(2 * 3 * 3 * 3).reshape(2, 3, 3, 3)
        assert torch.equal(as_map(cube, FeatureLayout()), cube)
        turned = as_map(cube, FeatureLayout("channels last"))
        assert torch.equal(turned, cube.permute(0, 3, 1, 2))


class TestLayout:
    @pytest.mark.parametrize(
        ("layout", "shape"),
        [(FeatureLayout(), (2, 8, 3, 3)), (FeatureLayout("channels last"), (2, 3, 3, 8)),
         (FeatureLayout("tokens", 2), (2, 11, 8)), (FeatureLayout("tokens"), (2, 9, 8))],
    )  # fmt: skip
    def test_there_and_back(self, layout, shape):
        features = torch.randn(shape)
        if layout.prefix:
            features[:, : layout.prefix] = 0
        maps = layout.to_map(features)
        assert maps.shape == (2, 8, 3, 3)
        assert torch.equal(layout.from_map(maps), features)

    def test_rows_come_first(self):
        tokens = torch.arange(9.0).reshape(1, 9, 1)
        assert FeatureLayout("tokens").to_map(tokens)[0, 0, 1].tolist() == [3, 4, 5]


class TestRefused:
    @pytest.mark.parametrize("name", [VIT, SWIN])
    def test_a_neck_needs_convolutional_stages(self, name):
        with pytest.raises(UsageError, match=r"model\.neck 'topdown'.*mobilenetv2_100"):
            Classifier(Architecture(name, "linear", 4, 224, neck="topdown", gate=True))

    @pytest.mark.parametrize(
        ("name", "size", "words"),
        [("pit_ti_224", 224, "no map"), ("crossvit_9_240", 240, "several maps"),
         ("efficientformer_l1", 64, "use 224")],
    )  # fmt: skip
    def test_what_has_no_grid_or_not_this_size(self, name, size, words):
        with pytest.raises(UsageError, match=words) as caught:
            Classifier(Architecture(name, "linear", 4, size))
        assert "\n" not in str(caught.value)

    def test_a_size_is_told_only_to_networks_of_one_size(self):
        assert build_backbone("resnet18", 96) is not None
        assert build_backbone(VIT, 96).patch_embed.img_size == (96, 96)
        assert build_backbone(VIT, 224).patch_embed.img_size == (224, 224)
