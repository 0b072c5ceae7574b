"""Each benchmark's tiny mode: its figures mean nothing, but it still runs and still measures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent


def tiny(name, tmp_path, *arguments, patients=4, written=None):
    """Run it on phantoms; returns what it wrote as JSON, having checked that there is a picture."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    empty = tmp_path / "scans"  # BRAINTUMOR_DATA: the same few scans wherever this runs
    from braintumor_ray.phantom.dataset import write_phantoms

    write_phantoms(empty, patients=patients)
    environment["BRAINTUMOR_DATA"] = str(empty / "scans")
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
    written = written or name
    assert (tmp_path / f"{written}.png").stat().st_size > 5000
    return json.loads((tmp_path / f"{written}.json").read_text())


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
    assert case["ratios"]["openvino, int8, forward / openvino, forward, bf16"]["n"] == 3
    assert case["difference"] < 1e-3
    assert len(found["checks"]) == 5


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
    found = tiny("scale", tmp_path)
    assert [job["scans"] for job in found["jobs"]] == [40, 400]
    assert all(job["driver_mb"] > 50 and job["largest_worker_mb"] > 50 for job in found["jobs"])
    assert found["jobs"][1]["files"] >= 10
    assert found["jobs"][1]["steady_scans_per_s"] > 0


def test_a_size_that_was_not_run_is_estimated_from_two_that_were():
    from benchmarks.scale import along_a_line, bars_at_ten_million

    small = {"scans": 1_000_000, "driver_mb": 400, "second_night_plan_s": 1.0}
    large = {"scans": 2_000_000, "driver_mb": 450, "second_night_plan_s": 2.0}
    assert along_a_line(small, large, "driver_mb") == 450 + 8 * 50
    assert along_a_line(small, large | {"driver_mb": 300}, "driver_mb") == 400  # never shrinks
    more = {"plan_driver_mb": 1, "verify_driver_mb": 1}
    said = {what: seen for what, seen, *_ in bars_at_ten_million(small | more, large | more)}
    (line,) = [what for what in said if what.endswith("second_night_plan_s")]
    assert "along a line" in line
    assert said[line] == 10


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
def test_train(tmp_path):
    found = tiny("train", tmp_path, patients=24)
    assert found["scans"] > 30
    assert all(rate["median"] > 0 for sides in found["rates"].values() for rate in sides.values())


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
