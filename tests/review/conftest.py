"""A results folder of phantoms in series, and a review of it; no model, no Ray."""

import cv2
import pyarrow as pa
import pytest

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.review.command import opened
from braintumor_ray.review.options import ReviewOptions
from tests.builders import disc_scan
from tests.evaluation.make_results import CLASSES, make_results


def write_scans(folder, count, in_series=4):
    """Scans named by series and slice; returns their catalog with keys and some labels."""
    for number in range(count):
        path = folder / f"s{number // in_series:04d}" / f"slice {number % in_series}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), disc_scan(number, (48, 56)))
    catalog = load_catalog(folder)
    keys = [path.split("/")[0] for path in catalog["path"].to_pylist()]
    labels = [CLASSES[n % 4] if n % 2 else None for n in range(count)]
    columns = {"series_key": keys, "patient_key": [f"secret-{key}" for key in keys]}
    for name, values in {**columns, "label": labels}.items():
        index = catalog.column_names.index(name)
        catalog = catalog.set_column(index, name, pa.array(values, pa.string()))
    return catalog


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("review")
    return folder / "archive", write_scans(folder / "archive", 12)


@pytest.fixture
def results(archive, tmp_path):
    sets = [[CLASSES[0]] if n % 3 else list(CLASSES[:2]) for n in range(12)]
    return make_results(tmp_path / "results", archive[1], sets=sets)


@pytest.fixture
def review(results):
    with opened(str(results), None, ReviewOptions(reviewer="R. One")) as found:
        yield found
