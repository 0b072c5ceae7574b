"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items):
    """Tests that start clusters and kill processes get a second try: a busy machine is no fault.

    The summary names every test that needed it.
    """
    for item in items:
        if item.get_closest_marker("ray") or item.get_closest_marker("chaos"):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans, or a skip that says why."""
    folder = Path(os.environ.get("BRAINTUMOR_DATA", PROJECT.parent / "shared" / "data"))
    if not (folder / "mri4").is_dir():
        pytest.skip(f"real scans not found at {folder}; set BRAINTUMOR_DATA")
    return folder


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory) -> Path:
    """A bundle of a small random network."""
    from tests.builders import make_bundle

    path = tmp_path_factory.mktemp("bundle") / "bundle"
    make_bundle(path)
    return path


@pytest.fixture(scope="session")
def cluster():
    """One small local Ray for the whole session."""
    from braintumor_ray.local_ray import ray_session

    with ray_session():
        yield


@pytest.fixture(scope="session")
def s3_url_and_faults():
    """An S3 API on loopback: (url, its faults)."""
    from tests.s3 import s3_server

    with s3_server() as served:
        yield served


@pytest.fixture
def s3(s3_url_and_faults, monkeypatch, request):
    """A bucket of the test's own: (bucket, faults); the environment points to its server."""
    import boto3

    from tests.s3 import ENVIRONMENT

    url, faults = s3_url_and_faults
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": url}.items():
        monkeypatch.setenv(name, value)
    bucket = f"b{abs(hash(request.node.nodeid)):x}"[:40]
    boto3.client("s3").create_bucket(Bucket=bucket)
    faults.__init__()
    yield bucket, faults
    faults.__init__()
