"""Three plain sentences on top of a report, made of its figures."""

import json

import pytest

from braintumor_ray.evaluation.conclusions import about_maps, border_finding, conclusions
from braintumor_ray.evaluation.evaluate import run_phases

CONFUSION = [[18, 2, 0], [1, 19, 0], [4, 6, 10]]
NAMES = ["glioma", "meningioma", "none"]


def metrics(confusion=CONFUSION, **sections):
    recalls = [row[i] / sum(row) for i, row in enumerate(confusion)]
    return {
        "n": 60,
        "accuracy": 47 / 60,
        "class_names": NAMES,
        "confusion_matrix": confusion,
        "per_class": {
            name: {"recall": recall, "support": sum(row)}
            for name, recall, row in zip(NAMES, recalls, confusion, strict=True)
        },
        "binary": {"threshold": 0.4, "tp": 40, "fn": 0, "fp": 10, "tn": 10},
        "sections": sections,
    }


def peak(share, low):
    return {"n": 40, "pointing": {"estimate": share, "low": low, "high": 1.0}}


def localized(low):
    rows = {"gradcam": peak(0.9, low), "gradcam_pp": peak(0.6, 0.5), "centre": peak(0.5, 0.4)}
    return {"baselines": ["centre"], "classes": {"all": rows}}


def test_what_it_can_and_where_it_fails_are_said_in_counts():
    can, fails, maps = conclusions(metrics())
    assert "0 of 40 scans with a tumor missed, 10 of 20 without one called tumor" in can
    assert "right for 47 of 60 scans (78.3%)" in can
    assert fails == (
        "It is weakest on none: the likeliest class is right for 50.0% of its 20 scans, and "
        "meningioma for 6 of them."
    )
    assert "not measured" in maps


def test_a_network_at_chance_is_called_so():
    assert "at chance" in conclusions(metrics([[7, 7, 6], [6, 7, 7], [7, 6, 7]]))[0]


@pytest.mark.parametrize(("low", "words"), [(0.8, "may be used as a hint"), (0.45, "must not be")])
def test_maps_are_judged_against_a_map_that_ignores_the_scan(low, words):
    said = about_maps({"localisation": localized(low)})
    assert words in said
    assert "Grad-CAM is inside the tumor in 90.0% of 40 scans" in said


def test_heat_on_the_skull_is_said_by_class():
    heat = {
        "looks_at_border": 25,
        "scans": 60,
        "classes": {
            "healthy": {"scans": 38, "looks_at_border": 23},
            "tumor": {"scans": 22, "looks_at_border": 2},
        },
    }
    assert border_finding(heat).startswith("in 23 of 38 healthy scans, 2 of 22 tumor scans")
    assert "23 of 38" in about_maps({"heat_by_region": heat})
    assert border_finding({"looks_at_border": 0}) == ""
    many = {f"c{n}": {"scans": 10, "looks_at_border": n} for n in range(1, 8)}
    said = border_finding({"looks_at_border": 28, "scans": 70, "classes": many})
    assert said.startswith("in 7 of 10 c7 scans, 6 of 10 c6 scans, 5 of 10 c5 scans, and scans of")


def test_phases_of_an_earlier_run_are_read_by_one_rule(tmp_path):
    binary = {
        "tp": 8, "fn": 2, "fp": 5, "tn": 5, "accuracy": 0.65, "balanced_accuracy": 0.65,
        "f1": 16 / 23,
    }  # fmt: skip
    row = {
        "phase": "at the tuned threshold", "threshold": 0.3, "class_names": ["no", "yes"],
        "confusion_matrix": [[9, 1], [6, 4]], "accuracy": 0.65, "balanced_accuracy": 0.65,
        "macro_f1": 0.5, "binary": binary, "per_class": {},
    }  # fmt: skip

    (tmp_path / "phases.json").write_text(json.dumps([row]))
    (read,) = run_phases(str(tmp_path / "bundle"), ["yes"])
    assert read["confusion_matrix"] == [[5, 5], [2, 8]]
    assert read["rule"] == "tumor decision at 0.300"
    assert read["macro_f1"] == pytest.approx((16 / 23 + 10 / 17) / 2)
    (read,) = run_phases(str(tmp_path / "bundle"), ["no"])
    assert read["confusion_matrix"] == [[8, 2], [5, 5]]
