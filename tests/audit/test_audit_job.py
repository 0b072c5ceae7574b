import shutil

import pytest

from braintumor_ray.audit.audit import run_audit
from braintumor_ray.audit.job import fingerprint_on_cluster
from braintumor_ray.catalog.build import load_catalog
from tests.builders import write_archive

pytestmark = pytest.mark.ray


def test_an_audit_read_on_the_cluster_equals_one_read_here(tmp_path, cluster):
    first, *_ = write_archive(tmp_path / "archive" / "Training", 16)
    copy = tmp_path / "archive" / "Testing" / "no_tumor" / "copy.png"
    copy.parent.mkdir(parents=True)
    shutil.copy(first, copy)
    (tmp_path / "archive" / "Testing" / "no_tumor" / "bad.png").write_bytes(b"")
    catalog = load_catalog(tmp_path / "archive")
    here = run_audit([("a", catalog)], tmp_path / "here", shortcuts=False)
    there = run_audit([("a", fingerprint_on_cluster(catalog))], tmp_path / "there", shortcuts=False)
    assert there["cross_split"] == here["cross_split"]
    assert there["cross_split"]["byte_identical"] == 1
    assert there["surplus"] == here["surplus"]
    assert there["groups"] == here["groups"]
