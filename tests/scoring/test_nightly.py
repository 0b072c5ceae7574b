"""Tonight against the last nights: what is drift, and what is chance."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from braintumor_ray.predict.results import results_folder
from braintumor_ray.predict.shift import Shift
from braintumor_ray.scoring.nightly import compare, judge, last_summaries, total_variation

CLASSES = ("glioma", "meningioma", "none", "pituitary")
SHARES = np.array([0.4, 0.2, 0.3, 0.1])


def night(number, scans=500, shares=SHARES, quarantined=5, entropy=0.6, seed=None):
    """A night's summary, drawn by chance."""
    random = np.random.default_rng(number if seed is None else seed)
    counts = random.multinomial(scans - quarantined, shares)
    return {
        "generation": number,
        "scans": scans,
        "status": {"ok": scans - quarantined, "quarantined": quarantined},
        "classes": {name: int(n) for name, n in zip(CLASSES, counts, strict=True) if n},
        "mean_entropy": entropy + random.normal(0, 0.3 / np.sqrt(scans)),
        "entropy_deviation": 0.3,
    }


def week(**changes):
    return [night(number, **changes) for number in range(1, 8)]


def drifts(tonight, earlier=None):
    return [figure.name for figure in compare(tonight, earlier or week()).drifts]


class TestDrift:
    def test_ordinary_nights_are_as_usual(self):
        alarms = [drifts(night(8, seed=seed)) for seed in range(100, 300)]
        assert sum(map(bool, alarms)) <= 6, "about 1 in 100 nights, over three figures"

    def test_small_ordinary_nights_are_as_usual_too(self):
        alarms = [drifts(night(8, scans=12, quarantined=0, seed=seed)) for seed in range(100, 300)]
        assert sum(map(bool, alarms)) <= 6

    def test_other_class_shares_drift(self):
        other = np.array([0.2, 0.2, 0.5, 0.1])
        assert drifts(night(8, shares=other)) == ["class shares"]

    def test_a_class_never_seen_before_counts(self):
        tonight = night(8)
        tonight["classes"] = {"glioma": 250, "metastasis": 245}
        found = compare(tonight, week())
        assert "class shares" in [figure.name for figure in found.drifts]
        assert found.shares["metastasis"] == (245 / 495, 0.0)

    def test_higher_and_lower_entropy_drift(self):
        assert drifts(night(8, entropy=0.75)) == ["mean entropy"]
        assert drifts(night(8, entropy=0.45)) == ["mean entropy"]

    def test_more_quarantined_scans_drift_and_fewer_do_not(self):
        assert drifts(night(8, quarantined=40)) == ["quarantine share"]
        assert drifts(night(8, quarantined=0), week(quarantined=40)) == []

    def test_one_bad_file_after_clean_nights_is_no_alarm(self):
        assert drifts(night(8, scans=20, quarantined=1), week(quarantined=0)) == []

    def test_where_nights_vary_by_nature_more_is_allowed(self):
        random = np.random.default_rng(0)
        varied = [night(n, shares=random.dirichlet(20 * SHARES)) for n in range(1, 8)]
        tonight = night(8, shares=np.array([0.25, 0.28, 0.35, 0.12]))
        assert drifts(tonight) == ["class shares"]
        assert drifts(tonight, varied) == []

    def test_two_nights_are_too_few(self):
        assert compare(night(3), week()[:2]).figures == []

    def test_a_night_without_a_readable_scan_drifts_by_its_quarantine(self):
        tonight = night(8, scans=50, quarantined=50)
        tonight |= {"mean_entropy": None, "classes": {}}
        assert drifts(tonight) == ["quarantine share"]

    def test_total_variation(self):
        assert total_variation({"a": 1.0}, {"b": 1.0}) == 1.0
        assert total_variation({"a": 0.5, "b": 0.5}, {"a": 0.25, "b": 0.75}) == 0.25


class TestHistory:
    def test_the_last_seven_are_read_and_empty_ones_left_out(self, tmp_path):
        folder = results_folder(tmp_path)
        for number in range(1, 11):
            summary = night(number) | ({"scans": 0} if number == 9 else {})
            folder.write_json({"summary": summary}, "manifests", f"{number:06d}.json")
        found = last_summaries(folder, before=11)
        assert [summary["generation"] for summary in found] == [4, 5, 6, 7, 8, 10]


class TestVerdict:
    @pytest.fixture
    def whole(self, monkeypatch):
        from braintumor_ray.scoring import nightly
        from braintumor_ray.scoring.verify import Report

        reports = {"differences": []}
        monkeypatch.setattr(
            nightly, "verify", lambda *_, **__: Report(10, 10, reports["differences"])
        )
        return reports["differences"]

    def write(self, root):
        for summary in week():
            self.commit(root, summary)

    def commit(self, root, summary):
        name = f"{summary['generation']:06d}.json"
        results_folder(root).write_json({"summary": summary}, "manifests", name)

    def test_all_is_well(self, tmp_path, whole):
        self.write(tmp_path)
        found = judge(str(tmp_path), night(8), 0.1, 1)
        assert found.gates == []
        assert any("as usual" in line for line in found.report)

    def test_each_gate_is_named(self, tmp_path, whole):
        self.write(tmp_path)
        whole.append("a row too many")
        bad = night(8, quarantined=100, shares=np.array([0.05, 0.05, 0.1, 0.8]))
        gates = " | ".join(judge(str(tmp_path), bad, 0.1, 1).gates)
        assert "verify: a row too many" in gates
        assert "20.0% of the scans are quarantined" in gates
        assert "drift: class shares" in gates

    @pytest.mark.parametrize("differs", [True, False])
    def test_scans_that_differ_from_validation_do_not_pass(self, tmp_path, whole, differs):
        self.write(tmp_path)
        shift = asdict(Shift(495, 495, 0.5, 0.2, differs))
        found = judge(str(tmp_path), night(8) | {"shift": shift}, 0.1, 1)
        assert [gate.split(":")[0] for gate in found.gates] == ["shift"] * differs

    def test_a_night_with_nothing_new_is_only_verified(self, tmp_path, whole):
        found = judge(str(tmp_path), {"generation": None, "known": 5}, 0.1, 1)
        assert (found.gates, found.comparison, found.verified) == ([], None, 10)

    def test_a_night_that_was_killed_before_its_gates_is_judged_by_the_next(self, tmp_path, whole):
        self.write(tmp_path)
        nothing = {"generation": None, "known": 5}
        assert judge(str(tmp_path), night(7), 0.1, 1).gates == []
        self.commit(tmp_path, night(8, quarantined=100))  # and then the process was killed
        found = judge(str(tmp_path), nothing, 0.1, 1)
        assert [gate.split(":")[0] for gate in found.gates] == ["generation 8", "generation 8"]
        assert "20.0% of the scans are quarantined" in found.gates[0]
        assert "quarantine share" in found.gates[1]
        assert found.comparison.runs == [1, 2, 3, 4, 5, 6, 7]
        assert judge(str(tmp_path), nothing, 0.1, 1).gates == [], "once is enough"

    def test_it_is_judged_too_where_tonight_has_scans_of_its_own(self, tmp_path, whole):
        self.write(tmp_path)
        judge(str(tmp_path), night(7), 0.1, 1)
        self.commit(tmp_path, night(8, quarantined=100))
        self.commit(tmp_path, night(9))
        gates = judge(str(tmp_path), night(9), 0.1, 1).gates
        assert {gate.split(":")[0] for gate in gates} == {"generation 8"}
        assert results_folder(tmp_path).names("judged")[-2:] == ["000008.json", "000009.json"]

    def test_rows_of_every_run_that_waits_are_verified(self, tmp_path, monkeypatch):
        from braintumor_ray.scoring import nightly
        from braintumor_ray.scoring.verify import Report

        asked = []
        monkeypatch.setattr(
            nightly, "verify", lambda _, newest, **__: asked.append(newest) or Report(1, 1, [])
        )
        self.write(tmp_path)
        judge(str(tmp_path), night(7), 0.1, 1)
        for number in (8, 9, 10):
            self.commit(tmp_path, night(number))
        judge(str(tmp_path), night(10), 0.1, 1)
        judge(str(tmp_path), night(10), 0.1, None)
        assert asked == [2, 3, None]

    def test_of_a_folder_of_an_earlier_version_only_the_newest_run_is_judged(self, tmp_path, whole):
        self.write(tmp_path)
        self.commit(tmp_path, night(3, quarantined=400))
        self.commit(tmp_path, night(8, quarantined=100))
        gates = judge(str(tmp_path), {"generation": None, "known": 5}, 0.1, 1).gates
        assert {gate.split(":")[0] for gate in gates} == {"generation 8"}
        assert results_folder(tmp_path).names("judged") == ["000008.json"]

    def test_a_first_night_that_was_killed_is_judged_by_the_second(self, tmp_path, whole):
        self.commit(tmp_path, night(1, quarantined=100))
        self.commit(tmp_path, night(2))
        (gate,) = judge(str(tmp_path), night(2), 0.1, 1).gates
        assert gate.startswith("generation 1: 20.0% of the scans are quarantined")

    def test_the_verdict_is_kept(self, tmp_path, whole):
        self.write(tmp_path)
        found = judge(str(tmp_path), night(7, quarantined=100), 0.1, 1)
        record = json.loads((tmp_path / "judged" / "000007.json").read_text())
        assert record["generation"] == 7
        assert record["gates"] == found.gates
