"""The stages of the job in one process, on the blocks that break careless code."""

import cv2
import numpy as np
import pyarrow as pa

from braintumor_ray import Predictor
from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.models.bundle import SetFields, load_bundle, save_bundle
from braintumor_ray.scoring.decode_stage import DecodeStage
from braintumor_ray.scoring.options import DecodeSettings, PredictSettings, ScoreOptions
from braintumor_ray.scoring.predict_stage import PredictStage
from braintumor_ray.scoring.result_settings import describe_settings
from tests.builders import disc_scan, make_fields, make_model

HEAD = np.ones((3, 8, 8), np.float32).tobytes()
HEADLESS = np.random.default_rng(0).integers(0, 256, (80, 80)).astype(np.uint8)


def block(images):
    count = len(images)
    return pa.table(
        {
            "scan_id": pa.array(range(count), pa.int64()),
            "uri": [f"{i}.png" for i in range(count)],
            "frame": pa.array([0] * count, pa.int32()),
            **{name: pa.nulls(count, pa.string()) for name in KEYS},
            "status": ["quarantined" if image is None else "ok" for image in images],
            "reason": ["empty file" if image is None else None for image in images],
            "height": pa.array([64] * count, pa.int32()),
            "width": pa.array([64] * count, pa.int32()),
            "pixel_sha256": pa.nulls(count, pa.string()),
            "image": pa.array(images, pa.large_binary()),
            "head": pa.array([image and HEAD for image in images], pa.large_binary()),
        }
    )


KEYS = ("patient_key", "study_key", "series_key", "sop_key")


def test_a_block_without_a_readable_scan_is_rows_of_reasons(bundle_path):
    stage = PredictStage(PredictSettings(str(bundle_path)), "fingerprint")
    rows = stage(block([None, None, None]))
    assert rows["status"].to_pylist() == ["quarantined"] * 3
    assert rows["gradcam"].null_count == rows["probabilities"].null_count == 3


def test_rows_have_prediction_sets_where_the_bundle_makes_them(bundle_path, tmp_path):
    bundle = load_bundle(bundle_path)
    names = list(bundle.fields.class_names)
    thresholds = (0.0, *(1.5 for _ in names[1:]))  # the first class always, the others never
    sets = SetFields(coverage=0.9, thresholds=thresholds, groups=(30,) * len(names))
    fields = bundle.fields.model_copy(update={"prediction_sets": sets})
    made = save_bundle(tmp_path / "sets", fields, bundle.build_model(), bundle.detector, "card")
    scan = disc_scan(1, (64, 64)).tobytes()
    for location, loaded, wanted in ((bundle_path, bundle, None), (tmp_path / "sets", made, 1)):
        settings = PredictSettings(str(location))
        rows = PredictStage(settings, "fingerprint")(block([None, scan]))
        meta = describe_settings(loaded, ScoreOptions(settings))
        if wanted is None:  # as rows and folders were before
            assert "prediction_set" not in rows.column_names
            assert "set_coverage" not in meta
        else:
            assert rows["prediction_set"].to_pylist() == [None, names[:1]]
            assert meta["set_coverage"] == 0.9


def test_maps_stand_beside_the_scan_they_explain(bundle_path):
    stage = PredictStage(PredictSettings(str(bundle_path)), "fingerprint")
    first, second = (disc_scan(seed, (64, 64)).tobytes() for seed in (1, 2))
    rows = stage(block([None, first, None, second]))
    assert rows["gradcam"].is_valid().to_pylist() == [False, True, False, True]
    alone = stage(block([second]))
    assert rows["predicted_class"][3] == alone["predicted_class"][0]


def test_what_the_decoder_prepares_is_what_the_predictor_would(bundle_path, tmp_path):
    """The head travels as weights from one stage to the other; nothing of it may be lost."""
    scans = [disc_scan(seed, (70 + 9 * seed, 90)) for seed in range(4)] + [HEADLESS]
    for index, scan in enumerate(scans):
        cv2.imwrite(str(tmp_path / f"{index}.png"), scan)
    (tmp_path / "9.png").write_bytes(b"no picture")
    settings = PredictSettings(str(bundle_path), device="cpu", precision="fp32")
    predictor = Predictor.from_bundle(bundle_path, device="cpu", precision="fp32")
    decode = DecodeStage(predictor.bundle.preprocessing, DecodeSettings(), predictor.cam_shape)
    rows = PredictStage(settings, "fingerprint")(decode(load_catalog(tmp_path)))
    assert rows["status"].to_pylist() == ["ok"] * 5 + ["quarantined"]
    wanted = predictor(scans)
    assert rows["out_of_domain"].to_pylist() == [*wanted["out_of_domain"].tolist(), None]
    assert rows["out_of_domain"].to_pylist()[4] is True  # noise holds no head
    for name in ("heat_inside", "heat_rim", "heat_background"):
        found = np.array(rows[name].to_pylist()[:5], dtype=float)
        np.testing.assert_allclose(found, wanted[name], atol=1e-5)


def test_a_transformer_is_scored_and_explained(tmp_path):
    model = make_model("swin_tiny_patch4_window7_224", "linear", 96)
    save_bundle(tmp_path / "bundle", make_fields(model.architecture), model, None, "# card\n")
    scans = [disc_scan(seed) for seed in range(4)]
    (tmp_path / "archive").mkdir()
    for index, scan in enumerate(scans):
        cv2.imwrite(str(tmp_path / "archive" / f"{index}.png"), scan)
    predictor = Predictor.from_bundle(tmp_path / "bundle")
    decode = DecodeStage(predictor.bundle.preprocessing, DecodeSettings(), predictor.cam_shape)
    predict = PredictStage(PredictSettings(str(tmp_path / "bundle")), "fingerprint")
    rows = predict(decode(load_catalog(tmp_path / "archive"))).to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 4
    expected = predictor(scans)
    for row, probabilities, cam in zip(
        rows, expected["probabilities"], expected["gradcam"], strict=True
    ):
        np.testing.assert_allclose(row["probabilities"], probabilities, atol=0.01)
        stored = np.reshape(row["gradcam"], cam.shape)
        np.testing.assert_allclose(stored, cam, atol=0.05 * max(float(cam.max()), 1e-3))
