"""An object store for the tests of this folder."""

import pytest

from tests.s3 import ENVIRONMENT, s3_server


@pytest.fixture(scope="package")
def s3_url_and_faults():
    with s3_server() as served:
        yield served


@pytest.fixture
def s3(s3_url_and_faults, monkeypatch, request):
    """A bucket of the test's own: (bucket, faults); the environment points to its server."""
    import boto3

    url, faults = s3_url_and_faults
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": url}.items():
        monkeypatch.setenv(name, value)
    bucket = f"b{abs(hash(request.node.nodeid)):x}"[:40]
    boto3.client("s3").create_bucket(Bucket=bucket)
    faults.__init__()
    yield bucket, faults
    faults.__init__()
