"""The figures of a phase and their intervals are of the same decision."""

import numpy as np
import pytest

from braintumor_ray.models.bundle import Bundle
from braintumor_ray.models.classifier import Architecture
from braintumor_ray.recipes.loader import load_recipe
from braintumor_ray.training import phases
from braintumor_ray.training.finish import Outputs
from braintumor_ray.training.phases import TUNED, comparable, phase_lines, phase_table
from tests.builders import make_fields

BINARY, FOUR = ("glioma", "no_tumor"), ("glioma", "other", "no_tumor")


def outputs(k: int) -> Outputs:
    """Random outputs of 200 scans that lean towards the truth."""
    rng = np.random.default_rng(0)
    labels = rng.integers(k, size=200)
    logits = (rng.normal(size=(200, k)) + 1.5 * np.eye(k)[labels]).astype(np.float32)
    return Outputs(np.arange(200), logits, np.zeros((200, 1), np.float32), labels)


@pytest.fixture
def table(monkeypatch):
    """The rows of a network with two stages, without the network."""

    def made(classes, threshold):
        architecture = Architecture("small-cnn", "linear", len(classes), 64)
        fields = make_fields(architecture, classes=classes, threshold=threshold)
        fields.recipe["stages"] = [{"name": "frozen"}, {"name": "full"}]
        bundle = Bundle(fields, {}, None)
        monkeypatch.setattr(phases, "Predictor", lambda *_, **__: None)
        found = outputs(len(classes))
        return phase_table(bundle, {"frozen": {}}, lambda _: found, lambda ids: ids)

    return made


@pytest.mark.parametrize("classes", [BINARY, FOUR])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_every_figure_of_a_row_is_of_one_decision(table, classes, threshold):
    for row in table(classes, threshold):
        matrix = np.array(row["confusion_matrix"])
        recalls = np.diag(matrix) / matrix.sum(axis=1)
        assert row["accuracy"] == pytest.approx(np.trace(matrix) / matrix.sum())
        assert row["balanced_accuracy"] == pytest.approx(recalls.mean())
        if len(classes) == 2:
            b = row["binary"]
            assert matrix.tolist() == [[b["tp"], b["fn"]], [b["fp"], b["tn"]]]
            assert row["recall"] == pytest.approx(b["sensitivity"])
            assert row["f1"] == pytest.approx(b["f1"])


@pytest.mark.parametrize("classes", [BINARY, FOUR])
def test_the_intervals_are_of_the_last_row(table, classes):
    row = table(classes, 0.9)[-1]
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert row["intervals"][name]["estimate"] == pytest.approx(row[name])
        assert row["intervals"][name]["low"] < row[name] < row["intervals"][name]["high"]
    sensitivity = row["intervals"]["sensitivity"]["estimate"]
    assert sensitivity == pytest.approx(row["binary"]["sensitivity"])


def test_the_tuned_threshold_is_a_row_only_where_it_changes_a_decision(table):
    names = ["after frozen", "after full"]
    assert [row["phase"] for row in table(BINARY, 0.9)] == [*names, TUNED]
    assert [row["phase"] for row in table(BINARY, 0.5)] == names
    assert [row["phase"] for row in table(FOUR, 0.9)] == names
    assert [row["rule"] for row in table(BINARY, 0.9)][1:] == [
        "likeliest class",
        "tumor decision at 0.900",
    ]
    assert table(FOUR, 0.9)[-1]["binary"]["threshold"] == pytest.approx(0.9)


def test_published_figures_are_shown_for_the_same_classes_only():
    published = load_recipe("mobilenetv2-finetune").published
    binary = load_recipe("cnn-3conv").published
    architecture = Architecture("small-cnn", "linear", 2, 64)

    def shown(entries, *classes, synthetic=False):
        fields = make_fields(architecture, classes=classes, positive_classes=classes[:1])
        return len(comparable(entries, fields, synthetic))

    assert shown(published, "pituitary", "no_tumor") == 3
    assert shown(published, "Pituitary_tumor", "No tumor") == 3
    assert shown(published, "pituitary_tumor", "no_tumor", synthetic=True) == 0
    assert shown(published, "glioma", "no_tumor") == 0
    assert shown(binary, "tumor", "none") == 1
    assert shown(binary, "pituitary", "none") == 0


def test_lines_name_the_rule_of_each_row(table):
    lines = phase_lines(table(BINARY, 0.9), load_recipe("mobilenetv2-finetune").published)
    assert lines[0][:2] == ["phase", "decided by"]
    assert lines[3][1] == "tumor decision at 0.900"
    assert lines[-1][0].startswith("published: at threshold 0.65")
    assert lines[-1][2:] == ["0.910", "-", "0.960", "-"]
