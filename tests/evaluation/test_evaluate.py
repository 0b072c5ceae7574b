"""Evaluation: true figures, no scan silently dropped, nothing chosen on test scans."""

import hashlib
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.schema import write_catalog
from braintumor_ray.decode import reading
from braintumor_ray.decode.decode import decode
from braintumor_ray.decode.reading import hash_scans
from braintumor_ray.decode.types import DecodeLimits
from braintumor_ray.errors import BundleError, GateError, UsageError
from braintumor_ray.evaluation import subgroups
from braintumor_ray.evaluation.evaluate import EvaluateOptions, evaluate
from braintumor_ray.evaluation.heatmaps import faithfulness_section
from braintumor_ray.evaluation.inference import predict_catalog
from braintumor_ray.evaluation.leakage import TrainingScans, describe_check
from braintumor_ray.evaluation.report import warnings
from braintumor_ray.localization.outlines import TruthError
from braintumor_ray.localization.truth import load_truth
from braintumor_ray.models.bundle import load_bundle, read_bundle_fields
from braintumor_ray.pages import pictures
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.predict.views import test_time_views as views_of
from braintumor_ray.storage import read_bytes
from tests.evaluation.make_bundle import make_bundle

QUICK = EvaluateOptions(n_boot=50, report=False, heatmaps=False, device="cpu", precision="fp32")


def relabeled(catalog, split, change):
    """The catalog with the labels of one split changed."""
    table, splits = catalog, catalog["split"].to_pylist()
    for name in ("label", "class_name"):
        pairs = zip(table[name].to_pylist(), splits, strict=True)
        values = [change(value) if where == split else value for value, where in pairs]
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, pa.array(values, pa.string()))
    return table


def swapped(name):
    """Other labels: every tumor is none and the reverse."""
    return "glioma_tumor" if name == "no_tumor" else "no_tumor"


@pytest.fixture(scope="module")
def result(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    return evaluate(run.catalog, run.bundle, folder, QUICK), folder


def test_figures_equal_those_of_scikit_learn_on_the_predictions(result):
    metrics, folder = result
    table = pq.read_table(folder / "predictions.parquet")
    truth, predicted = table["true_class"].to_pylist(), table["predicted_class"].to_pylist()
    names = metrics["class_names"]
    assert metrics["accuracy"] == pytest.approx(np.mean(np.array(truth) == np.array(predicted)))
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert metrics["confusion_matrix"] == confusion_matrix(truth, predicted, labels=names).tolist()
    tumor = np.array(truth) != "no_tumor"
    score = table["tumour_probability"].to_numpy()
    assert metrics["binary"]["auroc"] == pytest.approx(roc_auc_score(tumor, score))
    decision = np.array(table["decision"].to_pylist())
    assert metrics["binary"]["tp"] == int((decision & tumor).sum())


def test_predictions_are_those_of_the_one_predictor(result, run):
    _, folder = result
    table = pq.read_table(folder / "predictions.parquet")
    uris = dict(
        zip(run.catalog["scan_id"].to_pylist(), run.catalog["uri"].to_pylist(), strict=True)
    )
    files = [uris[scan].removeprefix("file://") for scan in table["scan_id"].to_pylist()[:4]]
    predictor = Predictor.from_bundle(run.bundle, "cpu", precision="fp32")
    direct = predictor([cv2.imread(file, cv2.IMREAD_GRAYSCALE) for file in files], explain=False)
    stored = np.array(table["probabilities"].to_pylist()[:4])
    np.testing.assert_allclose(stored, direct["probabilities"], atol=0.02)  # JPEG decoders differ
    assert table["predicted_class"].to_pylist()[:4] == direct["predicted_class"]


def test_the_file_holds_what_was_returned(result):
    metrics, folder = result
    assert json.loads((folder / "metrics.json").read_text()) == metrics


def test_the_same_seed_gives_the_same_figures(result, run, tmp_path):
    assert evaluate(run.catalog, run.bundle, tmp_path, QUICK) == result[0]


def test_intervals_resample_patients_and_hold_the_estimate(result):
    metrics, folder = result
    groups = pq.read_table(folder / "predictions.parquet")["group"].to_pylist()
    assert metrics["grouped_by"] == "patient"
    assert metrics["n_groups"] == len(set(groups)) == 4
    interval = metrics["intervals"]["accuracy"]
    assert interval["low"] <= metrics["accuracy"] <= interval["high"]


def test_unreadable_scans_are_counted(phantoms, run, lone_bundle, tmp_path):
    metrics = evaluate(phantoms, lone_bundle, tmp_path, replace(QUICK, split="all"))
    counts = metrics["counts"]
    assert counts["quarantined"] == 5
    assert counts["measured"] == metrics["n"] == phantoms.num_rows - 5
    assert sum(counts["reasons"].values()) == 5
    table = pq.read_table(tmp_path / "predictions.parquet")
    assert table.num_rows == phantoms.num_rows
    assert table["predicted_class"].null_count == 5


def test_no_split_column_is_a_clear_error(phantoms, run, tmp_path):
    with pytest.raises(UsageError, match=r"no column 'split'.*--split all"):
        evaluate(phantoms, run.bundle, tmp_path, QUICK)


def test_an_unknown_split_names_those_there_are(run, tmp_path):
    with pytest.raises(UsageError, match="test, train, val"):
        evaluate(run.catalog, run.bundle, tmp_path, replace(QUICK, split="holdout"))


def test_nothing_to_measure_is_a_clear_error(run, tmp_path):
    catalog = relabeled(run.catalog, "test", lambda _: None)
    with pytest.raises(UsageError, match=r"none of \d+ scans can be measured"):
        evaluate(catalog, run.bundle, tmp_path, QUICK)


# Leaks


def with_a_training_scan_in_test(catalog):
    """The catalog with its first training scan once more, as a test scan."""
    row = catalog.filter(pc.equal(catalog["split"], "train")).slice(0, 1)
    index = catalog.schema.get_field_index("split")
    return pa.concat_tables([catalog, row.set_column(index, "split", pa.array(["test"]))])


def test_a_trained_scan_in_the_test_split_is_refused(run, tmp_path):
    leaky = with_a_training_scan_in_test(run.catalog)
    with pytest.raises(GateError, match=r"1 of \d+ scans of split 'test'") as refusal:
        evaluate(leaky, run.bundle, tmp_path, QUICK)
    assert refusal.value.exit_code == 3
    assert not (tmp_path / "metrics.json").exists()


def test_a_leak_that_is_allowed_is_reported(run, tmp_path):
    leaky = with_a_training_scan_in_test(run.catalog)
    metrics = evaluate(leaky, run.bundle, tmp_path, replace(QUICK, allow_leakage=True))
    assert metrics["leakage"]["pixel_identical"] == 1
    assert metrics["leakage"]["examples"]


def test_a_foreign_catalog_is_held_against_the_bundles_own_run(run, phantoms, tmp_path):
    with pytest.raises(GateError, match="trained on"):
        evaluate(phantoms, run.bundle, tmp_path, replace(QUICK, split="all"))


def test_without_the_run_beside_it_the_bundle_cannot_be_checked_and_that_is_said(
    phantoms, lone_bundle, tmp_path
):
    metrics = evaluate(phantoms, lone_bundle, tmp_path, replace(QUICK, split="all"))
    assert metrics["leakage"]["checked"] is False


def test_evaluating_the_whole_training_catalog_is_refused(run, tmp_path):
    with pytest.raises(GateError):
        evaluate(run.catalog, run.bundle, tmp_path, replace(QUICK, split="all"))


@pytest.fixture(scope="module")
def hashed_run(run, tmp_path_factory):
    """The run as training leaves it now: with the perceptual hashes of its scans."""
    folder = tmp_path_factory.mktemp("hashed")
    hashes = hash_scans(run.catalog)["hashes"]
    catalog = run.catalog.append_column("hashes", hashes)
    write_catalog(catalog, folder / "catalog.parquet")
    shutil.copytree(run.bundle, folder / "bundle")
    return SimpleNamespace(catalog=catalog, bundle=folder / "bundle")


@pytest.fixture(scope="module")
def encoded_again(run, tmp_path_factory):
    """Two training scans, a little darker and as JPEG of poor quality; and two test scans."""
    folder = tmp_path_factory.mktemp("again")
    for split, name in (("train", "copy"), ("test", "unseen")):
        rows = run.catalog.filter(pc.equal(run.catalog["split"], split)).to_pylist()
        for row in [row for row in rows if row["status"] == "ok"][:2]:
            gray = decode(read_bytes(row["uri"])).gray
            path = folder / row["label"] / f"{name}_{row['scan_id']}.jpg"
            path.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(path), (gray * 0.95).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 60])
    return load_catalog(folder)


def test_near_copies_of_trained_scans_are_refused(hashed_run, encoded_again, tmp_path):
    options = replace(QUICK, split="all")
    with pytest.raises(GateError, match=r"2 of 4 scans .* near copies .*copy_") as refusal:
        evaluate(encoded_again, hashed_run.bundle, tmp_path, options)
    assert refusal.value.exit_code == 3
    allowed = replace(options, allow_leakage=True)
    leaks = evaluate(encoded_again, hashed_run.bundle, tmp_path, allowed)["leakage"]
    assert (leaks["pixel_identical"], leaks["near_copies"]) == (0, 2)
    assert all("copy_" in path for path in leaks["examples"])
    assert describe_check(leaks) is None


def test_near_copies_are_refused_before_reading_where_the_catalog_has_hashes(
    hashed_run, encoded_again, tmp_path
):
    hashes = hash_scans(encoded_again)
    known = encoded_again
    for name in ("pixel_sha256", "hashes"):
        known = known.append_column(name, hashes[name])
    gone = pa.array(["/nowhere"] * known.num_rows)
    known = known.set_column(known.schema.get_field_index("uri"), "uri", gone)
    with pytest.raises(GateError, match="near copies"):
        evaluate(known, hashed_run.bundle, tmp_path, replace(QUICK, split="all"))


def test_the_runs_own_test_split_passes(hashed_run, tmp_path):
    leaks = evaluate(hashed_run.catalog, hashed_run.bundle, tmp_path, QUICK)["leakage"]
    assert (leaks["pixel_identical"], leaks["near_copies"]) == (0, 0)


def test_a_run_of_an_earlier_version_is_compared_by_pixels_and_that_is_said(
    run, encoded_again, tmp_path
):
    metrics = evaluate(encoded_again, run.bundle, tmp_path, replace(QUICK, split="all"))
    assert metrics["leakage"]["near_copies"] is None
    assert "by pixels only" in describe_check(metrics["leakage"])
    assert any("by pixels only" in sentence for sentence in warnings(metrics))


def test_a_csvs_own_column_of_that_name_is_no_hash(run, encoded_again, tmp_path):
    named = encoded_again.append_column("hashes", pa.array(["x"] * encoded_again.num_rows))
    assert evaluate(named, run.bundle, tmp_path, replace(QUICK, split="all"))["n"] == 4


@pytest.mark.parametrize("known_by", ["patient_key", "study_key", "series_key"])
def test_patients_who_were_trained_on_are_counted(run, tmp_path, known_by):
    catalog, rows = run.catalog, run.catalog.num_rows
    for name in ("patient_key", "study_key", "series_key"):
        index = catalog.schema.get_field_index(name)
        value = pa.array(["p0000" if name == known_by else None] * rows, pa.string())
        catalog = catalog.set_column(index, name, value)
    metrics = evaluate(catalog, run.bundle, tmp_path, QUICK)
    assert metrics["leakage"]["same_patient"] == metrics["counts"]["rows"]


@pytest.mark.parametrize("lacking", ["trained", "evaluated"])
def test_a_patient_who_was_trained_on_is_known_by_the_study_where_one_side_has_no_more(lacking):
    whole = {"uri": ["/a"], "patient_key": ["p"], "study_key": ["s"], "series_key": [None]}
    bare = whole | {"uri": ["/b"], "patient_key": [None]}
    other = whole | {"uri": ["/c"], "patient_key": ["q"], "study_key": ["t"]}
    trained, rows = (bare, whole) if lacking == "trained" else (whole, bare)
    known = TrainingScans(patients=pa.table(trained))
    assert known.have_patients_of(pa.table(rows)) == [True]
    assert known.have_patients_of(pa.table(other)) == [False]


# Nothing is chosen on test scans


def recalibrated(catalog, run, folder):
    options = replace(QUICK, recalibrate=folder / "bundle")
    evaluate(catalog, run.bundle, folder / "out", options)
    return {path.name: path.read_bytes() for path in (folder / "bundle").iterdir()}


def test_a_signal_in_the_test_labels_does_not_move_the_recalibrated_bundle(run, tmp_path):
    plain = recalibrated(run.catalog, run, tmp_path / "a")
    planted = recalibrated(relabeled(run.catalog, "test", swapped), run, tmp_path / "b")
    assert plain == planted


def test_a_signal_in_the_validation_labels_moves_it(run, tmp_path):
    plain = recalibrated(run.catalog, run, tmp_path / "a")
    planted = recalibrated(relabeled(run.catalog, "val", swapped), run, tmp_path / "b")
    assert plain["bundle.json"] != planted["bundle.json"]


def test_thresholds_of_operating_points_do_not_follow_test_labels(result, run, tmp_path):
    planted = evaluate(relabeled(run.catalog, "test", swapped), run.bundle, tmp_path, QUICK)
    ours, theirs = (
        [(p["rule"], p["threshold"], p["chosen_on"]) for p in m["operating_points"]]
        for m in (result[0], planted)
    )
    assert ours == theirs
    assert {p["chosen_on"] for p in planted["operating_points"]} == {"the bundle", "val"}


def test_without_validation_scans_thresholds_are_marked_optimistic(phantoms, lone_bundle, tmp_path):
    metrics = evaluate(phantoms, lone_bundle, tmp_path, replace(QUICK, split="all"))
    assert all(p["optimistic"] for p in metrics["operating_points"][1:])


def test_recalibration_lowers_the_validation_loss_and_keeps_the_weights(run, tmp_path):
    files = recalibrated(run.catalog, run, tmp_path)
    original = load_bundle(run.bundle)
    saved = load_bundle(tmp_path / "bundle")
    assert files["model.safetensors"] == (run.bundle / "model.safetensors").read_bytes()
    assert saved.fingerprint != original.fingerprint
    before = evaluate(run.catalog, run.bundle, tmp_path / "v1", replace(QUICK, split="val"))
    after = evaluate(
        run.catalog, tmp_path / "bundle", tmp_path / "v2",
        replace(QUICK, split="val", allow_leakage=True),
    )  # fmt: skip
    assert after["calibration"]["nll"] <= before["calibration"]["nll"] + 1e-6
    assert "Recalibrated" in files["model_card.md"].decode()


def test_recalibration_adds_prediction_sets_and_evaluation_measures_them(run, result, tmp_path):
    recalibrated(run.catalog, run, tmp_path)
    assert result[0]["prediction_sets"] is None  # a bundle of before
    assert "prediction_set" not in pq.read_table(result[1] / "predictions.parquet").column_names
    sets = load_bundle(tmp_path / "bundle").fields.prediction_sets
    assert (sets.coverage, len(sets.thresholds)) == (0.9, 4)
    options = replace(QUICK, report=True, per_gallery=0, allow_leakage=True)
    found = evaluate(run.catalog, tmp_path / "bundle", tmp_path / "out", options)
    table = pq.read_table(tmp_path / "out" / "predictions.parquet")
    scans = [row for row in table.to_pylist() if row["status"] == "ok"]
    share = np.mean([row["true_class"] in row["prediction_set"] for row in scans])
    measured = found["prediction_sets"]
    assert measured["coverage"]["estimate"] == pytest.approx(share)
    assert measured["coverage"]["low"] is not None
    # Few phantoms per class in validation: no class can be left out, and that is said.
    few = [name for name, n in zip(found["class_names"], sets.groups, strict=True) if n < 12]
    assert few
    assert all(row["prediction_set"].count(few[0]) == 1 for row in scans)
    assert any(few[0] in line for line in measured["warnings"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert measured["warnings"][0].split(":")[0] in page
    assert 'data-metric="prediction_sets/coverage"' in page
    card = (tmp_path / "bundle" / "model_card.md").read_text()
    assert few[0] in card.split("Prediction sets were calibrated")[1]


def test_evaluation_never_changes_the_bundle(run, tmp_path):
    def digests():
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in run.bundle.iterdir()}

    before = digests()
    recalibrated(run.catalog, run, tmp_path)
    assert digests() == before


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"split_column": "official_split"}, UsageError, "needs validation scans"),
    ],
)
def test_a_recalibration_that_cannot_be_right_is_refused(run, tmp_path, change, error, words):
    options = replace(QUICK, recalibrate=tmp_path / "new", allow_leakage=True, **change)
    with pytest.raises(error, match=words):
        evaluate(run.catalog, run.bundle, tmp_path / "out", options)
    assert not (tmp_path / "new").exists()


def test_an_existing_bundle_is_not_overwritten(run, lone_bundle, tmp_path):
    with pytest.raises(BundleError, match="exists already"):
        evaluate(run.catalog, run.bundle, tmp_path, replace(QUICK, recalibrate=lone_bundle))


# Classes


def test_labels_go_through_the_mapping_that_the_bundle_was_trained_with(run, phantoms, tmp_path):
    spec = "no_tumor,pituitary=pituitary_tumor,rare=other_tumor,tumor=glioma_tumor+meningioma_tumor"
    bundle = make_bundle(
        tmp_path / "bundle",
        architecture=load_bundle(run.bundle).fields.architecture.model_dump(),
        class_names=("no_tumor", "pituitary", "rare", "tumor"),
        positive_classes=("pituitary", "rare", "tumor"),
        recipe={"data": {"classes": spec}},
    )
    metrics = evaluate(phantoms, bundle, tmp_path / "out", replace(QUICK, split="all"))
    support = {name: figures["support"] for name, figures in metrics["per_class"].items()}
    labels = phantoms["label"].to_pylist()
    both = labels.count("glioma_tumor") + labels.count("meningioma_tumor")
    assert both - 5 <= support["tumor"] <= both  # without the planted bad files
    assert support["tumor"] > labels.count("pituitary_tumor") >= support["pituitary"] > 0


def test_labels_that_a_mapping_leaves_out_are_counted(phantoms, lone_bundle, tmp_path):
    classes = "glioma_tumor,no_tumor"
    options = replace(QUICK, split="all", classes=classes)
    counts = evaluate(phantoms, lone_bundle, tmp_path, options)["counts"]
    labels = phantoms["label"].to_pylist()
    assert counts["left_out"] == sum(x not in ("glioma_tumor", "no_tumor") for x in labels)
    assert counts["measured"] + counts["left_out"] + counts["unlabelled"] >= len(labels) - 5


def test_a_class_that_the_bundle_does_not_know_is_named(run, phantoms, lone_bundle, tmp_path):
    catalog = relabeled(run.catalog, "test", lambda _: "cyst")
    with pytest.raises(UsageError, match="class 'cyst' is not one of the bundle's"):
        evaluate(catalog, run.bundle, tmp_path, QUICK)


# Views, subgroups, comparison


def test_views_are_the_scan_its_mirror_image_and_small_turns():
    images = np.random.default_rng(0).integers(0, 255, (2, 16, 16), np.uint8)
    views = list(views_of(images))
    assert len(views) == 6
    np.testing.assert_array_equal(views[0], images)
    np.testing.assert_array_equal(views[3], images[:, :, ::-1])
    assert all(view.shape == images.shape and view.dtype == np.uint8 for view in views)
    assert not np.array_equal(views[1], views[2])


def test_averaged_views_get_a_threshold_of_their_own_from_validation(run, tmp_path):
    options = replace(QUICK, tta=True, recalibrate=tmp_path / "new")
    found = evaluate(run.catalog, run.bundle, tmp_path / "out", options)
    old, new = read_bundle_fields(run.bundle), read_bundle_fields(tmp_path / "new")
    assert (new.threshold, new.temperature) == (old.threshold, old.temperature)
    assert new.views.threshold == found["bundle"]["threshold"] != old.threshold
    assert found["recalibration"]["threshold"] == new.views.threshold
    again = evaluate(run.catalog, tmp_path / "new", tmp_path / "again", replace(QUICK, tta=True))
    assert again["bundle"]["threshold"] == new.views.threshold
    assert again["accuracy"] == found["accuracy"]


def test_whatever_reads_scans_again_keeps_to_the_limits(run, tmp_path, monkeypatch):
    limits, seen = DecodeLimits(max_bytes=10**6), []
    for module in (reading, pictures):
        own = module.run_on_scans

        def recorded(rows, sandbox, options, *rest, own=own):
            seen.append(options.limits)
            return own(rows, sandbox, options, *rest)

        monkeypatch.setattr(module, "run_on_scans", recorded)
    sections = {"faithfulness": faithfulness_section(1)}
    options = replace(QUICK, tta=True, report=True, per_gallery=1, limits=limits, sections=sections)
    evaluate(run.catalog, run.bundle, tmp_path, options)
    assert len(seen) >= 6  # views, test, validation, faithfulness, galleries, samples of the report
    assert set(seen) == {limits}


def test_batches_do_not_change_the_logits(run):
    rows = run.catalog.filter(pc.equal(run.catalog["split"], "test"))
    one, many = (
        predict_catalog(
            Predictor.from_bundle(run.bundle, "cpu", precision="fp32", batch_size=n), rows
        )
        for n in (1, 64)
    )
    np.testing.assert_allclose(one.logits, many.logits, atol=1e-4)


def test_subgroups_add_up_to_the_whole(run, tmp_path):
    options = replace(QUICK, subgroups=("label", "format", "size"))
    metrics = evaluate(run.catalog, run.bundle, tmp_path, options)
    for rows in metrics["subgroups"].values():
        assert sum(row["n"] for row in rows) == metrics["n"]
    glioma = next(r for r in metrics["subgroups"]["label"] if r["value"] == "glioma_tumor")
    assert glioma["accuracy"] == pytest.approx(metrics["per_class"]["glioma_tumor"]["recall"])
    assert len(metrics["subgroups"]["size"]) <= 4
    assert glioma["few"] is True


def test_ranges_of_large_numbers_keep_names_of_their_own():
    days = pa.chunked_array([pa.array(np.arange(20260101, 20260129))])
    ranges = ["20260101 to 20260108", "20260108 to 20260115", "20260115 to 20260121"]
    assert list(dict.fromkeys(subgroups._values(days)))[:3] == ranges


def test_numbers_of_a_csv_are_cut_at_quartiles_and_codes_are_not():
    ages = pa.chunked_array([pa.array([*map(str, range(1, 10)), "9.5", None])])
    assert set(subgroups._values(ages)) == {
        *("1 to 3", "3 to 5", "5 to 8", "8 to 9.5", subgroups.UNKNOWN)
    }
    sites = [f"{number:03}" for number in range(9)]
    assert subgroups._values(pa.chunked_array([pa.array(sites)])).tolist() == sites


def test_what_is_unknown_is_no_other_value():
    sites = [f"site {n:02d}" for n in range(14) for _ in range(2)]
    found = subgroups._values(pa.chunked_array([pa.array([*sites, None])]))
    assert found[-1] == subgroups.UNKNOWN
    assert (found == subgroups.OTHER).sum() == 4
    tesla = subgroups._values(pa.chunked_array([pa.array([1.5, 3.0, *[np.nan] * 9])]))
    assert tesla.tolist() == ["1.5", "3.0", *[subgroups.UNKNOWN] * 9]


def test_a_subgroup_by_an_unknown_column_names_those_there_are(run, tmp_path):
    with pytest.raises(UsageError, match="no such column; it has scan_id"):
        evaluate(run.catalog, run.bundle, tmp_path, replace(QUICK, subgroups=("scanner",)))


def test_a_bundle_does_not_differ_from_itself(run, tmp_path):
    metrics = evaluate(run.catalog, run.bundle, tmp_path, replace(QUICK, compare=str(run.bundle)))
    compared = metrics["comparison"]
    assert compared["mcnemar"]["p_value"] == 1
    assert compared["difference"]["accuracy"] == pytest.approx(
        {**compared["difference"]["accuracy"], "estimate": 0, "low": 0, "high": 0}
    )
    assert compared["a"]["accuracy"] == metrics["accuracy"]


def test_another_bundle_is_compared_on_the_same_scans(run, tmp_path):
    other = make_bundle(tmp_path / "other" / "bundle", seed=5)
    metrics = evaluate(run.catalog, run.bundle, tmp_path, replace(QUICK, compare=str(other)))
    alone = evaluate(run.catalog, other, tmp_path / "b", QUICK)
    compared = metrics["comparison"]
    assert compared["b"]["balanced_accuracy"] == pytest.approx(alone["balanced_accuracy"])
    assert compared["difference"]["auroc"]["estimate"] == pytest.approx(
        metrics["binary"]["auroc"] - alone["binary"]["auroc"]
    )


def test_bundles_of_other_classes_are_not_compared(run, tmp_path):
    other = make_bundle(
        tmp_path / "bundle", class_names=("a", "b", "c", "no_tumor"), positive_classes=("a",)
    )
    with pytest.raises(UsageError, match="differ in class_names"):
        evaluate(run.catalog, run.bundle, tmp_path, replace(QUICK, compare=str(other)))


def test_sections_may_be_summaries_or_functions_of_the_evaluation(run, tmp_path):
    options = replace(
        QUICK,
        sections={
            "ready": {"n": 3},
            "made": lambda predictor, evaluated: {"scans": len(evaluated.measured)},
        },
    )
    metrics = evaluate(run.catalog, run.bundle, tmp_path, options)
    assert metrics["sections"] == {"ready": {"n": 3}, "made": {"scans": metrics["n"]}}


def test_heat_by_region_agrees_with_the_predictor(run, tmp_path):
    metrics = evaluate(run.catalog, run.bundle, tmp_path, replace(QUICK, heatmaps=True))
    summary = metrics["sections"]["heat_by_region"]
    rows = run.catalog.filter(pc.equal(run.catalog["split"], "test"))
    predictor = Predictor.from_bundle(run.bundle, "cpu", precision="fp32")
    images = [
        cv2.imread(uri.removeprefix("file://"), cv2.IMREAD_GRAYSCALE)
        for uri in rows["uri"].to_pylist()
    ]
    direct = predictor(images)
    assert summary["scans"] == np.isfinite(direct["heat_rim"]).sum()
    for name, shares in summary["regions"].items():
        assert shares["heat"] == pytest.approx(np.nanmean(direct[f"heat_{name}"]), abs=0.01)
    assert sum(shares["area"] for shares in summary["regions"].values()) == pytest.approx(1)
    assert sum(row["scans"] for row in summary["classes"].values()) == summary["scans"]


def test_heatmaps_are_scored_against_the_phantoms_exact_masks(run, phantoms, tmp_path):
    scans = phantoms["uri"][0].as_py().removeprefix("file://").partition("/scans/")[0]
    truth = load_truth(f"{scans}/masks/tumour")
    metrics = evaluate(run.catalog, run.bundle, tmp_path, replace(QUICK, truth=truth))
    found = metrics["sections"]["localisation"]
    tumors = sum(n for name, n in _supports(metrics).items() if name != "no_tumor")
    assert 0 < found["scans"] <= tumors
    assert {"gradcam", "gradcam_pp", "centre", "random", "whole_head"} <= set(
        found["classes"]["all"]
    )
    assert found["classes"]["all"]["gradcam"]["n"] == found["scans"]


def _supports(metrics):
    return {name: row["support"] for name, row in metrics["per_class"].items()}


def test_a_bundle_without_its_card_is_no_obstacle_to_figures(run, tmp_path):
    bundle = shutil.copytree(run.bundle, tmp_path / "x" / "bundle")
    (bundle / "model_card.md").unlink()
    assert evaluate(run.catalog, bundle, tmp_path / "out", QUICK)["n"] > 0


def test_truth_that_scans_of_two_splits_share_is_refused(run, tmp_path):
    catalog = run.catalog
    split = catalog["split"].to_pylist()
    paths = [f"{n}.png" for n in range(catalog.num_rows)]
    for where in ("train", "test"):
        paths[split.index(where)] = f"{where}/same.png"
    catalog = catalog.set_column(catalog.column_names.index("path"), "path", pa.array(paths))
    (tmp_path / "boxes.csv").write_text("path,x_min,y_min,x_max,y_max\nsame.png,0,0,1,1\n")
    options = replace(QUICK, truth=load_truth(tmp_path / "boxes.csv"))
    with pytest.raises(TruthError, match=r"both answer to 'same\.png'"):
        evaluate(catalog, run.bundle, tmp_path / "out", options)
