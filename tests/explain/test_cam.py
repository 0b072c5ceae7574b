"""CAMs against the grad-cam library and against the formulas in float64."""

import threading

import numpy as np
import pytest
import torch

from braintumor_ray.errors import UsageError
from braintumor_ray.explain import library
from braintumor_ray.explain.cam import (
    METHODS,
    ClassGradient,
    cams,
    class_gradient,
    grad_cam,
    grad_cam_pp,
    predicted_class,
)
from braintumor_ray.explain.library import library_cams
from braintumor_ray.models.vision_libraries import import_grad_cam
from tests.builders import make_model

NETWORKS = [  # maps of 7 x 7 or 4 x 4: the formulas do not depend on their size
    pytest.param("mobilenetv2_100", "mlp", 224, id="mobilenetv2-mlp"),
    pytest.param("mobilenetv2_100", "linear", 128, id="mobilenetv2"),
    pytest.param("efficientnet_b0", "linear", 128, id="efficientnet"),
    pytest.param("densenet121", "linear", 128, id="densenet"),
    pytest.param("densenet121", "attention", 128, id="densenet-attention"),
    pytest.param("resnet50", "linear", 128, id="resnet50"),
    pytest.param("inception_v3", "linear", 192, id="inception"),
    pytest.param("cnn-3conv", "flatten", 128, id="flatten-dense"),
    pytest.param("convnext_atto", "linear", 128, id="norm-after-pooling"),
    pytest.param("mobilenetv3_small_100", "linear", 128, id="convolution-after-pooling"),
]
TRANSFORMERS = [
    pytest.param("vit_small_patch16_224", "linear", 64, id="vit-small"),
    pytest.param("swin_tiny_patch4_window7_224", "linear", 128, id="swin-tiny"),
    pytest.param("vit_small_patch14_reg4_dinov2", "mlp", 56, id="dinov2-registers"),
    pytest.param("eva02_tiny_patch14_224", "linear", 56, id="tokens-norm-after-pooling"),
]


# Backbone, head, size, and further fields of the architecture.
REFINED = [
    pytest.param({"pooling": "lse"}, id="log-sum-exp"),
    pytest.param({"neck": "topdown", "neck_stride": 8, "neck_channels": 16}, id="neck"),
    pytest.param(
        {"neck": "topdown", "neck_stride": 16, "neck_channels": 16, "pooling": "lse"},
        id="neck-and-log-sum-exp",
    ),
]


def network(backbone, head, size, **options):
    return make_model(backbone, head, size, classes=4, **options)


def images(size, count=2, seed=1):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def explain(model, x, methods=("gradcam", "gradcam_pp"), choose=predicted_class):
    with torch.no_grad():
        features = model.features(x)
    gradient = class_gradient(model, features, choose)
    return features, gradient, cams(features, gradient, methods)


def stretched(maps):
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-30)


def formulas_in_float64(model, features, classes):
    """Each method by its published formula, g from autograd through the head."""
    model = model.double()
    a = features.double().detach().requires_grad_()
    (g,) = torch.autograd.grad(model.logits(a).gather(1, classes[:, None]).sum(), a)
    model.float()
    a = a.detach()
    total = a.sum((2, 3), keepdim=True)
    denominator = 2 * g**2 + total * g**3
    alpha = torch.where(g != 0, g**2 / torch.where(denominator != 0, denominator, 1), 0)

    def weighted(w):
        return (w.reshape(*w.shape[:2], 1, 1) * a).sum(1).relu()

    return {
        "gradcam": weighted(g.mean((2, 3))),
        "gradcam_pp": weighted((alpha * g.relu()).sum((2, 3))),
        "xgradcam": weighted(((g * a).sum((2, 3)) / a.sum((2, 3))).nan_to_num()),  # dead channels
        "hirescam": (g * a).sum(1).relu(),
        "layercam": (g.relu() * a).sum(1).relu(),
    }


@pytest.mark.parametrize("options", REFINED)
def test_maps_of_refined_networks_equal_their_formulas_in_float64(options):
    check_formulas(network("mobilenetv2_100", "linear", 128, **options), 128)


@pytest.mark.parametrize("options", REFINED)
def test_refined_networks_agree_with_the_grad_cam_library(options):
    model = network("mobilenetv2_100", "linear", 128, **options)
    x = images(128)
    _, gradient, maps = explain(model, x, ("gradcam",))
    theirs = library_cams(model, x, gradient.classes.tolist(), "gradcam")
    ours = torch.nn.functional.interpolate(
        maps["gradcam"][:, None], (128, 128), mode="bilinear", align_corners=False
    )[:, 0]
    assert np.abs(stretched(ours).numpy() - theirs).max() < 1e-4


@pytest.mark.parametrize(("backbone", "head", "size"), NETWORKS + TRANSFORMERS)
def test_every_method_equals_its_formula_in_float64(backbone, head, size):
    check_formulas(network(backbone, head, size), size)


def check_formulas(model, size):
    features, gradient, maps = explain(model, images(size), tuple(METHODS))
    expected = formulas_in_float64(model, features, gradient.classes)
    for name, truth in expected.items():
        difference = (stretched(maps[name].double()) - stretched(truth)).abs().max()
        assert difference < 1e-4, name


@pytest.mark.parametrize(("backbone", "head", "size"), NETWORKS + TRANSFORMERS)
def test_grad_cam_equals_the_library(backbone, head, size):
    model = network(backbone, head, size)
    x = images(size)
    _, gradient, maps = explain(model, x)
    theirs = library_cams(model, x, gradient.classes.tolist(), "gradcam")
    ours = torch.nn.functional.interpolate(
        maps["gradcam"].unsqueeze(1), size=(size, size), mode="bilinear", align_corners=False
    ).squeeze(1)
    assert np.abs(stretched(ours).numpy() - theirs).max() < 1e-5


@pytest.mark.parametrize(
    ("backbone", "head", "size"), NETWORKS[:1] + NETWORKS[-3:-1] + TRANSFORMERS
)
def test_a_batch_gives_what_single_images_give(backbone, head, size):
    model = network(backbone, head, size)
    x = images(size, count=3)
    _, _, together = explain(model, x)
    for index in range(3):
        _, _, alone = explain(model, x[index : index + 1])
        for name, maps in together.items():
            torch.testing.assert_close(maps[index], alone[name][0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "head"), [("small-cnn", "mlp"), ("small-cnn", "linear"), ("cnn-3conv", "flatten")]
)
def test_nothing_is_left_on_the_model(backbone, head):
    model = network(backbone, head, 64).requires_grad_(True)
    model.backbone.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    explain(model, images(64))
    assert all(p.grad is None for p in model.parameters())
    assert not model.training
    hooks = [m for m in model.modules() if m._forward_hooks or m._backward_hooks]
    assert not hooks
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert any(p.requires_grad for p in model.head.parameters())


def test_frozen_and_learning_networks_give_the_same_maps():
    model = network("small-cnn", "mlp", 64)
    _, _, frozen = explain(model, images(64))
    _, _, learning = explain(model.requires_grad_(True), images(64))
    assert torch.equal(frozen["gradcam_pp"], learning["gradcam_pp"])


def test_four_threads_on_one_network_give_the_same_maps():
    model = network("small-cnn", "mlp", 64)
    batches = [images(64, seed=seed) for seed in range(4)]
    expected = [explain(model, x)[2]["gradcam_pp"] for x in batches]
    found = [[] for _ in batches]

    def work(index):
        for _ in range(8):
            found[index].append(explain(model, batches[index])[2]["gradcam_pp"])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for truth, maps in zip(expected, found, strict=True):
        assert len(maps) == 8
        assert all(torch.equal(truth, m) for m in maps)


def test_it_works_on_features_made_in_inference_mode():
    model = network("small-cnn", "mlp", 64)
    with torch.inference_mode():
        features = model.features(images(64))
    assert cams(features, class_gradient(model, features, predicted_class))["gradcam"].sum() > 0


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("classes", [[0, 4], [-1, 0], [0]])
def test_a_class_that_does_not_fit_is_refused(head, classes):
    model = network("small-cnn", head, 64)
    with pytest.raises(UsageError, match="class indices"):
        explain(model, images(64), choose=lambda _: torch.tensor(classes))


def test_an_unknown_method_is_named():
    with pytest.raises(UsageError, match="nonecam"):
        explain(network("small-cnn", "linear", 64), images(64), ("nonecam",))


def test_a_map_of_zeros_stays_zeros():
    features = torch.zeros(2, 3, 4, 4)
    gradient = ClassGradient(
        torch.zeros(2, 2),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(2, 3),
        torch.ones(2, 3),
        None,
    )
    for name, maps in cams(features, gradient, tuple(METHODS)).items():
        assert torch.equal(maps, torch.zeros(2, 4, 4)), name


def test_hand_worked_values():
    """One image, two channels of 1 x 2 positions, g = (0.5, -0.5) everywhere (p = Z g)."""
    features = torch.tensor([[[[2.0, 4.0]], [[6.0, 0.0]]]])
    pooled = torch.tensor([[1.0, -1.0]])
    mean = features.mean(dim=(2, 3))
    gradient = ClassGradient(torch.zeros(1, 2), torch.tensor([0]), mean, pooled, None)
    # Grad-CAM: 0.5 * (2, 4) - 0.5 * (6, 0) = (-2, 2), ReLU.
    assert grad_cam(features, gradient).tolist() == [[[0.0, 2.0]]]
    # Grad-CAM++: w_0 = 1 / (2 + 1 * 3) = 0.2, w_1 = 0 as g < 0.
    torch.testing.assert_close(grad_cam_pp(features, gradient), torch.tensor([[[0.4, 0.8]]]))


def test_library_methods_run_by_name_on_any_layer():
    model = network("small-cnn", "linear", 64)
    x = images(64)
    assert library_cams(model, x, [0, 1], "eigencam").shape == (2, 64, 64)
    assert library_cams(model, x, [0, 1], "gradcam", layer="layers.5").max() == pytest.approx(
        1, 1e-3
    )
    assert not [m for m in model.modules() if m._forward_hooks]


@pytest.mark.parametrize("head", ["linear", "attention", "flatten"])
@pytest.mark.parametrize("layer", [None, "layers.2"])
def test_every_library_method_runs_on_every_head(head, layer):
    model = network("small-cnn", head, 64)
    for method in library.METHODS:
        maps = library_cams(model, images(64)[:1], [0], method, layer)
        assert maps.shape == (1, 64, 64), method
        assert np.isfinite(maps).all(), method


@pytest.mark.parametrize("backbone", ["small-cnn", "swin_tiny_patch4_window7_224"])
def test_without_curvature_shapley_cam_is_grad_cam(backbone):
    """Its weights are g - H A / 2, and a logit that is linear in the map has no H."""
    model, x = network(backbone, "linear", 64), images(64)
    found, expected = (library_cams(model, x, [0, 1], m) for m in ("shapleycam", "gradcam"))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0, 1], "nonecam", None), "nonecam"),
        (([0, 1], "gradcam", "nolayer"), "nolayer"),
        (([0, 9], "gradcam", None), "classes"),
        (([0], "gradcam", None), "classes"),
    ],
)
def test_the_library_is_not_called_with_what_it_would_silently_turn_to_zeros(arguments, words):
    model = network("small-cnn", "linear", 64)
    with pytest.raises(UsageError, match=words):
        library_cams(model, images(64), *arguments)


def test_shapley_cam_of_a_layer_of_tokens_is_refused():
    model = network("vit_small_patch16_224", "linear", 64)
    assert library_cams(model, images(64), [0, 1], "shapleycam").shape == (2, 64, 64)
    with pytest.raises(UsageError, match="network of tokens; leave --layer out"):
        library_cams(model, images(64), [0, 1], "shapleycam", "blocks.3")


def test_the_library_itself_is_the_real_one():
    assert import_grad_cam().__name__ == "pytorch_grad_cam"
