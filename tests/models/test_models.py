import json

import pytest
import torch
from safetensors.torch import save_file

from braintumor_ray.errors import BundleError, UsageError, WeightsError
from braintumor_ray.models import weights
from braintumor_ray.models.bundle import load_bundle, save_bundle
from braintumor_ray.models.classifier import Architecture, Classifier, build_backbone
from braintumor_ray.models.freezing import backbone_is_frozen, set_trainable, train_mode
from braintumor_ray.models.weights import load_pretrained
from tests.builders import make_bundle, make_fields, make_model


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


class TestClassifier:
    def test_one_sigmoid_unit_has_the_softmax_of_its_two_logits(self):
        model = make_model(classes=2, sigmoid=True)
        logits = model(torch.randn(3, 3, 64, 64))
        assert logits.shape == (3, 2)
        z = logits[:, 1] * 2
        torch.testing.assert_close(logits.softmax(1)[:, 1], z.sigmoid())
        assert model.head.out_features == 1

    def test_sigmoid_is_refused_for_more_than_two_classes(self):
        with pytest.raises(UsageError, match="sigmoid"):
            make_model(classes=3, sigmoid=True)

    def test_linear_weight_is_the_derivative_of_the_logits(self):
        for sigmoid in (False, True):
            model = make_model(classes=2, sigmoid=sigmoid)
            pooled = torch.randn(1, 96)
            jacobian = torch.autograd.functional.jacobian(model.logits_from_pooled, pooled)
            torch.testing.assert_close(model.linear_weight(), jacobian[0, :, 0])

    def test_an_unknown_backbone_is_named_with_its_neighbors(self):
        with pytest.raises(UsageError, match="resnet51"):
            build_backbone("resnet51")

    def test_a_backbone_without_a_map_is_refused(self):
        with pytest.raises(UsageError, match="CAM"):
            Classifier(Architecture("pit_ti_224", "linear", 2, 224))


class TestFreezing:
    def test_head_only(self):
        model = make_model()
        set_trainable(model, "head")
        assert trainable(model) == {"head.weight", "head.bias"}
        assert backbone_is_frozen(model)

    def test_the_last_thirty_keras_layers_of_mobilenetv2(self):
        model = make_model("mobilenetv2_100", "mlp", 96)
        prefixes = ["blocks.5.0.bn3", "blocks.5.1", "blocks.5.2", "blocks.6", "conv_head", "bn2"]
        set_trainable(model, prefixes)
        names = {n.removeprefix("backbone.") for n in trainable(model) if "backbone" in n}
        assert "blocks.5.0.bn3.weight" in names
        assert "blocks.5.0.conv_pwl.weight" not in names
        assert "blocks.4.2.bn3.weight" not in names
        assert {"conv_head.weight", "bn2.weight", "blocks.6.0.conv_pw.weight"} <= names

    def test_frozen_batchnorm_keeps_its_statistics_and_the_rest_learns(self):
        model = make_model()
        set_trainable(model, ["layers.12"])  # the last convolution and, by name, not its norm
        train_mode(model)
        frozen, last = model.backbone.layers[1], model.backbone.layers[13]
        before = frozen.running_mean.clone()
        model(torch.randn(4, 3, 64, 64))
        assert not frozen.training
        assert not last.training
        assert torch.equal(before, frozen.running_mean)
        set_trainable(model, "all")
        train_mode(model)
        model(torch.randn(4, 3, 64, 64))
        assert not torch.equal(before, frozen.running_mean)

    def test_the_last_layers_by_number(self):
        model = make_model("resnet18", size=64)
        set_trainable(model, 4)
        names = {n.removeprefix("backbone.") for n in trainable(model) if "backbone" in n}
        layers = {name.rpartition(".")[0] for name in names}
        assert layers == {"layer4.1.conv1", "layer4.1.bn1", "layer4.1.conv2", "layer4.1.bn2"}
        with pytest.raises(UsageError, match="has 40 layers"):
            set_trainable(model, 41)

    def test_patterns_and_stages_by_name(self):
        model = make_model("resnet18", size=64)
        set_trainable(model, ["layer4", "*.bn1.weight"])
        names = {n.removeprefix("backbone.") for n in trainable(model) if "backbone" in n}
        assert "layer4.0.conv1.weight" in names
        assert "layer1.0.bn1.weight" in names
        assert "layer1.0.bn1.bias" not in names
        assert "layer3.0.conv1.weight" not in names

    def test_a_prefix_that_names_nothing_is_refused(self):
        with pytest.raises(UsageError, match=r"blocks\.99"):
            set_trainable(make_model("mobilenetv2_100", "mlp", 96), ["blocks.99"])


class TestWeights:
    def test_a_file_is_loaded_strictly_without_its_classifier(self, tmp_path):
        source = build_backbone("resnet18")
        state = {k: v + 1 for k, v in source.state_dict().items() if v.is_floating_point()}
        full = source.state_dict() | state | {"fc.weight": torch.zeros(1000, 512)}
        save_file({k: v.contiguous() for k, v in full.items()}, tmp_path / "w.safetensors")
        target = build_backbone("resnet18")
        line = load_pretrained(target, "resnet18", str(tmp_path / "w.safetensors"))
        assert "w.safetensors" in line
        assert torch.equal(target.conv1.weight, source.conv1.weight + 1)

    def test_a_file_of_another_architecture_is_refused(self, tmp_path):
        save_file(build_backbone("resnet18").state_dict(), tmp_path / "w.safetensors")
        with pytest.raises(WeightsError, match="does not fit"):
            load_pretrained(build_backbone("resnet34"), "resnet34", str(tmp_path / "w.safetensors"))

    def test_a_missing_or_damaged_file_is_one_line(self, tmp_path):
        (tmp_path / "bad.safetensors").write_bytes(b"no")
        for name in ("absent.safetensors", "bad.safetensors"):
            with pytest.raises(WeightsError, match=name):
                load_pretrained(build_backbone("resnet18"), "resnet18", str(tmp_path / name))

    def test_a_hub_out_of_reach_names_the_way_out(self, monkeypatch):
        monkeypatch.setattr(weights, "_cached", lambda _: False)
        monkeypatch.setattr(weights, "_hub_reachable", lambda: False)
        with pytest.raises(WeightsError, match="--weights FILE") as caught:
            load_pretrained(build_backbone("resnet18"), "resnet18", "imagenet")
        assert "\n" not in str(caught.value)

    @pytest.mark.real
    def test_the_shared_weights_fit(self, real_data):
        path = real_data / "weights" / "mobilenetv2_100.imagenet.safetensors"
        load_pretrained(build_backbone("mobilenetv2_100"), "mobilenetv2_100", str(path))


class TestBundle:
    def test_it_comes_back_as_it_was_saved(self, tmp_path):
        bundle = make_bundle(tmp_path / "b")
        again = load_bundle(tmp_path / "b")
        assert again.fields == bundle.fields
        assert again.fingerprint == bundle.fingerprint
        x = torch.randn(2, 3, 64, 64)
        assert torch.equal(again.build_model()(x), bundle.build_model()(x))
        assert {p.name for p in (tmp_path / "b").iterdir()} == {
            "model.safetensors",
            "bundle.json",
            "model_card.md",
        }

    def test_the_fingerprint_follows_what_changes_predictions_and_nothing_else(self, tmp_path):
        base = make_bundle(tmp_path / "0").fingerprint
        assert make_bundle(tmp_path / "1", metrics={"note": 1}).fingerprint == base
        k = len(load_bundle(tmp_path / "0").fields.class_names)
        sets = {"coverage": 0.9, "thresholds": (0.5,) * k, "groups": (9,) * k}
        changes = [
            *({"threshold": 0.6}, {"temperature": 2.0}, {"seed": 1}, {"domain_limit": 3.0}),
            *({"prediction_sets": sets}, {"prediction_sets": sets | {"coverage": 0.95}}),
        ]
        found = {make_bundle(tmp_path / f"c{i}", **c).fingerprint for i, c in enumerate(changes)}
        assert len(found | {base}) == len(changes) + 1

    def test_an_existing_directory_is_never_overwritten(self, tmp_path):
        make_bundle(tmp_path / "b")
        with pytest.raises(BundleError, match="exists already"):
            make_bundle(tmp_path / "b")

    def test_nothing_is_left_behind_when_saving_fails(self, tmp_path):
        model = make_model()
        with pytest.raises(TypeError):
            save_bundle(tmp_path / "b", make_fields(model.architecture), model, None, None)
        assert not list(tmp_path.iterdir())

    def test_changed_weights_are_noticed(self, tmp_path):
        make_bundle(tmp_path / "b")
        path = tmp_path / "b" / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(BundleError, match="sha256"):
            load_bundle(tmp_path / "b")

    @pytest.mark.parametrize("part", ["backbone", "head"])
    def test_weights_that_hold_nan_are_refused(self, tmp_path, monkeypatch, part):
        """With those of a head, each scan would have the first class, and status ok."""
        model = make_model()
        next(iter(getattr(model, part).parameters())).data.view(-1)[0] = float("nan")
        with pytest.raises(BundleError, match=f"NaN in 'model.{part}"):
            save_bundle(tmp_path / "b", make_fields(model.architecture), model, None, "# card\n")
        assert not list(tmp_path.iterdir())
        with monkeypatch.context() as patch:  # as others may write it
            patch.setattr("braintumor_ray.models.bundle._refuse_nan", lambda _: None)
            save_bundle(tmp_path / "b", make_fields(model.architecture), model, None, "# card\n")
        with pytest.raises(BundleError, match=f"NaN in 'model.{part}"):
            load_bundle(tmp_path / "b")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"unknown": 1}, "unknown"),
            ({"class_names": ["a", "a", "b", "c"]}, "class names"),
            ({"positive_classes": ["nobody"]}, "positive_classes"),
            ({"schema_version": 2}, "schema_version"),
        ],
    )
    def test_a_wrong_description_is_refused(self, tmp_path, change, words):
        make_bundle(tmp_path / "b")
        path = tmp_path / "b" / "bundle.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(BundleError, match=words):
            load_bundle(tmp_path / "b")

    def test_the_shape_of_the_maps_is_kept_and_must_be_the_networks(self, tmp_path, monkeypatch):
        bundle = make_bundle(tmp_path / "b")
        path = tmp_path / "b" / "bundle.json"
        fields = json.loads(path.read_text())
        assert tuple(fields["map_shape"]) == bundle.build_model().map_shape
        with monkeypatch.context() as patch:
            patch.setattr("braintumor_ray.models.bundle.Classifier", None)  # not to be built
            assert load_bundle(tmp_path / "b").map_shape == bundle.map_shape

        path.write_text(json.dumps(fields | {"map_shape": [8, 3, 3]}))
        with pytest.raises(BundleError, match="map_shape"):
            load_bundle(tmp_path / "b").build_model()

        del fields["map_shape"]  # an earlier bundle
        path.write_text(json.dumps(fields))
        earlier = load_bundle(tmp_path / "b")
        assert (earlier.map_shape, earlier.fingerprint) == (bundle.map_shape, bundle.fingerprint)

    def test_a_folder_that_is_no_bundle_says_what_one_is(self, tmp_path):
        with pytest.raises(BundleError, match="RUN/bundle"):
            load_bundle(tmp_path)
