"""External validation: labels mapped, copies left out, nothing chosen on the data."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.catalog.schema import write_catalog
from braintumor_ray.cli import app
from braintumor_ray.decode.decode import decode
from braintumor_ray.decode.reading import hash_scans
from braintumor_ray.errors import UsageError
from braintumor_ray.evaluation.by_patient import rolled_up
from braintumor_ray.evaluation.evaluate import EvaluateOptions, evaluate
from braintumor_ray.evaluation.evaluated import evaluate_rows
from braintumor_ray.evaluation.foreign_labels import foreign_truth
from braintumor_ray.evaluation.options import ValidateOptions, named_values
from braintumor_ray.evaluation.validation import validate
from braintumor_ray.evaluation.validation_page import figure_table
from braintumor_ray.localization.outlines import TruthError
from braintumor_ray.models.bundle import load_bundle
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.storage import read_bytes

QUICK = ValidateOptions(n_boot=30, device="cpu", precision="fp32")
YES_NO = replace(QUICK, classes=("tumor=yes,no_tumor=no",))


def scans_of(catalog, split):
    rows = catalog.filter(pc.equal(catalog["split"], split)).to_pylist()
    return [row for row in rows if row["status"] == "ok"]


def save(folder, label, name, gray, *parameters):
    path = Path(folder) / label / name
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), gray, parameters)


@pytest.fixture(scope="module")
def foreign(run, tmp_path_factory):
    """Unseen scans, two re-encoded training scans, noise, a bad file and an odd label."""
    folder = tmp_path_factory.mktemp("foreign")
    for row in scans_of(run.catalog, "test"):
        label = "no" if row["label"] == "no_tumor" else "yes"
        save(folder, label, f"{row['scan_id']}.png", decode(read_bytes(row["uri"])).gray)
    for row in scans_of(run.catalog, "train")[:2]:
        gray = (decode(read_bytes(row["uri"])).gray * 0.95).astype(np.uint8)
        save(folder, "yes", f"copy_{row['scan_id']}.jpg", gray, cv2.IMWRITE_JPEG_QUALITY, 60)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    save(folder, "no", "noise.png", noise)
    save(folder, "unsure", "odd.png", noise[:48])
    (folder / "no" / "bad.jpg").write_bytes(b"\xff\xd8no image")
    return folder


@pytest.fixture(scope="module")
def catalog(foreign):
    return load_catalog(foreign)


@pytest.fixture(scope="module")
def hashed_bundle(run, tmp_path_factory):
    """The bundle in a run that keeps the perceptual hashes of its scans."""
    folder = tmp_path_factory.mktemp("hashed")
    hashes = hash_scans(run.catalog)["hashes"]
    write_catalog(run.catalog.append_column("hashes", hashes), folder / "catalog.parquet")
    return Path(shutil.copytree(run.bundle, folder / "bundle"))


@pytest.fixture(scope="module")
def result(catalog, hashed_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("validated")
    return validate({"there": catalog}, hashed_bundle, folder, YES_NO), folder


@pytest.fixture(scope="module")
def direct(foreign, run):
    """(truth, tumor probability, out of domain) of what is measured, from the one predictor."""
    paths = [p for p in sorted(foreign.rglob("*.png")) if p.parent.name in ("yes", "no")]
    columns = Predictor.from_bundle(run.bundle, "cpu", precision="fp32")(
        [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths], explain=False
    )
    names = load_bundle(run.bundle).fields.class_names
    score = 1 - columns["probabilities"][:, names.index("no_tumor")]
    truth = np.array([path.parent.name == "yes" for path in paths])
    return truth, score, columns["out_of_domain"]


class TestFigures:
    def test_are_those_of_the_one_predictor(self, result, direct, run):
        truth, score, _ = direct
        one = result[0]["sets"]["there"]
        found = one["decision"]
        cut = load_bundle(run.bundle).fields.threshold
        assert found["threshold"] == pytest.approx(cut)
        assert found["auroc"] == pytest.approx(roc_auc_score(truth, score))
        assert found["sensitivity"] == pytest.approx((score[truth] >= cut).mean())
        assert found["specificity"] == pytest.approx((score[~truth] < cut).mean())
        assert found["accuracy"] == pytest.approx(((score >= cut) == truth).mean())
        assert one["calibration"]["brier"] == pytest.approx(((score - truth) ** 2).mean(), abs=1e-6)

    def test_have_intervals_that_hold_them(self, result):
        found = result[0]["sets"]["there"]["decision"]
        for name, interval in found["intervals"].items():
            assert interval["low"] <= found[name] <= interval["high"], name

    def test_of_classes_are_not_given_where_labels_tell_tumor_or_none_only(self, result):
        one = result[0]["sets"]["there"]
        assert one["decision_only"] is True
        assert one["by_class"] is None

    def test_share_out_of_domain_is_that_of_the_predictor(self, result, direct):
        found = result[0]["sets"]["there"]["out_of_domain"]
        assert found["scans"] == direct[2].sum() > 0  # the noise
        assert found["share"] == pytest.approx(direct[2].mean())

    def test_best_threshold_is_a_bound_and_changes_nothing(self, result, direct):
        found = result[0]["sets"]["there"]
        transfer = found["threshold_transfer"]
        assert (transfer["best"]["rule"], transfer["best"]["optimistic"]) == ("youden", True)
        assert transfer["bundle"]["threshold"] == result[0]["bundle"]["threshold"]
        assert transfer["bundle"]["sensitivity"] == found["decision"]["sensitivity"]
        bundle, best = (
            (p["sensitivity"] + p["specificity"]) / 2
            for p in (transfer["bundle"], transfer["best"])
        )
        assert transfer["balanced_accuracy_lost"] == pytest.approx(best - bundle)
        truth, score, _ = direct
        balanced = [((score[truth] >= c).mean() + (score[~truth] < c).mean()) / 2 for c in score]
        assert best == pytest.approx(max(balanced))

    def test_equal_those_of_evaluate_where_the_labels_are_the_bundles(self, run, tmp_path):
        split = run.catalog["split"]
        rows = run.catalog.filter(pc.is_in(split, pa.array(["train", "test"])))
        one = validate({"own": rows}, run.bundle, tmp_path / "v", QUICK)["sets"]["own"]
        options = EvaluateOptions(
            n_boot=30, report=False, heatmaps=False, device="cpu", precision="fp32"
        )
        known = evaluate(run.catalog, run.bundle, tmp_path / "e", options)
        assert one["by_class"]["accuracy"] == known["accuracy"]
        assert one["by_class"]["confusion_matrix"] == known["confusion_matrix"]
        assert one["by_class"]["prediction_sets"] == known["prediction_sets"]
        assert one["decision"]["auroc"] == known["binary"]["auroc"]
        assert one["decision"]["intervals"]["auroc"] == known["intervals"]["auroc"]
        assert one["counts"]["pixel_copies"] == len(scans_of(run.catalog, "train"))
        assert one["grouped_by"] == "patient"

    def test_of_prediction_sets_are_in_the_table_with_the_class_that_is_covered_least(self, result):
        row = {"scans": 9, "coverage": {"estimate": 0.9, "low": 0.8, "high": 1.0}}
        least = {"scans": 7, "coverage": {"estimate": 0.6, "low": 0.5, "high": 0.7}}
        none = {"scans": 0, "coverage": {"estimate": None, "low": None, "high": None}}
        sets = {"level": 0.9, **row, "per_class": {"glioma": row, "none": least, "other": none}}
        figures = dict.fromkeys(("accuracy", "balanced_accuracy"))
        intervals = {name: {"low": None, "high": None} for name in figures}
        by_class = {**figures, "intervals": intervals, "prediction_sets": sets}
        ((name, one),) = result[0]["sets"].items()
        table = dict(figure_table({**result[0], "sets": {name: {**one, "by_class": by_class}}}))
        assert table["prediction sets that hold the class"] == [
            "0.900 (0.800 to 1.000), stated 0.9"
        ]
        assert table["  of the class with the fewest"] == ["0.600, none"]

    def test_of_a_data_set_of_one_kind_are_given_as_far_as_they_are_defined(
        self, catalog, run, tmp_path
    ):
        rows = catalog.filter(pc.equal(catalog["label"], "yes"))
        one = validate({"yes": rows}, run.bundle, tmp_path, YES_NO)["sets"]["yes"]
        assert one["decision"]["sensitivity"] is not None
        assert one["decision"]["specificity"] is one["decision"]["auroc"] is None
        assert one["threshold_transfer"]["balanced_accuracy_lost"] is None
        assert any("one kind" in note for note in one["notes"])


class TestCopiesOfTrainingScans:
    def test_are_left_out_and_each_scan_is_counted_once(self, result, catalog, direct):
        counts = result[0]["sets"]["there"]["counts"]
        assert (counts["pixel_copies"], counts["near_copies"]) == (0, 2)
        assert (counts["quarantined"], counts["unmapped"]) == (1, 1)
        assert counts["unmapped_labels"] == {"unsure": 1}
        decision = result[0]["sets"]["there"]["decision"]
        assert sum(decision[name] for name in ("tp", "fp", "tn", "fn")) == len(direct[0])
        assert counts["measured"] == len(direct[0])
        fates = ("measured", "pixel_copies", "near_copies", "quarantined", "skipped", "unlabeled")
        assert sum(counts[n] for n in (*fates, "unmapped")) == counts["scans"] == catalog.num_rows
        assert result[0]["trained_on"]["note"] is None

    def test_of_an_older_run_are_found_by_pixels_only_and_that_is_said(
        self, catalog, run, tmp_path
    ):
        found = validate({"there": catalog}, run.bundle, tmp_path, YES_NO)
        assert found["sets"]["there"]["counts"]["near_copies"] is None
        assert "only copies with the same pixels" in found["trained_on"]["note"]

    def test_are_found_by_the_training_source_where_the_run_is_gone(
        self, catalog, run, lone_bundle, tmp_path
    ):
        found = validate({"there": catalog}, lone_bundle, tmp_path, YES_NO)
        assert "not known here" in found["trained_on"]["note"]
        sources = {"old": run.catalog}  # of split train only: the others were not trained on
        found = validate({"there": catalog}, lone_bundle, tmp_path, YES_NO, trained_on=sources)
        counts = found["sets"]["there"]["counts"]
        assert (counts["pixel_copies"], counts["near_copies"]) == (0, 2)
        assert found["trained_on"] == {"sources": ["old"], "near_copies_known": True, "note": None}

    def test_that_are_all_there_is_leave_nothing_to_measure(self, run, tmp_path):
        rows = run.catalog.filter(pc.equal(run.catalog["split"], "train"))
        count = len(scans_of(run.catalog, "train"))
        with pytest.raises(UsageError, match=rf"'own': none of .*\({count} copies of training"):
            validate({"own": rows}, run.bundle, tmp_path, QUICK)


class TestMaps:
    def test_are_scored_against_truth_as_evaluate_does(self, run, phantoms, tmp_path):
        masks = Path(phantoms["uri"][0].as_py().removeprefix("file://").split("/scans/")[0])
        truth = masks / "masks" / "tumour"
        rows = run.catalog.filter(pc.equal(run.catalog["split"], "test"))
        options = replace(QUICK, truth=(f"own={truth}",))
        one = validate({"own": rows, "bare": rows}, run.bundle, tmp_path / "v", options)["sets"]
        given = {"n_boot": 30, "report": False, "heatmaps": False, "device": "cpu"}
        evaluating = EvaluateOptions(
            **given, precision="fp32", truth=options.load_truth_of(["own"])["own"]
        )
        known = evaluate(run.catalog, run.bundle, tmp_path / "e", evaluating)
        assert one["own"]["localization"] == known["sections"]["localisation"]
        assert {"centre", "random"} < set(one["own"]["localization"]["classes"]["all"])
        assert one["bare"]["localization"] is None

    def test_truth_of_no_scan_is_refused_before_anything_is_read(self, catalog, run, tmp_path):
        boxes = tmp_path / "boxes.csv"
        boxes.write_text("path,x_min,y_min,x_max,y_max\nnowhere/1.png,0.1,0.1,0.5,0.5\n")
        options = replace(YES_NO, truth=(f"there={boxes}",))
        told = []
        with pytest.raises(TruthError, match="none of 1 entries"):
            validate(
                {"there": catalog}, run.bundle, tmp_path, options,
                progress=lambda *step: told.append(step),
            )  # fmt: skip
        assert told == []


class TestPatients:
    @pytest.fixture(scope="class")
    def evaluated(self, run):
        predictor = Predictor.from_bundle(run.bundle, "cpu", precision="fp32")
        rows = run.catalog.filter(pc.equal(run.catalog["split"], "test"))
        return evaluate_rows(predictor, rows)

    def test_figures_are_those_of_the_slices_of_each_patient(self, evaluated):
        found = rolled_up(evaluated, "patient", seed=0, n_boot=30)
        scores, truths = {}, {}
        patients = evaluated.rows["patient_key"].to_pylist()
        for row in evaluated.measured:
            foreign = evaluated.outputs.out_of_domain[row]
            scores.setdefault(patients[row], []).extend([] if foreign else [evaluated.scores[row]])
            tumor = evaluated.truth.names[row] != "no_tumor"
            truths[patients[row]] = truths.get(patients[row], False) or tumor
        used = [p for p in scores if scores[p]]
        assert (found["rows"], found["undecided"]) == (len(scores), len(scores) - len(used))
        cut = evaluated.fields.threshold
        for how, of in (("max", max), ("mean", np.mean)):
            right = [(of(scores[p]) >= cut) == truths[p] for p in used]
            assert found[how]["accuracy"] == pytest.approx(np.mean(right))

    def test_a_patient_with_one_tumor_slice_is_positive(self, evaluated):
        before = rolled_up(evaluated, "patient", seed=0, n_boot=30)["positive"]
        patients = evaluated.rows["patient_key"].to_pylist()
        tumors = [r for r in evaluated.measured if evaluated.truth.indices[r] in evaluated.positive]
        of_one = [row for row in tumors if patients[row] == patients[tumors[0]]]
        assert len(of_one) > 1
        healthy = evaluated.fields.class_names.index("no_tumor")

        def positive(changed):
            indices = evaluated.truth.indices.copy()
            indices[changed] = healthy
            other = replace(evaluated, truth=replace(evaluated.truth, indices=indices))
            return rolled_up(other, "patient", seed=0, n_boot=30)["positive"]

        assert positive(of_one[1:]) == before
        assert positive(of_one) == before - 1

    def test_are_not_given_where_no_key_is_known(self, evaluated, result):
        assert rolled_up(evaluated, "study", seed=0, n_boot=30) is None
        assert result[0]["sets"]["there"]["patients"] is None


def labeled(*labels):
    paths = [f"{number}.png" for number in range(len(labels))]
    return pa.table({"path": paths, "label": pa.array(labels, pa.string())})


class TestLabels:
    @pytest.fixture(scope="class")
    def fields(self, run):
        return load_bundle(run.bundle).fields

    @pytest.mark.parametrize(
        ("classes", "labels"),
        [
            ("tumor=yes,no_tumor=no", ("yes", "no")),
            ("Tumour=yes,healthy=no", ("yes", "no")),
            ("glioma_tumor+pituitary_tumor=a+b,no_tumor=c", ("a", "c")),
            (None, ("tumor", "no_tumor")),
            ("glioma_tumor=yes,tumor=maybe,no_tumor=no", ("yes", "no")),
        ],
    )
    def test_that_tell_of_tumors(self, fields, classes, labels):
        found = foreign_truth("x", labeled(*labels, None), fields, classes)
        positive = [i >= 0 and fields.class_names[i] in fields.positive_classes
                    for i in found.truth.indices]  # fmt: skip
        assert positive == [True, False, False]
        assert found.truth.indices.tolist()[2] == -1
        assert found.truth.unlabeled == 1

    def test_any_positive_class_is_none_in_particular(self, fields):
        found = foreign_truth("x", labeled("yes", "no"), fields, "tumor=yes,no_tumor=no")
        assert found.decision_only
        assert found.truth.names == ["tumor", "no_tumor"]

    def test_of_the_bundles_classes(self, fields):
        spec = "glioma_tumor=g,no_tumor=n"
        found = foreign_truth("x", labeled("g", "n", "q"), fields, spec)
        assert not found.decision_only
        assert found.truth.names == ["glioma_tumor", "no_tumor", None]
        assert found.unmapped == {"q": 1}

    @pytest.mark.parametrize(
        ("classes", "labels", "words"),
        [
            (None, ("yes", "no"), "labels no, yes.*--classes, such as 'tumor=yes,no_tumor=no'"),
            ("tumor=ja,no_tumor=nein", ("yes", "no"), "names none of them"),
            ("cyst=yes,no_tumor=no", ("yes", "no"), "'cyst' is neither one of the bundle's"),
            ("tumor=yes,no_tumor=yes", ("yes", "no"), "'yes' is named twice"),
            (None, (None,), "'x' has no labels"),
        ],
    )
    def test_that_do_not_map_are_named(self, fields, classes, labels, words):
        with pytest.raises(UsageError, match=words) as refusal:
            foreign_truth("x", labeled(*labels), fields, classes)
        assert "\n" not in str(refusal.value)
        assert "{" not in str(refusal.value)


class TestOptions:
    def test_a_mapping_is_for_all_or_for_one(self):
        options = ValidateOptions(classes=("tumor=yes,no_tumor=no", "b=tumor=1,no_tumor=0"))
        assert options.mapping_of("a", ["a", "b"]) == "tumor=yes,no_tumor=no"
        assert options.mapping_of("b", ["a", "b"]) == "tumor=1,no_tumor=0"
        assert ValidateOptions().mapping_of("a", ["a"]) is None

    def test_two_mappings_of_one_data_set_are_refused(self):
        options = ValidateOptions(classes=("b=tumor=1", "b=tumor=2"))
        assert options.mapping_of("a", ["a", "b"]) is None
        with pytest.raises(UsageError, match="'b' has two mappings"):
            options.mapping_of("b", ["a", "b"])

    @pytest.mark.parametrize("text", ["data/br35h", "=data", "s3://bucket/a=b", "name="])
    def test_a_source_without_a_name_is_refused(self, text):
        with pytest.raises(UsageError, match="is not NAME=SOURCE"):
            named_values("--on", [text], "SOURCE")

    def test_one_name_for_two_sources_is_refused(self):
        with pytest.raises(UsageError, match="'a' is given twice, as 'x' and 'y=z'"):
            named_values("--on", ["a=x", "a=y=z"], "SOURCE")


class TestCommand:
    def call(self, bundle, output, *arguments):
        quick = ("--output", output, "--n-boot", 20, "--device", "cpu")
        words = ["validate", bundle, *quick, *arguments]
        return CliRunner().invoke(app, [str(word) for word in words])

    def test_prints_one_table_and_writes_a_page_that_needs_no_network(
        self, foreign, hashed_bundle, tmp_path
    ):
        on = ("--on", f"there={foreign}", "--on", f"again={foreign}")
        found = self.call(hashed_bundle, tmp_path, *on, "--classes", "tumor=yes,no_tumor=no")
        assert found.exit_code == 0, found.output
        lines = found.stdout.splitlines()
        assert lines[0].split() == ["there", "again"]
        values = json.loads((tmp_path / "validation.json").read_text())["sets"]["there"]
        (line,) = [line for line in lines if line.startswith("AUROC")]
        assert line.count(f"{values['decision']['auroc']:.3f}") >= 2
        (line,) = [line for line in lines if line.startswith("copies of training scans")]
        assert line.count("2 (2 re-encoded)") == 2
        page = (tmp_path / "validation.html").read_text()
        assert "there" in page
        assert not [part for part in ('src="http', 'href="http', "<script") if part in page]

    def test_json_is_the_file(self, foreign, hashed_bundle, tmp_path):
        on = ("--on", f"there={foreign}", "--classes", "there=tumor=yes,no_tumor=no", "--json")
        found = self.call(hashed_bundle, tmp_path, *on)
        assert found.exit_code == 0, found.output
        assert json.loads(found.stdout) == json.loads((tmp_path / "validation.json").read_text())

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--on", "{there}"), "is not NAME=SOURCE"),
            (("--on", "there={there}"), "has the labels no, unsure, yes"),
            (("--on", "there={there}", "--truth", "other=x.csv"), "there is no --on other"),
        ],
    )
    def test_mistakes_are_one_line(self, foreign, run, tmp_path, arguments, words):
        given = [word.format(there=foreign) for word in arguments]
        found = self.call(run.bundle, tmp_path, *given)
        assert found.exit_code == 2, found.output
        (line,) = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
        assert words in line
        assert not list(tmp_path.iterdir())

    def test_patients_without_a_key_of_the_users_are_grouped_all_the_same(
        self, run, phantoms, tmp_path
    ):
        root = phantoms["uri"][0].as_py().removeprefix("file://").split("/scans/")[0]
        pattern = ("--patient-pattern", r"/(?P<patient>p\d{4})_s", "--json")
        found = self.call(run.bundle, tmp_path, "--on", f"own={root}/scans", *pattern)
        assert found.exit_code == 0, found.output
        one = json.loads(found.stdout)["sets"]["own"]
        assert one["grouped_by"].startswith("patient")
        assert one["patients"]["rows"] > 1

    def test_patients_of_training_are_known_by_the_key_of_the_user(
        self, run, phantoms, tmp_path, monkeypatch
    ):
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        root = phantoms["uri"][0].as_py().removeprefix("file://").split("/scans/")[0]
        pattern = re.compile(r"/(?P<patient>p\d{4})_s")
        own = CatalogOptions(patient_pattern=pattern).with_own_key("local")
        catalog = load_catalog(f"{root}/scans", own)
        trained = catalog.filter(catalog["patient_key"].is_valid()).slice(0, 1)
        trained = trained.append_column("split", pa.array(["train"]))
        write_catalog(trained, tmp_path / "trained.parquet")
        given = ("--on", f"own={root}/scans", "--patient-pattern", pattern.pattern)
        known = ("--trained-on", str(tmp_path / "trained.parquet"), "--json")
        found = self.call(run.bundle, tmp_path, *given, *known)
        assert found.exit_code == 0, found.output
        notes = json.loads(found.stdout)["sets"]["own"]["notes"]
        assert any("of patients who were trained on" in note for note in notes)
