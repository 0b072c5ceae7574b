"""What is published, and where to."""

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated, Literal

from braintumor_ray.errors import UsageError
from braintumor_ray.options import Option

Decision = Literal["all", "positive", "negative"]
MapPer = Literal["scan", "series"]
SCANS, SERVER = "Scans", "Server"  # panels in `--help`


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"--since '{text}' is not a date such as 2026-11-01") from error
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


@dataclass(frozen=True)
class PublishOptions:
    """Which rows become DICOM objects, and where these go.

    Attributes:
        output: folder or URI for the objects; None: they are sent only.
        to: URL of a DICOMweb server, or AE@HOST:PORT; None: they are written only.
        decision: rows of this tumor decision.
        worklist: worklist.csv of `worklist`: its scans, in its order.
        study: Study Instance UID of the scans; None: of all studies.
        hash_key_file: secret that ids were hashed with, for `study`; None: of the environment, else
            the user's own.
        since: scored at this moment or later.
        limit: at most so many scans; None: all.
        map_per: a Parametric Map of one frame for each scan, or one for a series with a frame for
            each of its slices.
        allow_burned_in: also scans with burned-in annotation, by their header or their picture.
        mask_burned_in: text that is found in a picture is black in its capture.
        wait: how long a server that is down is waited for, in seconds.
        senders: how many scans are sent at a time; None: 4 by DICOMweb, 1 by C-STORE, where some
            servers take one association at a time.
        aet: our application entity title, of C-STORE.
        tls: C-STORE over TLS.
    """

    output: Annotated[
        str | None,
        Option("For the objects: a folder per scan.", "FOLDER", flags=("--output", "-o")),
    ] = None
    to: Annotated[
        str | None,
        Option(
            "Server to send to: DICOMweb (STOW-RS) or an application entity (C-STORE); "
            "credentials: see docs/hospital.md.",
            "URL|AE@HOST:PORT",
            panel=SERVER,
        ),
    ] = None
    decision: Annotated[Decision, Option("Scans of this tumor decision.", panel=SCANS)] = "all"
    worklist: Annotated[
        str | None, Option("The scans of a worklist.csv, in its order.", "FILE", panel=SCANS)
    ] = None
    study: Annotated[
        str | None, Option("The scans of a study, by its Study Instance UID.", "UID", panel=SCANS)
    ] = None
    hash_key_file: Annotated[
        str | None,
        Option(
            "For --study or a PACS: hash key of ids; else BRAINTUMOR_HASH_KEY, else your own.",
            "FILE",
            panel=SCANS,
        ),
    ] = None
    since: Annotated[
        datetime | None,
        Option("Scored on this date or later (UTC).", "DATE", parse=_moment, panel=SCANS),
    ] = None
    limit: Annotated[int | None, Option("At most so many scans.", least=1, panel=SCANS)] = None
    map_per: Annotated[MapPer, Option("One map for each scan, or one for a series.")] = "scan"
    allow_burned_in: Annotated[
        bool, Option("Also scans with burned-in text, as they are.", panel=SCANS)
    ] = False
    mask_burned_in: Annotated[
        bool, Option("Also scans with burned-in text, which is masked in the capture.", panel=SCANS)
    ] = False
    wait: Annotated[
        float,
        Option("Seconds to wait for a server that is down.", "X", least=0, panel=SERVER),
    ] = 300.0
    senders: Annotated[
        int | None,
        Option(
            "Scans that are sent at a time.",
            typed="4, 1 by C-STORE",
            least=1,
            most=64,
            panel=SERVER,
        ),
    ] = None
    aet: Annotated[
        str, Option("Our application entity title, for C-STORE.", "TITLE", panel=SERVER)
    ] = "BRAINTUMOR"
    tls: Annotated[bool, Option("C-STORE over TLS; certificates as for https.", panel=SERVER)] = (
        False
    )
