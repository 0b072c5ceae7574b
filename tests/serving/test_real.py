"""Sixty real scans say the same over HTTP as in the archive job."""

import shutil
import socket

import numpy as np
import pytest

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.client import Client
from braintumor_ray.models.bundle import save_bundle
from braintumor_ray.predict.results import read_results
from braintumor_ray.scoring.job import ScoreOptions, score
from braintumor_ray.scoring.options import PredictSettings
from braintumor_ray.serving.settings import ServingSettings
from tests.builders import make_fields, make_model

pytestmark = [pytest.mark.real, pytest.mark.ray, pytest.mark.slow]
COUNT = 60
MAPS = ("gradcam", "gradcam_pp")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("parity") / "bundle"
    model = make_model("mobilenetv2_100", size=224)
    save_bundle(path, make_fields(model.architecture), model, None, "# untrained\n")
    return str(path)


@pytest.fixture(scope="module")
def scans(real_data, tmp_path_factory):
    """Every so-many-th scan of each class, in folders by class."""
    archive = tmp_path_factory.mktemp("archive")
    found = sorted((real_data / "mri4").rglob("*.jpg"))
    for number, path in enumerate(found[:: len(found) // COUNT][:COUNT]):
        target = archive / path.parent.name / f"{number}-{path.name}"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    return archive


@pytest.fixture(scope="module")
def rows(cluster, bundle, scans, tmp_path_factory):
    """The archive job's rows, by file."""
    results = tmp_path_factory.mktemp("results") / "results"
    options = ScoreOptions(PredictSettings(bundle, precision="fp32"))
    score(load_catalog(scans), str(results), options)
    return {row["uri"].removeprefix("file://"): row for row in read_results(results).to_pylist()}


@pytest.fixture(scope="module")
def answers(rows, bundle, scans):
    """The service's answers, by file."""
    from braintumor_ray.serving import app

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = ServingSettings(bundle=bundle, precision="fp32", front_replicas=1)
    app.start(settings, "127.0.0.1", port)
    with Client(f"http://127.0.0.1:{port}", timeout_s=120) as client:
        found = {path: client.predict(path, heatmap="array") for path in scans.rglob("*.jpg")}
    app.serve.shutdown()
    return {str(path): answer for path, answer in found.items()}


def test_classes_probabilities_and_pixels_are_those_of_the_archive_job(rows, answers):
    assert len(rows) == len(answers) == COUNT
    furthest = 0.0
    for path, answer in answers.items():
        row = rows[path]
        assert answer["predicted_class"] == row["predicted_class"]
        assert answer["scan"]["pixel_sha256"] == row["pixel_sha256"]
        assert answer["out_of_domain"] == row["out_of_domain"]
        given = np.array(list(answer["probabilities"].values()))
        furthest = max(furthest, float(np.abs(given - row["probabilities"]).max()))
    print(f"probabilities differ by at most {furthest:.2g}")
    assert furthest <= 1e-3


def test_both_maps_are_those_of_the_archive_job(rows, answers):
    furthest = 0.0
    for path, answer in answers.items():
        for name in MAPS:
            given = np.array(answer["maps"][name]["array"])
            stored = np.array(rows[path][name], np.float64).reshape(given.shape)
            furthest = max(furthest, float(np.abs(given - stored).max()))
    print(f"maps differ by at most {furthest:.2g}")
    assert furthest <= 1e-2
