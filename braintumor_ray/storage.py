"""One way to files: local paths, and any URI that pyarrow or fsspec opens."""

import io
import json
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from braintumor_ray.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

# Attempts wait 1, 2, 4, 8, 16 and then 20 s at most, half of it on average: half a minute in all.
MAX_ATTEMPTS = 8
RETRY_LIMIT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 60.0  # without a byte; a slow read that goes on is not cut off
DICOMWEB = ("dicomweb+https", "dicomweb+http")  # schemes of a PACS's objects
_DICOMWEB_CLASS = "braintumor_ray.dicomweb.filesystem.DicomwebFileSystem"


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


class Uri(NamedTuple):
    """A URI in its parts; `path` is as it is written, without the slash in front."""

    scheme: str
    authority: str
    path: str

    @property
    def store(self) -> str:
        """The URI of the bucket or server."""
        return f"{self.scheme}://{self.authority}"


_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://([^/]*)/?(.*)", re.DOTALL)


def split_uri(location: str) -> Uri | None:
    """The parts of a URI; None for a path of this machine.

    A key of an object store may hold any character. What ends the path of a web address (`#`,
    `?`) or encodes another character there (`%20`, `+`) means itself here.
    """
    found = _URI.fullmatch(location)
    return Uri(*found.groups()) if found else None


def is_uri(location: str) -> bool:
    """Whether a location names its scheme (s3://..., file://...)."""
    return split_uri(location) is not None


def is_local(location: str) -> bool:
    """Whether a location is on this machine's file system."""
    uri = split_uri(location)
    return uri is None or uri.scheme == "file"


def local_path(location: str) -> Path:
    """A local location as a path: `file://` is taken off, `~` is the home directory.

    A `file://` URI may be percent-encoded (RFC 8089); a file of exactly that name comes first.
    Names that are no UTF-8 may be spelled as `spelled` does.
    """
    text = location.removeprefix("file://")
    if text != location:
        text = text.removeprefix("localhost") if text.startswith("localhost/") else text
        text = text if os.path.lexists(_raw(text)) else unquote(text)
    elif text.startswith("~") and not os.path.lexists(_raw(text)):
        text = os.path.expanduser(text)
    return Path(_raw(text))


def absolute(location: str) -> str:
    """A location that means the same in every process: URIs as they are, paths from the root."""
    return location if is_uri(location) else os.path.abspath(local_path(location))


def location_label(location: str) -> str:
    """A location as metrics and messages to others name it: without a user and a password."""
    uri = split_uri(location)
    if uri is None:
        return spelled(absolute(location)).rstrip("/")
    return f"{uri.scheme}://{uri.authority.rpartition('@')[2]}/{uri.path}".rstrip("/")


_CREDENTIALS = re.compile(r"(?<=://)(?!/)\S*@|(?<=[\"'])[^\"'\s]*@")


def without_password(text: str) -> str:
    """A server's address, or a text that quotes one, without the user and the password in it.

    Up to the last `@`: a password may hold `@` and `/` that nobody has escaped.
    """
    return _CREDENTIALS.sub("***@", text)


# A name that is no UTF-8 cannot be in Parquet or JSON. Each of its odd bytes 0x80..0xFF becomes a
# character U+EF80..U+EFFF, private ones that MirBSD uses for this (OPTU encoding). A name that
# has such a character itself is spelled by that character's bytes, so that nothing is ambiguous.
_PRIVATE, _SURROGATE = 0xEF00, 0xDC00
_ODD = re.compile("[\uef80-\uefff\udc80-\udcff]")
_SPELLED = re.compile("[\uef80-\uefff]")


def modified(status: os.stat_result) -> datetime:
    """When a local file was changed."""
    return at_nanoseconds(status.st_mtime_ns)


def at_nanoseconds(time_ns: int) -> datetime:
    """A time since 1970, as pyarrow computes those of files: ids must not depend on who looked.

    Some file systems keep times that no calendar has: they count as its first or last moment.
    """
    try:
        return datetime.fromtimestamp(time_ns / 1e9, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return (datetime.max if time_ns > 0 else datetime.min).replace(tzinfo=timezone.utc)


def spelled(path: str) -> str:
    """A path of this machine as text that any file can hold; `local_path` finds its file again.

    Args:
        path: as Python's `os` functions give it (undecodable bytes as lone surrogates).
    """
    return _ODD.sub(_by_bytes, path)


def _by_bytes(found: re.Match[str]) -> str:
    return "".join(chr(_PRIVATE + byte) for byte in found[0].encode("utf-8", "surrogateescape"))


def _raw(text: str) -> str:
    """The inverse of `spelled`, as Python's `os` functions take it."""
    raw = _SPELLED.sub(lambda found: chr(_SURROGATE + ord(found[0]) - _PRIVATE), text)
    return raw if raw == text else os.fsdecode(os.fsencode(raw))


@lru_cache(maxsize=64)
def _filesystem(scheme: str, authority: str) -> tuple[Any, Any]:  # pyarrow has no stubs
    """A pyarrow FileSystem, and the fsspec one inside it where it is not pyarrow's own."""
    import pyarrow.fs as pafs

    try:
        return open_store(scheme, authority), None
    except (ValueError, OSError):
        import fsspec

        for known in DICOMWEB:  # by name: what is above us stays unknown here until it is asked for
            fsspec.register_implementation(known, _DICOMWEB_CLASS)
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
    uri = split_uri(text)
    if uri is None or uri.scheme == "file":
        return pafs.LocalFileSystem(), _for_pyarrow(os.path.abspath(local_path(text)))
    filesystem, inner = _filesystem(uri.scheme, uri.authority)
    # fsspec knows how its paths are written (memory:// begins with a slash, s3:// does not).
    path = f"{uri.authority}/{uri.path}" if inner is None else inner._strip_protocol(text)
    return filesystem, path.rstrip("/")


def _for_pyarrow(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        if os.path.isdir(path):
            raise UsageError(
                f"folder '{spelled(path)}' has a name that is no UTF-8; rename it"
            ) from error
        raw: Any = os.fsencode(path)  # pyarrow opens it by its bytes
        return raw
    return path


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
    if not is_local(str(location)):
        filesystem, path = open_filesystem(location)
        filesystem.create_dir(os.path.dirname(path), recursive=True)
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)
        return
    path = os.path.abspath(local_path(str(location)))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # Not named by pid: processes of two containers may have the same.
    work = f"{path}.{secrets.token_hex(8)}.tmp"
    try:
        with open(work, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(work, path)
    except BaseException:
        Path(work).unlink(missing_ok=True)
        raise


def keep_on_disk(locations: Iterable[str]) -> None:
    """Return when files are on the local disk, where a loss of power leaves them.

    Others may have written them. On object stores a file that is there is kept.

    Raises:
        OSError: one is missing, or the disk failed.
    """
    files = [local_path(location) for location in locations if is_local(location)]
    for path in files:
        sync_path(path)
    for folder in {path.parent for path in files}:
        with suppress(OSError):  # file systems that know no such thing for folders refuse
            sync_path(folder)


def sync_path(path: Path) -> None:
    """Return when what a file holds, or the names in a folder, are on the disk.

    Raises:
        OSError: it is missing, the disk failed, or its file system refuses this of folders.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_table(location: str | Path, table: "pa.Table") -> None:
    """Write a table as one Parquet file, whole or not at all."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_atomically(location, buffer.getvalue())


@dataclass(frozen=True)
class Folder:
    """A folder, local or on an object store; `parts` name what is inside it.

    Attributes:
        location: a local path or a URI, without a trailing slash.
    """

    location: str

    def at(self, *parts: str) -> str:
        """The location of something inside."""
        return "/".join((self.location, *parts))

    def names(self, *parts: str) -> list[str]:
        """Names in a folder inside, sorted; none where it does not exist."""
        return sorted(self.sizes(*parts))

    def sizes(self, *parts: str) -> dict[str, int | None]:
        """Bytes of what is in a folder inside, by name; None for folders."""
        from pyarrow.fs import FileSelector

        filesystem, path = open_filesystem(self.at(*parts))
        infos = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
        return {info.base_name: info.size for info in infos}

    def read_json(self, *parts: str) -> Any:  # noqa: ANN401 - JSON values
        """The content of a JSON file.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no JSON.
        """
        return json.loads(read_bytes(self.at(*parts)))

    def write_json(self, value: Any, *parts: str) -> None:  # noqa: ANN401 - JSON values
        """Write a JSON file, whole or not at all."""
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.at(*parts), text.encode())

    def read_table(
        self,
        *parts: str,
        columns: list[str] | None = None,
        where: Any = None,  # noqa: ANN401 - an Arrow expression; pyarrow has no stubs
    ) -> "pa.Table":
        """The rows of a Parquet file, or those for which `where` is true.

        Raises:
            OSError, pyarrow.ArrowException: it cannot be read.
        """
        import pyarrow.parquet as pq

        filesystem, path = open_filesystem(self.at(*parts))
        # Opened by us: given a path, pyarrow would guess at folders and schemas.
        with filesystem.open_input_file(path) as stream:
            return pq.read_table(stream, columns=columns, filters=where)

    def delete_file(self, *parts: str) -> None:
        """Delete a file.

        Raises:
            OSError: it does not exist or cannot be deleted.
        """
        filesystem, path = open_filesystem(self.at(*parts))
        filesystem.delete_file(path)
