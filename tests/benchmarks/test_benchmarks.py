"""Each benchmark's tiny mode: its figures mean nothing, but it still runs and still measures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from braintumor_ray.models.device import use_bf16

PROJECT = Path(__file__).resolve().parent.parent.parent
# Many parts, each in a process; in the others the parts are started as they are by hand.
FORKED = ("catalog", "explain", "feed", "gpu", "scale", "score", "serve")


def tiny(name, tmp_path, *arguments, written=None):
    """Run it on phantoms; returns what it wrote as JSON, having checked that there is a picture."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    if name in FORKED:
        environment["BENCH_PRELOAD"] = "tests.benchmarks.preloaded"
    environment["BRAINTUMOR_DATA"] = some_scans(tmp_path)
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", "--tiny", "--output", str(tmp_path), *arguments],
        cwd=PROJECT,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=570,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return written_by(written or name, tmp_path)


def some_scans(folder, patients=4):
    """A folder for BRAINTUMOR_DATA: the same few scans wherever this runs."""
    from braintumor_ray.phantom.dataset import write_phantoms

    write_phantoms(folder / "scans", patients=patients)
    return str(folder / "scans" / "scans")


def written_by(name, folder):
    """The JSON of a benchmark that has drawn its picture, too."""
    assert (folder / f"{name}.png").stat().st_size > 5000
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.slow
def test_explain(tmp_path):
    cases = tiny("explain", tmp_path, "--rounds", "3", "--only", "fp32")["cases"]
    (case,) = cases.values()
    assert all(rate["median"] > 0 for rate in case["rates"].values())
    assert case["ratios"]["ours / grad-cam"]["n"] == 3
    assert case["agreement"]["ours"]["gradcam"] < 1e-4
    assert case["agreement"]["ours"]["gradcam_pp"] < 1e-4
    assert case["agreement"]["grad-cam"]["gradcam"] < 1e-4


@pytest.mark.slow
def test_explain_by_another_engine(tmp_path):
    arguments = ("--engine", "openvino", "--rounds", "3", "--threads", "1")
    found = tiny("explain", tmp_path, *arguments, written="explain-openvino")
    (case,) = found["cases"].values()
    assert all(rate["median"] > 0 for rate in case["rates"].values())
    has_bf16 = use_bf16(torch.device("cpu"), "auto")  # of int8 the bar is over bf16
    low = "bf16" if has_bf16 else "fp32"
    assert case["ratios"][f"openvino, ours, {low} / openvino, forward, {low}"]["n"] == 3
    int8 = "openvino, int8, forward / openvino, forward, bf16"
    assert ("n" in case["ratios"].get(int8, ())) == has_bf16
    assert case["difference"] < 1e-3
    assert len(found["checks"]) == (5 if has_bf16 else 2)


@pytest.mark.slow
@pytest.mark.ray
def test_score(tmp_path):
    found = tiny("score", tmp_path)
    jobs = found["jobs"]
    assert [jobs[name]["scans"] for name in ("ours, 24", "ray", "plain")] == [24, 24, 8]
    assert all(one["limit_per_s"] > 0 for one in found["limits"])
    assert jobs["ours, 24"]["heatmap_bytes_per_scan"] <= 1024
    assert jobs["ours, 24"]["cpu_s"]["predict actor"] > 0


@pytest.mark.slow
@pytest.mark.ray
def test_scale(tmp_path):
    steps = tiny("scale", tmp_path)["steps"]
    assert [(one["scans"], one["step"]) for one in steps] == in_turn("score")
    jobs = [one for one in steps if one["step"] == "score"]
    assert all(job["driver_mb"] > 50 and job["largest_worker_mb"] > 50 for job in jobs)
    assert jobs[1]["files"] >= 10
    assert jobs[1]["steady_scans_per_s"] > 0


@pytest.mark.slow
def test_scale_of_archives_that_stay_on_disk(tmp_path):
    folder = ("--folder", str(tmp_path / "kept"))
    steps = tiny("scale", tmp_path, "--written", *folder)["steps"]
    assert [(one["scans"], one["step"]) for one in steps] == in_turn("write")
    assert all(one["peak_mb"] > 50 and one["cpu_s"] > 0 for one in steps)
    again = tiny("scale", tmp_path / "again", "--written", *folder, "--steps", "verify")["steps"]
    assert [one["step"] for one in again] == ["verify", "verify"]


def in_turn(make):
    """Both sizes, with all steps."""
    from benchmarks.scale import STEPS

    return [(scans, step) for scans in (40, 400) for step in (make, *STEPS)]


def test_what_is_faster_than_the_first_sample_has_memory_too():
    from benchmarks.scale import Watch

    with Watch() as watch:
        pass
    assert watch.driver > 1e6


def test_a_size_that_was_not_run_is_estimated_from_two_that_were():
    from benchmarks.scale import along_a_line, bars_at_ten_million

    small = {"step": "plan", "scans": 1_000_000, "peak_mb": 400, "seconds": 1.0}
    large = {"step": "plan", "scans": 2_000_000, "peak_mb": 450, "seconds": 2.0}
    assert along_a_line(small, large, "peak_mb") == 450 + 8 * 50
    assert along_a_line(small, large | {"peak_mb": 300}, "peak_mb") == 400  # never shrinks
    said = {what: seen for what, seen, *_ in bars_at_ten_million([large, small])}
    (line,) = [what for what in said if what.endswith("plan: seconds")]
    assert "along a line" in line
    assert said[line] == 10
    assert bars_at_ten_million([small]) == []


@pytest.mark.slow
def test_catalog(tmp_path):
    jobs = tiny("catalog", tmp_path)["jobs"]
    ways = [(job["files"], job["way"]) for job in jobs]
    assert {(400, way) for way in ("find", "new", "since", "listing")} < {*ways}
    assert all(job["files_per_s"] > 0 and job["peak_mb"] > 0 for job in jobs)


@pytest.mark.slow
@pytest.mark.ray
def test_feed(tmp_path):
    found = tiny("feed", tmp_path)
    assert set(found["floor"]) == {"read", "decode", "resize", "hash", "head"}
    assert all(microseconds > 0 for microseconds in found["floor"].values())
    assert {"driver", "decode actor", "decoder child"} <= set(found["ours"])


def test_decode(tmp_path):
    found = tiny("decode", tmp_path)
    assert found["equal_pixels"]["Pillow, gray"] > 0.5  # not of 16-bit files
    assert all(rate["median"] > 0 for rate in found["rates"].values())


@pytest.mark.slow
def test_startup(tmp_path):
    seconds = tiny("startup", tmp_path)["seconds"]
    assert 0 < seconds["python, nothing"]["median"] < seconds["ours: explain one file"]["median"]


@pytest.mark.slow
@pytest.mark.ray
def test_serve(tmp_path):
    found = tiny("serve", tmp_path)
    assert (found["high"]["requests"], found["high"]["failed"]) == (40, 0)
    assert found["alone_scans_per_s"] > 0
    assert found["batch_sizes"]["mean"] >= 1


@pytest.mark.slow
def test_gpu(tmp_path):
    """On whatever device there is."""
    found = tiny("gpu", tmp_path)
    assert [case["threads"] for case in found["cases"]] == [1, 2]
    assert found["cpus_per_gpu"] > 0
    assert 0 < found["best"]["predictor_cpu_s"] < 1
