"""An archive that differs as a whole is noticed; prevalence, chance and small nights are not."""

import numpy as np
import pytest

from braintumor_ray.models.bundle import load_bundle
from braintumor_ray.models.domain import COORDINATES, ArchiveReference
from braintumor_ray.predict.shift import LEAST_SCANS, Shift, ShiftStatistics, shift_of
from tests.builders import make_bundle

GAIN = np.random.default_rng(9).normal(0, 1, 40)


def scans(n, seed=0, tumors=0.7, scanner=0.0):
    """Pooled features (n, 40) > 0 and decisions; `scanner` scales channels as a scanner would."""
    random = np.random.default_rng(seed)
    positive = random.random(n) < tumors
    logs = random.normal(0, 0.5, (n, 40)) + positive[:, None] * np.linspace(-2, 2, 40)
    return np.exp(logs + scanner * GAIN), positive


@pytest.fixture(scope="module")
def reference():
    return ArchiveReference.fit(*scans(400))


def measured(reference, **kind):
    features, positive = scans(**kind)
    patients = [None] * len(features)
    return shift_of(reference, reference.coordinates(features, positive), positive, patients)


def test_scans_of_the_same_kind_seldom_differ(reference):
    found = [measured(reference, n=100, seed=seed).differs for seed in range(1, 101)]
    assert np.mean(found) <= 0.01


@pytest.mark.parametrize("tumors", [0.0, 0.1, 1.0])
def test_another_prevalence_is_no_shift(reference, tumors):
    assert not measured(reference, n=100, seed=5, tumors=tumors).differs


def test_another_scanner_is_a_shift_though_each_scan_looks_usual(reference):
    assert measured(reference, n=100, seed=5, scanner=0.3).differs
    features, positive = scans(100, 5, scanner=0.3)
    usual = np.abs(reference.coordinates(*scans(400, 7))).max(axis=1)
    own = np.abs(reference.coordinates(features, positive)).max(axis=1)
    assert (own > np.quantile(usual, 0.99)).mean() < 0.15


def test_a_few_scans_are_not_judged(reference):
    assert measured(reference, n=LEAST_SCANS - 1, scanner=2.0) is None
    assert measured(reference, n=LEAST_SCANS, scanner=2.0).differs


def test_slices_of_one_patient_count_once(reference):
    features, positive = scans(400, 3)
    places = reference.coordinates(features, positive)
    patients = [f"patient {n // 40}" for n in range(400)]
    assert shift_of(reference, places, positive, patients) is None  # ten patients
    patients = [f"patient {n // 10}" for n in range(400)]
    alone = shift_of(reference, places, positive, [None] * 400)
    grouped = shift_of(reference, places, positive, patients)
    assert (grouped.independent, alone.independent) == (40, 400)
    assert grouped.distance == alone.distance
    assert grouped.limit > alone.limit
    mixed = np.random.default_rng(0).permutation(400)
    elsewhere = shift_of(reference, places[mixed], positive[mixed], [patients[n] for n in mixed])
    assert elsewhere.independent == 40, "slices that lie apart are still one patient's"


def test_batches_add_up(reference):
    features, positive = scans(300, 3)
    places = reference.coordinates(features, positive)
    patients = [f"p{n // 3}" for n in range(300)]
    tally = ShiftStatistics()
    for start in range(0, 300, 7):
        part = slice(start, start + 7)
        tally.add(places[part], positive[part], patients[part])
    whole = shift_of(reference, places, positive, patients)
    found = tally.shift(reference.scans)
    assert found.independent == whole.independent == 100
    assert found.distance == pytest.approx(whole.distance, rel=1e-6)


def test_negative_features_and_few_scans_can_be_fitted():
    random = np.random.default_rng(0)
    for n in (2, 9, 30):
        features = random.normal(0, 1, (n, 12))
        reference = ArchiveReference.fit(features, np.zeros(n, bool))
        assert reference.basis.shape[1] <= min(COORDINATES, max(1, n // 4))
        assert np.isfinite(reference.coordinates(features, np.ones(n, bool))).all()


def test_a_bundle_keeps_its_reference(tmp_path, reference):
    made = make_bundle(tmp_path / "b", archive=reference)
    kept = load_bundle(tmp_path / "b")
    assert kept.optional_columns == ("domain_coordinates",)
    for name in ("centers", "basis", "scale", "scans"):
        np.testing.assert_array_equal(getattr(kept.archive, name), getattr(reference, name))
    plain = make_bundle(tmp_path / "plain")
    assert plain.archive is None
    assert plain.optional_columns == ()
    assert made.fingerprint != plain.fingerprint


def test_the_sentence_says_what_to_do():
    assert "check with 'validate'" in Shift(100, 90, 0.5, 0.2, True).sentence()
    assert Shift.of_run({"scans": 3}) is None
    assert Shift.of_run({"shift": vars(Shift(100, 90, 0.1, 0.2, False))}).distance == 0.1
