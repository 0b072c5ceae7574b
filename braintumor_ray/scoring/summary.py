"""What a run did, in figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from braintumor_ray.scoring.plan import Plan


@dataclass(frozen=True)
class Summary:
    """Figures of one run.

    Attributes:
        generation: its number; None where there was nothing to score.
        scans: rows committed by this generation, `resumed` of them by an interrupted attempt.
        known: scans of the source that earlier generations had scored.
        status, classes, reasons: counts; classes of ok rows, reasons of the others.
        mean_entropy: over ok rows, None where there are none.
        out_of_domain: ok rows flagged.
        seconds, scans_per_s: of this run, start of the pipeline included.
        model_scans_per_s: while predicting, one predictor; what the model alone could do here.
        share_of_model_speed: scans_per_s / model_scans_per_s.
        bytes: of the generation's Parquet files.
    """

    generation: int | None
    scans: int
    resumed: int
    known: int
    status: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    mean_entropy: float | None = None
    out_of_domain: int = 0
    seconds: float = 0.0
    scans_per_s: float = 0.0
    model_scans_per_s: float = 0.0
    share_of_model_speed: float | None = None

    @property
    def quarantine_fraction(self) -> float:
        """Quarantined rows over all rows of this generation; 0 where there are none."""
        return self.status.get("quarantined", 0) / self.scans if self.scans else 0.0


def summarize(
    plan: Plan,
    tables: Sequence[pa.Table],
    location: str | None,
    seconds: float,
    model_scans_per_s: float,
) -> Summary:
    """Count a generation's rows (columns status, reason, predicted_class, entropy, ...)."""
    if location is None:
        return Summary(None, 0, 0, plan.known)
    rows = pa.concat_tables(tables)
    fresh = rows.num_rows - plan.resumed
    speed = fresh / seconds if seconds else 0.0
    return Summary(
        generation=plan.generation.number,
        scans=rows.num_rows,
        resumed=plan.resumed,
        known=plan.known,
        status=_counts(rows["status"]),
        classes=_counts(rows["predicted_class"]),
        reasons=_counts(rows["reason"]),
        mean_entropy=pc.mean(rows["entropy"]).as_py(),
        out_of_domain=pc.sum(rows["out_of_domain"]).as_py() or 0,
        seconds=seconds,
        scans_per_s=speed,
        model_scans_per_s=model_scans_per_s,
        share_of_model_speed=speed / model_scans_per_s if model_scans_per_s and fresh else None,
    )


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    """Values that are not null, most frequent first."""
    pairs = [(item["values"], item["counts"]) for item in pc.value_counts(column).to_pylist()]
    return dict(sorted((p for p in pairs if p[0] is not None), key=lambda pair: -pair[1]))
