"""The networks of the recipes against figures worked out by hand from the published tables."""

import functools

import pytest
import torch

from braintumor_ray.models.classifier import Architecture, Classifier, input_size_of
from braintumor_ray.recipes.loader import load_recipe

# Backbones without their classifier, from the papers' tables: DenseNet-121 7,978,856 less
# 1024 x 1000 + 1000; MobileNetV2 3,504,872 and EfficientNet-B0 5,288,548 less 1280 x 1000 + 1000;
# Inception-v3 23,834,568 less 2048 x 1000 + 1000 (no auxiliary classifier).
DENSENET121, MOBILENETV2, EFFICIENTNET_B0, INCEPTION_V3 = 6953856, 2223872, 4007548, 21785568
ATTENTION_HEAD = (
    (1024 * 512 + 512)  # dense 512
    + (3 * 512 * 512 + 3 * 512)  # queries, keys, values of 8 heads of 64
    + (512 * 512 + 512)  # their projection
    + 2 * 512  # BatchNorm
    + (512 * 16 + 16)  # dense 16
    + 2 * 16  # BatchNorm
    + (16 * 2 + 2)  # 2 classes
)
CNN_3CONV = (
    (3 * 3 * 3 * 32 + 32)
    + (3 * 3 * 32 * 64 + 64)
    + (3 * 3 * 64 * 128 + 128)
    + (115_200 * 128 + 128)
    + (128 * 2 + 2)
)
PUBLISHED = [
    # recipe, classes, parameters, target map at the recipe's input size
    ("densenet121-attention", 2, DENSENET121 + ATTENTION_HEAD, (1024, 7, 7)),
    ("mobilenetv2-finetune", 2, MOBILENETV2 + 1280 * 128 + 128 + 128 + 1, (1280, 7, 7)),
    ("mobilenetv2-finetune", 4, MOBILENETV2 + 1280 * 128 + 128 + 128 * 4 + 4, (1280, 7, 7)),
    ("inceptionv3-localise", 2, INCEPTION_V3 + 2048 * 2 + 2, (2048, 5, 5)),
    ("efficientnet-4class", 4, EFFICIENTNET_B0 + 1280 * 4 + 4, (1280, 7, 7)),
    ("cnn-3conv", 2, CNN_3CONV, (128, 60, 60)),
]


@functools.cache
def build(name, classes):
    recipe = load_recipe(name)
    section = recipe.model
    sigmoid = section.output == "sigmoid" or (section.output == "auto" and classes == 2)
    size = recipe.data.image_size
    return Classifier(
        Architecture(
            section.backbone, section.head, classes, size, section.hidden, section.dropout, sigmoid
        )
    ).eval()


@pytest.mark.parametrize(("name", "classes", "parameters", "shape"), PUBLISHED)
def test_parameters_and_shapes_are_the_published_ones(name, classes, parameters, shape):
    model = build(name, classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    size = load_recipe(name).data.image_size
    with torch.inference_mode():
        features = model.features(torch.rand(2, 3, size, size))
        logits = model.logits(features)
    assert features.shape == (2, *shape)
    assert logits.shape == (2, classes)


def test_the_small_network_has_the_published_total():
    assert CNN_3CONV == 14_839_234
    assert 60 // 2 * (60 // 2) * 128 == 115_200


def test_the_head_of_attention_is_in_the_published_order():
    kinds = [type(module).__name__ for module in build("densenet121-attention", 2).head.classify]
    assert kinds == ["Dropout", "BatchNorm1d", "Linear", "ReLU", "Dropout", "BatchNorm1d", "Linear"]
    rates = [m.p for m in build("densenet121-attention", 2).head.classify if hasattr(m, "p")]
    assert rates == [0.7, 0.5]


def test_timms_own_input_size_is_known():
    assert input_size_of("convnext_tiny") == 224
    assert input_size_of("inception_v3") == 299
    assert input_size_of("small-cnn") is None
