"""What is published, and where to."""

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated, Literal

from braintumor_ray.errors import UsageError
from braintumor_ray.options import Option

Decision = Literal["all", "positive", "negative"]
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
        since: scored at this moment or later.
        limit: at most so many scans; None: all.
        allow_burned_in: also scans whose header tells of burned-in annotation.
        wait: how long a server that is down is waited for, in seconds.
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
    decision: Annotated[
        Decision,
        Option(
            "Scans of this tumor decision.", choices=("all", "positive", "negative"), panel=SCANS
        ),
    ] = "all"
    worklist: Annotated[
        str | None, Option("The scans of a worklist.csv, in its order.", "FILE", panel=SCANS)
    ] = None
    since: Annotated[
        datetime | None,
        Option("Scored on this date or later (UTC).", "DATE", parse=_moment, panel=SCANS),
    ] = None
    limit: Annotated[int | None, Option("At most so many scans.", least=1, panel=SCANS)] = None
    allow_burned_in: Annotated[
        bool, Option("Also scans whose header tells of burned-in annotation.", panel=SCANS)
    ] = False
    wait: Annotated[
        float,
        Option("Seconds to wait for a server that is down.", "X", least=0, panel=SERVER),
    ] = 300.0
    aet: Annotated[
        str, Option("Our application entity title, for C-STORE.", "TITLE", panel=SERVER)
    ] = "BRAINTUMOR"
    tls: Annotated[bool, Option("C-STORE over TLS; certificates as for https.", panel=SERVER)] = (
        False
    )
