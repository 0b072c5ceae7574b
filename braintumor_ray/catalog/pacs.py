"""The objects of a DICOMweb source as files of a catalog: their URIs name no patient."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from braintumor_ray.catalog.identity import IdentityHash
from braintumor_ray.catalog.listing import FoundFile, Listing
from braintumor_ray.catalog.schema import scan_id
from braintumor_ray.dicomweb.query import Instance, Lister, parse_query
from braintumor_ray.dicomweb.session import DicomwebService, patience_s
from braintumor_ray.dicomweb.uid_tokens import hide_uid, share_key, uid_key
from braintumor_ray.errors import CatalogError, ServerError
from braintumor_ray.types import Progress

Ids = npt.NDArray[np.int64]
_FILES = 1000  # of a chunk, and the rest of a study; their rows are in memory together


class PacsListing:
    """Lists the images of a DICOMweb source.

    Args:
        source: dicomweb+https://host/dicom-web?KEY=VALUE&...
        identity: its key hides UIDs in paths and URIs; ids in clear keep them.
        progress: called with how many files were found so far, of 0: nobody knows of how many.
        known: int64, sorted: `scan_id` of first frames that are not listed again.
            Where there are some, that nothing new is found is no error.

    Raises:
        CatalogError: there is no key, and ids are not wanted in clear.
        UsageError: the source is not written as one.
    """

    def __init__(
        self,
        source: str,
        identity: IdentityHash,
        progress: Progress | None = None,
        known: Ids | None = None,
    ) -> None:
        self.query = parse_query(source)
        self.key = _key(identity)
        self._lister = Lister(DicomwebService(self.query.url, patience_s()), self.query)
        self._progress, self.known = progress, known
        self.found = self.skipped = 0

    def chunks(self) -> Iterator[list[FoundFile]]:
        """Files of whole studies, about `_FILES` at a time; without those that are known.

        Raises:
            ServerError: the server is down, refuses access, or is none.
            CatalogError: it has no image that matches.
        """
        held: list[FoundFile] = []
        with _as_server_errors():
            for study in self._lister.studies():
                self.found += len(study)
                files = [self._file(each) for each in study]
                fresh = [file for file in files if not self._is_known(file)]
                self.skipped += len(files) - len(fresh)
                held += fresh
                if self._progress:
                    self._progress(self.found, 0)
                if len(held) >= _FILES:
                    yield held
                    held = []
        if held:
            yield held
        if not self.found and (self.known is None or not len(self.known)):
            raise CatalogError(
                f"{self.query} has no image that matches; look at the dates and the modality"
            )

    def left_out(self) -> Listing:
        """What was found and is no image."""
        return Listing([], self._lister.left_out)

    def _file(self, instance: Instance) -> FoundFile:
        uids = (
            (instance.study, "study"), (instance.series, "series"), (instance.sop, "sop"),
        )  # fmt: skip
        path = "/".join(hide_uid(uid, kind, self.key) for uid, kind in uids)
        return FoundFile(path, f"{self.query.root}/{path}", None, None, unsized=True)

    def _is_known(self, file: FoundFile) -> bool:
        if self.known is None or not len(self.known):
            return False
        own = scan_id(file.path, 0, None, None)
        place = int(self.known.searchsorted(own))
        return place < len(self.known) and int(self.known[place]) == own


def _key(identity: IdentityHash) -> bytes | None:
    """The key that hides UIDs, shared with the processes that will read them."""
    if identity.clear:
        return None
    secret = identity.key
    if secret is None:
        identity("any", "study")  # names what is missing
    key = uid_key(secret or b"")
    share_key(key)
    return key


@contextmanager
def _as_server_errors() -> Iterator[None]:
    """A server that is down or refuses, as one line."""
    try:
        yield
    except OSError as error:
        raise ServerError(f"{error}; run the same command again later") from None
