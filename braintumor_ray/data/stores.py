"""Object stores as file systems that wait: a busy or absent store is asked again for a while."""

import os
from datetime import timedelta
from typing import Any

# Attempts wait 1, 2, 4, 8, 16 and then 20 s at most, half of it on average: half a minute in all.
MAX_ATTEMPTS = 8
RETRY_LIMIT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 60.0  # without a byte; a slow read that goes on is not cut off


def open_store(scheme: str, authority: str) -> Any:  # noqa: ANN401 - pyarrow has no stubs
    """Pyarrow's file system of a bucket, patient where pyarrow lets us say so.

    `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` name another S3 than Amazon's.

    Raises:
        ValueError, OSError: pyarrow does not know the scheme or cannot reach the bucket.
    """
    import pyarrow.fs as pafs

    found = pafs.FileSystem.from_uri(f"{scheme}://{authority}/")[0]
    if scheme == "s3":
        return pafs.S3FileSystem(
            region=found.region,
            endpoint_override=s3_endpoint(),
            connect_timeout=CONNECT_TIMEOUT_S,
            request_timeout=REQUEST_TIMEOUT_S,
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=MAX_ATTEMPTS),
        )
    if scheme in ("gs", "gcs"):
        return pafs.GcsFileSystem(retry_time_limit=timedelta(seconds=RETRY_LIMIT_S))
    return found


def s3_endpoint() -> str | None:
    """The S3 server that the environment names, None for Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
