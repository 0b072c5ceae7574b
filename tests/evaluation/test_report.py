"""The report: its figures are those of metrics.json, and it needs nothing but itself."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from braintumor_ray.audit.audit import run_audit
from braintumor_ray.errors import UsageError
from braintumor_ray.evaluation.evaluate import EvaluateOptions, evaluate
from braintumor_ray.evaluation.report import phases, section_facts, section_tables, warnings
from braintumor_ray.pages.pages import interval, number, render

LOCALIZATION = {
    "scans": 12,
    "seed": 0,
    "measures": ["mass"],
    "classes": {
        "all": {
            "gradcam": {"n": 12, "mass": {"estimate": 0.25, "low": 0.1, "high": 0.4}},
            "centre": {"n": 12, "mass": {"estimate": 0.5, "low": None, "high": None}},
        },
        "glioma_tumor": {
            "gradcam": {"n": 5, "mass": {"estimate": None, "low": None, "high": None}}
        },
    },
}


class Figures(HTMLParser):
    """Collects the text of every element that names a path in metrics.json."""

    def __init__(self):
        super().__init__()
        self.found, self._open = [], None

    def handle_starttag(self, tag, attrs):
        self._open = dict(attrs).get("data-metric", self._open)

    def handle_data(self, data):
        if self._open is not None:
            self.found.append((self._open, data))
            self._open = None


@pytest.fixture(scope="module")
def report(run, fingerprinted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    audit = run_audit([("phantoms", fingerprinted)], folder / "audit", shortcuts=False)
    options = EvaluateOptions(
        n_boot=50, device="cpu", subgroups=("label",), compare=str(run.bundle), audit=audit,
        recalibrate=folder / "recalibrated", sections={"localisation": LOCALIZATION},
        notes=("These scans are synthetic.",),
    )  # fmt: skip
    metrics = evaluate(run.catalog, run.bundle, folder, options)
    return metrics, (folder / "report.html").read_text(), folder


def test_every_figure_on_the_page_equals_that_of_the_file(report):
    _, page, folder = report
    metrics = json.loads((folder / "metrics.json").read_text())
    parser = Figures()
    parser.feed(page)
    assert len(parser.found) > 100
    for path, text in parser.found:
        value = metrics
        for step in path.split("/"):
            value = value[int(step)] if isinstance(value, list) else value[step]
        if isinstance(value, dict):
            ends = interval(value)
            assert text == number(value["estimate"]) + (f" ({ends})" if ends else "")
        elif isinstance(value, float):
            assert text == (f"{value:.2f}" if path.endswith("/floor") else f"{value:.3f}")
        else:
            assert text == (value if isinstance(value, str) else number(value))


@pytest.mark.parametrize(
    "path",
    [
        "accuracy", "balanced_accuracy", "mcc", "binary/sensitivity", "binary/specificity",
        "binary/auroc", "intervals/sensitivity/low", "calibration/ece", "calibration/brier",
        "counts/quarantined", "per_class/glioma_tumor/f1", "leakage/pixel_identical",
        "comparison/mcnemar/p_value", "sections/localisation/classes/all/gradcam/mass",
    ],
)  # fmt: skip
def test_the_figures_that_matter_are_on_the_page(report, path):
    assert f'data-metric="{path}"' in report[1]


def test_the_page_needs_no_network_and_runs_nothing(report):
    _, page, _ = report
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)
    assert "@import" not in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page  # the model card's, as text


@pytest.mark.parametrize(
    "words",
    [
        "Research software, not a medical device", "What it must not be used for", "Model card",
        "These scans are synthetic.", "The split leaks", "Scans per split and class",
        "Phases, each at its epoch", "A recalibrated bundle was written",
        "Only 4 independent groups",
    ],
)  # fmt: skip
def test_the_page_says(report, words):
    assert words in report[1]


def test_samples_galleries_and_plots_are_inside_the_page(report):
    metrics, page, folder = report
    assert page.count('alt="sample of') >= 4 * 6
    assert page.count('alt="scan and heatmaps of') > 6
    assert page.count("data:image/svg+xml") >= 8
    assert list(folder.glob("gallery_*.png"))
    assert metrics["binary"]["fn"] + metrics["binary"]["fp"] > 0


def test_counts_per_split_are_those_of_the_catalog(report, run):
    table = re.search(r"Scans per split and class, whole catalog(.*?)</table>", report[1], re.S)[1]
    heads = re.findall(r"<th>(\w+)</th>", table)
    rows = [re.findall(r"<td>(\w+)</td>", row) for row in re.findall(r"<tr><td>.*?</tr>", table)]
    assert all(len(row) == len(heads) for row in rows)
    counted = sum(int(row[heads.index("test")]) for row in rows)
    assert counted == run.catalog["split"].to_pylist().count("test")


def test_a_missing_audit_file_is_a_clear_error(run, tmp_path):
    options = EvaluateOptions(n_boot=10, device="cpu", per_gallery=0, audit=tmp_path / "no.json")
    with pytest.raises(UsageError, match=r"audit .* cannot be read"):
        evaluate(run.catalog, run.bundle, tmp_path / "out", options)


def test_phases_take_the_epoch_of_lowest_validation_loss():
    history = [
        {"stage": "head", "lr": 0.1, "val_loss": 1.0, "val_accuracy": 0.5},
        {"stage": "head", "lr": 0.05, "val_loss": 0.5, "val_accuracy": 0.7},
        {"stage": "head", "lr": 0.05, "val_loss": 0.9, "val_accuracy": 0.8},
        {"stage": "all", "lr": 0.01, "val_loss": 0.4, "val_accuracy": 0.9},
    ]
    head, every = phases(history)
    assert (head["epochs"], head["best"]["val_accuracy"]) == (3, 0.7)
    assert head["lr"] == "1.0e-01 to 5.0e-02"
    assert every["lr"] == "1.0e-02"
    assert phases([]) == []


def test_warnings_are_said_only_where_they_apply(report):
    metrics = report[0]
    compared = {"checked": True, "compared_by": ["pixels", "perceptual hashes"]}
    clean = {
        **metrics,
        "n_groups": 500,
        "sections": {},
        "leakage": {**metrics["leakage"], **compared},
        "counts": {**metrics["counts"], "quarantined": 0},
    }
    assert warnings(clean) == []
    leaky = {**clean, "leakage": {**clean["leakage"], "pixel_identical": 7}}
    assert any(sentence.startswith("7 of") for sentence in warnings(leaky))
    assert warnings({**clean, "leakage": {**clean["leakage"], "checked": False}})
    rim = {**clean, "sections": {"heat_by_region": {"on_average": True}}}
    assert any("skull's rim" in sentence for sentence in warnings(rim))


def test_a_summary_is_cut_into_tables_of_its_innermost_mappings():
    tables = section_tables(LOCALIZATION, ("sections", "localisation"))
    assert [table.caption for table in tables] == ["classes: all scans", "classes: glioma tumor"]
    name, cells = tables[0].rows[0]
    assert (name, tables[0].columns) == ("gradcam", ["n", "mass"])
    assert cells[1] == ("sections", "localisation", "classes", "all", "gradcam", "mass")
    assert section_facts(LOCALIZATION) == [("scans", ("scans",)), ("seed", ("seed",))]


def test_lists_of_a_summary_stay_in_the_file():
    summary = {"methods": {"gradcam": {"deletion_auc": 0.2, "per_scan": {"a": [1, 2]}}}}
    (table,) = section_tables(summary)
    assert table.columns == ["deletion_auc"]


def test_what_a_template_is_not_given_is_an_error():
    with pytest.raises(Exception, match="audit"):
        render("audit.html.j2", {"title": "x"})


def test_a_catalog_without_splits_or_history_still_makes_a_page(phantoms, lone_bundle, tmp_path):
    options = EvaluateOptions(split="all", n_boot=10, device="cpu", per_gallery=1, seed=2)
    evaluate(phantoms, lone_bundle, tmp_path, options)
    page = (tmp_path / "report.html").read_text()
    assert "5 scans could not be read" in page
    assert "are not known here" in page
    assert 'id="training"' not in page


@pytest.mark.slow
def test_pages_are_the_same_for_the_same_seed(run, tmp_path):
    options = EvaluateOptions(n_boot=10, device="cpu", precision="fp32", per_gallery=1)
    pages = []
    for name in ("a", "b"):
        evaluate(run.catalog, run.bundle, tmp_path / name, replace(options, seed=1))
        page = (tmp_path / name / "report.html").read_text()
        pages.append(re.sub(r"Made [^<]*UTC", "", page))
    assert pages[0] == pages[1]


def test_numbers_are_written_plainly():
    assert number(1234) == "1,234"
    assert number(np.float64(0.12345).item()) == "0.123"
    assert number(None) == number(None) != "0"
    assert interval({"estimate": 1, "low": None, "high": None}) == ""
