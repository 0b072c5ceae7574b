"""How a source is read: the options of every command that takes one."""

import re
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Annotated, ClassVar

from braintumor_ray.catalog.identity import (
    IdentityHash,
    compile_patient_pattern,
    load_identity_hash,
)
from braintumor_ray.decode.options import DEFAULT_VOLUMES, VolumeOptions
from braintumor_ray.dicomweb.uid_tokens import share_key, uid_key
from braintumor_ray.options import MadeOf, Option

SOURCE, PRIVACY = "Source", "Privacy"
LabelsOption = Annotated[
    str | None,
    Option("Labels and boxes from 'review'; the newest wins over the source's.", "FILE"),
]


def is_table(location: str) -> bool:
    """Whether a location is that of a table of text: scans, or labels."""
    return location.lower().endswith((".csv", ".tsv"))


@dataclass(frozen=True)
class LabelChoice:
    """Labels that take the place of the source's, see `catalog.reviewed`."""

    PANEL: ClassVar = SOURCE

    labels: LabelsOption = None


@dataclass(frozen=True)
class IdentityChoice:
    """Where the secret for hashing ids is."""

    PANEL: ClassVar = PRIVACY

    hash_key_file: Annotated[
        str | None,
        Option("Secret for hashing ids; else BRAINTUMOR_HASH_KEY, else a key of your own.", "FILE"),
    ] = None
    clear_ids: Annotated[bool, Option("Keep patient ids readable: they may name people.")] = False

    def load(self) -> IdentityHash:
        """The hash with its key, see `load_identity_hash`.

        A key of a file is shared with the processes that this one starts: DICOMweb URIs need it.
        """
        found = load_identity_hash(self.hash_key_file, self.clear_ids)
        if self.hash_key_file is not None and found.secret is not None:
            share_key(uid_key(found.secret))
        return found


@dataclass(frozen=True)
class CatalogOptions:
    """How a source is read.

    Attributes:
        path_column, label_column, patient_column: columns of a CSV; None: by their usual names.
        root: the folder that a CSV's paths are below; None: the CSV's own.
        patient_pattern: finds a patient id in the relative path.
        identity: turns ids into keys.
        probe_headers: read each file's header for format, mode and size; without, every file
            counts as one frame.
        volumes: how a NIfTI volume becomes frames; where it is not the default, path and URI end
            in `VolumeOptions.mark`.
        threads: files read at a time.
    """

    PANEL: ClassVar = SOURCE

    path_column: Annotated[str | None, Option("CSV column of the file paths.", "COLUMN")] = None
    label_column: Annotated[str | None, Option("CSV column of the classes.", "COLUMN")] = None
    patient_column: Annotated[str | None, Option("CSV column of the patients.", "COLUMN")] = None
    root: Annotated[str | None, Option("Folder that the CSV's paths are below.", "FOLDER")] = None
    patient_pattern: Annotated[
        re.Pattern[str] | None,
        Option(
            "Regex over the path; its group 'patient' is the id.",
            "REGEX",
            parse=compile_patient_pattern,
        ),
    ] = None
    identity: Annotated[IdentityHash, MadeOf(IdentityChoice, IdentityChoice.load)] = field(
        default_factory=IdentityHash
    )
    probe_headers: bool = True
    volumes: VolumeOptions = DEFAULT_VOLUMES
    threads: int = 8

    def without_effect(self, source: str) -> list[str]:
        """Flags that were given and change nothing of a source: a catalog, or no table."""
        made = source.endswith(".parquet")
        of_tables = ("path_column", "label_column", "patient_column", "root")
        idle = () if is_table(source) else of_tables
        given = [name for name in idle if getattr(self, name) is not None]
        if made and self.patient_pattern is not None:
            given.append("patient_pattern")
        if made:
            own = asdict(self.volumes)
            given += [name for name, usual in asdict(DEFAULT_VOLUMES).items() if own[name] != usual]
        return [f"--{name.replace('_', '-')}" for name in given]

    def with_own_key(self, output: object) -> "CatalogOptions":
        """The same, and a key of this user where none was given and the output is not shared."""
        from braintumor_ray.catalog.local_key import own_key, own_key_allowed

        identity = self.identity
        if identity.secret is not None or identity.clear or not own_key_allowed(output):
            return self
        return replace(self, identity=replace(identity, make=cache(own_key)))


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How a large catalog is made.

    Attributes:
        listing: manifest.json of an S3 Inventory, or a CSV or Parquet file with path, size and
            time; None: the source is listed.
        since: an earlier catalog of the source: only new and changed files are opened.
    """

    PANEL: ClassVar = SOURCE

    listing: Annotated[
        str | None,
        Option(
            "In place of listing the source: S3 Inventory, or path, size and mtime as a table.",
            "MANIFEST.json|CSV|PARQUET",
        ),
    ] = None
    since: Annotated[
        str | None,
        Option("Earlier catalog: only new and changed files are opened.", "CATALOG"),
    ] = None
