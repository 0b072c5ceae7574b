"""The archive job's first stage, catalog rows to decoded rows; neither Ray nor torch in here."""

import os
import socket
import stat
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from braintumor_ray.catalog.redaction import redact_catalog
from braintumor_ray.decode.files import locations
from braintumor_ray.decode.prepare import PreparedScan
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.decode.reading import binary_column, decode_scans, scan_columns
from braintumor_ray.decode.sandbox import DecodeSandbox
from braintumor_ray.explain.regions import head_weights
from braintumor_ray.predict.schema import KEYS
from braintumor_ray.scoring.options import DecodeSettings
from braintumor_ray.storage import is_local, local_path, modified, open_filesystem, split_uri
from braintumor_ray.types import Mask

ROW_COLUMNS = ("scan_id", "uri", "frame", *KEYS)
PIXEL_COLUMNS = ("status", "reason", "height", "width", "pixel_sha256", "image")
PREPARED = ("image", "head", "box")  # what the predictor takes of a scan


class DecodeStage:
    """Catalog rows in; out come rows with status, pixels' size and hash, and what is predicted on.

    That is the input square, uint8 S * S bytes, and the head's weights, float32 3 * h * w bytes
    (`explain.regions.head_weights`): whatever costs CPU is done here, where there are as many
    processes as CPUs, and not next to a GPU. Where squares show parts of pictures, `box` says
    which. All are null where the scan is not ok.
    """

    def __init__(
        self, preprocessing: Preprocessing, settings: DecodeSettings, cam_shape: tuple[int, int]
    ) -> None:
        self._preprocessing = preprocessing
        self._settings = settings
        self._cam_shape = cam_shape
        cv2.setNumThreads(1)  # of this process; there are as many decoders as CPUs
        self._sandbox = DecodeSandbox(settings.worker, settings.timeout_s)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Decode a block; the rows keep their order and their number."""
        prepared = decode_scans(
            rows, self._preprocessing, limits=self._settings.limits, sandbox=self._sandbox
        )
        scans, heads = [], []
        for scan in prepared:
            scans.append(scan)
            heads.append(self._head(scan))  # while the child decodes the next
        kept = redact_catalog(rows, self._settings.redaction).select(ROW_COLUMNS)
        box = ("box",) if self._preprocessing.crop != "none" else ()
        for name, values in scan_columns(scans, (*PIXEL_COLUMNS, *box)).items():
            kept = kept.append_column(name, values)
        return kept.append_column("head", binary_column(heads))

    def _head(self, scan: PreparedScan) -> npt.NDArray[np.float32] | None:
        return None if scan.image is None else head_weights([scan.image], self._cam_shape)


CHANGED = "changed since it was catalogued"
NOT_READABLE = "file not readable: OSError"
PATIENCE_S = 240.0  # of waiting between attempts; reading itself is patient, too
LONGEST_WAIT_S = 30.0


class ArchiveDecodeStage(DecodeStage):
    """Catalog rows in, decoded rows out, as `DecodeStage`."""

    patience_s = PATIENCE_S

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Decode a block; the rows keep their order and their number.

        Raises:
            OSError: the store does not answer, or the archive's folder is not there; nothing is
                lost, the block is not committed.
        """
        decoded = self._wait_for_store(rows, super().__call__(rows))
        _refuse_absent_folder(rows, decoded)
        # Looked at after reading: a file that is still the cataloged one was it while we read.
        return _quarantine(decoded, changed_files(rows), CHANGED)

    def _wait_for_store(self, rows: pa.Table, decoded: pa.Table) -> pa.Table:
        wait, waited = 1.0, 0.0
        while len(away := _unreadable(rows, decoded)):
            if waited >= self.patience_s:
                _refuse_absent_store(rows["uri"][int(away[0])].as_py())
                break
            time.sleep(wait)
            waited, wait = waited + wait, min(2 * wait, LONGEST_WAIT_S)
            again = super().__call__(rows.take(pa.array(away)))
            place = np.arange(rows.num_rows)
            place[away] = rows.num_rows + np.arange(len(away))
            decoded = pa.concat_tables([decoded, again]).take(pa.array(place))
        return decoded


def changed_files(rows: pa.Table) -> Mask:
    """Which rows' files are there and differ from the catalog in size or time of change."""
    changed = np.zeros(rows.num_rows, bool)
    if not {"size", "mtime"} <= {*rows.column_names}:
        return changed
    uris = locations(rows)
    found = dict(_states(list(dict.fromkeys(uris))))
    then = zip(rows["size"].to_pylist(), rows["mtime"].to_pylist(), strict=True)
    for index, (uri, (size, mtime)) in enumerate(zip(uris, then, strict=True)):
        if uri in found and size is not None:
            now_size, now_mtime = found[uri]
            same_time = mtime is None or _is_same_time(mtime, now_mtime)
            changed[index] = now_size != size or not same_time
    return changed


def _is_same_time(listed: datetime, found: datetime) -> bool:
    """To the decimals that the catalog has: a listing made elsewhere may have cut or rounded."""
    exact = (10**n for n in range(6, 0, -1) if listed.microsecond % 10**n == 0)
    difference_us = abs(found - listed) // timedelta(microseconds=1)
    return difference_us < next(exact, 2)  # the sixth decimal may be cut, rounded or neither


State = tuple[int, datetime]  # size and time of change


def _states(uris: list[str]) -> Iterator[tuple[str, State]]:
    """What is known of the files that are there; of none where the store does not report it."""
    by_store: dict[str, list[str]] = {}
    for uri in uris:
        by_store.setdefault(_store_of(uri), []).append(uri)
    for uri in by_store.pop("", []):
        if (state := _local_state(uri)) is not None:
            yield uri, state
    for group in by_store.values():
        filesystem, _ = open_filesystem(group[0])
        try:
            infos = filesystem.get_file_info([open_filesystem(uri)[1] for uri in group])
        except OSError:
            continue  # its rows have their reason already
        for uri, info in zip(group, infos, strict=True):
            if info.type.name == "File":
                yield uri, (info.size, info.mtime)


def _local_state(location: str) -> State | None:
    # A tenth of the time that Arrow's file system takes.
    try:
        status = os.stat(local_path(location))
    except OSError:
        return None  # its row has its reason already
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_size, modified(status)


def _store_of(uri: str) -> str:
    """The bucket or server of a URI; empty for this machine's file system."""
    parts = split_uri(uri)
    return "" if parts is None or is_local(uri) else parts.store


def _unreadable(rows: pa.Table, decoded: pa.Table) -> npt.NDArray[np.int64]:
    """Rows whose object could not be read although it is not reported missing."""
    away = pc.fill_null(pc.starts_with(decoded["reason"], NOT_READABLE), False).to_numpy()
    return np.array([i for i in np.flatnonzero(away) if not is_local(rows["uri"][int(i)].as_py())])


def _refuse_absent_store(uri: str) -> None:
    store = _store_of(uri)
    filesystem, path = open_filesystem(store)
    try:
        filesystem.get_file_info(f"{path}/braintumor-ray-asks-whether-you-are-there")
    except OSError as error:
        raise OSError(f"the store '{store}' does not answer: {error}") from error


def _refuse_absent_folder(rows: pa.Table, decoded: pa.Table) -> None:
    """As an absent store: a share that is not mounted on a node would cost all that it reads."""
    unread = pc.fill_null(pc.starts_with(decoded["reason"], "file not "), False)
    if "path" not in rows.column_names or not pc.any(unread).as_py():
        return
    places = rows.filter(unread).select(["uri", "path"]).to_pylist()
    for root in {each["uri"].removesuffix(each["path"]) for each in places}:
        if root.endswith("/") and is_local(root) and not _has_entries(local_path(root)):
            raise OSError(
                f"'{root}', the folder of the scans, is missing or empty on node "
                f"'{socket.gethostname()}'; mount it there"
            )


def _has_entries(folder: Path) -> bool:
    try:
        with os.scandir(folder) as found:
            return next(found, None) is not None
    except PermissionError:  # its files may be readable all the same
        return True
    except OSError:
        return False


def _quarantine(decoded: pa.Table, bad: Mask, reason: str) -> pa.Table:
    if not bad.any():
        return decoded
    keep = pa.array(~bad)
    for name, value in (("status", "quarantined"), ("reason", reason)):
        index = decoded.column_names.index(name)
        decoded = decoded.set_column(index, name, pc.if_else(keep, decoded[name], value))
    prepared = [name for name in PREPARED if name in decoded.column_names]
    for name in ("height", "width", "pixel_sha256", *prepared):
        index, kind = decoded.column_names.index(name), decoded.schema.field(name).type
        decoded = decoded.set_column(
            index, name, pc.if_else(keep, decoded[name], pa.scalar(None, kind))
        )
    return decoded
