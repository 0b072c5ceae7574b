"""No identity of any input in any byte that the job and its readers write."""

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.identity import IdentityHash
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.cli import app
from braintumor_ray.predict.results import read_results
from braintumor_ray.predict.study import read_studies
from braintumor_ray.scoring.job import ScoreOptions, score
from braintumor_ray.scoring.options import PredictSettings
from braintumor_ray.scoring.verify import verify
from tests.catalog.test_clinical_archive import PLANTED, planted_archive

pytestmark = pytest.mark.ray


def test_planted_identities_reach_no_output(tmp_path, bundle_path, cluster):
    archive = planted_archive(tmp_path / "archive")
    catalog = load_catalog(archive, CatalogOptions(identity=IdentityHash(b"a key of our own")))
    results = tmp_path / "out" / "results"
    score(catalog, str(results), ScoreOptions(PredictSettings(str(bundle_path))))
    assert verify(str(results)).differences == []
    for command in (
        ("worklist", results, "-o", tmp_path / "out" / "worklist"),
        ("explain", "--results", results, "-o", tmp_path / "out" / "pictures"),
    ):
        found = CliRunner().invoke(app, [str(part) for part in command])
        assert found.exit_code == 0, found.output
        assert not any(str(value) in found.output for value in PLANTED)
    assert read_studies(results).num_rows >= 1
    assert set(read_results(results)["status"].to_pylist()) & {"ok"}
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) > 5
    for path in written:
        content = path.read_bytes()
        text = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else ""
        for value in map(str, PLANTED):
            assert value.encode() not in content, (path, value)
            assert value not in text, (path, value)
