"""One way to files: local paths, and any URI that pyarrow or fsspec opens."""

import os
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from braintumor_ray.errors import UsageError

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


def is_uri(location: str) -> bool:
    """Whether a location names its scheme (s3://..., file://...)."""
    return "://" in location


def is_local(location: str) -> bool:
    """Whether a location is on this machine's file system."""
    return not is_uri(location) or location.startswith("file://")


def local_path(location: str) -> Path:
    """A local location as a path (file:// is taken off)."""
    return Path(location.removeprefix("file://"))


@lru_cache(maxsize=64)
def _filesystem(scheme: str, authority: str) -> tuple[Any, Any]:  # pyarrow has no stubs
    """A pyarrow FileSystem, and the fsspec one inside it where it is not pyarrow's own."""
    import pyarrow.fs as pafs

    try:
        return open_store(scheme, authority), None
    except (ValueError, OSError):
        import fsspec

        try:
            inner = fsspec.filesystem(scheme)
        except (ValueError, ImportError) as error:
            raise UsageError(
                f"'{scheme}://' is opened neither by pyarrow nor by fsspec: {error}"
            ) from error
        return pafs.PyFileSystem(pafs.FSSpecHandler(inner)), inner


def open_filesystem(location: str | Path) -> tuple[Any, str]:
    """A pyarrow FileSystem and the path inside it.

    Raises:
        UsageError: a scheme that neither pyarrow nor fsspec knows.
    """
    import pyarrow.fs as pafs

    text = str(location)
    if is_local(text):
        return pafs.LocalFileSystem(), os.path.abspath(local_path(text))
    parts = urlsplit(text)
    filesystem, inner = _filesystem(parts.scheme, parts.netloc)
    # fsspec knows how its paths are written (memory:// begins with a slash, s3:// does not).
    path = f"{parts.netloc}{parts.path}" if inner is None else inner._strip_protocol(text)
    return filesystem, path.rstrip("/")


def read_bytes(location: str | Path) -> bytes:
    """The whole file.

    Raises:
        OSError: it cannot be read.
    """
    text = str(location)
    if is_local(text):
        return local_path(text).read_bytes()
    filesystem, path = open_filesystem(text)
    with filesystem.open_input_file(path) as stream:
        data: bytes = stream.read()
    return data


def write_atomically(location: str | Path, data: bytes) -> None:
    """Write a whole file so that readers see the old content or the new, never a part.

    Locally by rename; object stores make an object visible only when its upload is complete.
    """
    filesystem, path = open_filesystem(location)
    filesystem.create_dir(os.path.dirname(path), recursive=True)
    if not is_local(str(location)):
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)
        return
    work = f"{path}.{os.getpid()}.tmp"
    with open(work, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(work, path)
