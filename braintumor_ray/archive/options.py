"""Options of `compact`."""

from dataclasses import dataclass
from typing import Annotated

from braintumor_ray.options import Option


@dataclass(frozen=True, kw_only=True)
class CompactOptions:
    """How small files become large ones.

    Attributes:
        target_mb: size of a file, 10^6 bytes as Parquet; about.
        drop_superseded: leave out rows that a newer version has replaced, for good.
        expire: delete the files that a compaction has replaced and that readers had time to leave.
        grace_hours: for so long a reader may hold a list of the old files.
        memory_mb: rows held at a time, 10^6 bytes as Arrow; the process needs about three times
            as much.
    """

    target_mb: Annotated[float, Option("Size of a file of rows.", least=0.001)] = 128.0
    drop_superseded: Annotated[
        bool, Option("Leave out rows that a newer version has replaced, for good.")
    ] = False
    expire: Annotated[
        bool, Option("Delete files that were replaced longer than --grace-hours ago.")
    ] = False
    grace_hours: Annotated[
        float, Option("For so long a reader may hold a list of old files.", least=0)
    ] = 24.0
    memory_mb: Annotated[float, Option("Rows held at a time.", least=1)] = 400.0
