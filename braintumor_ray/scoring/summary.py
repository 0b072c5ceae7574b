"""The figures of a run."""

import math
from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from braintumor_ray.catalog.schema import PATIENT_COLUMNS, patients_of
from braintumor_ray.choices import EngineName
from braintumor_ray.models.bundle import DOMAIN_COORDINATES, Bundle
from braintumor_ray.predict.shift import Shift, ShiftStatistics
from braintumor_ray.scoring.plan import ScorePlan


@dataclass(frozen=True)
class Summary:
    """Figures of one run.

    Attributes:
        generation: its number; None where there was nothing to score.
        scans: rows committed by this generation, `resumed` of them by an interrupted attempt.
        known: scans of the source that earlier generations had scored.
        backlog: new scans of the source that `limit` left for later runs.
        status, classes, reasons: counts; classes of ok rows, reasons of the others.
        mean_entropy, entropy_deviation: over ok rows, 0 to 1; None where there are none.
        out_of_domain: ok rows flagged.
        shift: how far the ok rows as a whole are from the training scans, see
            `predict.shift.Shift`; None: a bundle of an earlier version, or too few scans.
        seconds, scans_per_s: of this run, start of the pipeline included.
        model_scans_per_s: while predicting, one predictor; what the model alone could do here.
        share_of_model_speed: scans_per_s / model_scans_per_s.
        engine, precision: of the predictors; no precision: each chose its own (an earlier folder).
        engine_scans_per_s: what 'auto' has measured, by engine.
    """

    generation: int | None
    scans: int
    resumed: int
    known: int
    status: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    mean_entropy: float | None = None
    entropy_deviation: float | None = None
    out_of_domain: int = 0
    shift: Shift | None = None
    seconds: float = 0.0
    scans_per_s: float = 0.0
    model_scans_per_s: float = 0.0
    share_of_model_speed: float | None = None
    engine: EngineName = "torch"
    precision: str | None = None
    engine_scans_per_s: dict[str, float] = field(default_factory=dict)
    backlog: int = 0

    @property
    def quarantine_fraction(self) -> float:
        """Quarantined rows over all rows of this generation; 0 where there are none."""
        return self.status.get("quarantined", 0) / self.scans if self.scans else 0.0


_COLUMNS = ["status", "reason", "predicted_class", "entropy", "out_of_domain"]
_SHIFT_COLUMNS = [DOMAIN_COORDINATES, "decision", *PATIENT_COLUMNS]


class RowStatistics:
    """Counts the rows of a generation, a table at a time.

    Args:
        bundle: that scored them.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._archive = bundle.archive
        self._shift = ShiftStatistics()
        self.scans = self.out_of_domain = 0
        self.status, self.classes, self.reasons = Counter[str](), Counter[str](), Counter[str]()
        self._scored, self._sum, self._squares = 0, 0.0, 0.0

    @property
    def columns(self) -> list[str]:
        """What `add` must be given."""
        return _COLUMNS + (_SHIFT_COLUMNS if self._archive is not None else [])

    def add(self, rows: pa.Table) -> None:
        """Count rows."""
        self.scans += rows.num_rows
        self.out_of_domain += pc.sum(rows["out_of_domain"]).as_py() or 0
        self.status.update(_counts(rows["status"]))
        self.classes.update(_counts(rows["predicted_class"]))
        self.reasons.update(_counts(rows["reason"]))
        entropy = rows["entropy"].drop_null().to_numpy().astype(float)
        self._scored += len(entropy)
        self._sum += float(entropy.sum())
        self._squares += float((entropy**2).sum())
        if self._archive is not None:
            ok = rows.filter(rows[DOMAIN_COORDINATES].is_valid())
            flat = pc.list_flatten(ok[DOMAIN_COORDINATES]).to_numpy()
            self._shift.add(
                flat.reshape(ok.num_rows, len(self._archive.scale)),
                ok["decision"].to_numpy(),
                patients_of(ok),
            )

    @property
    def shift(self) -> Shift | None:
        """Of the ok rows as a whole."""
        return self._shift.shift(self._archive.scans) if self._archive is not None else None

    @property
    def entropy(self) -> tuple[float | None, float | None]:
        """Mean and standard deviation."""
        if not self._scored:
            return None, None
        mean = self._sum / self._scored
        return mean, math.sqrt(max(0.0, self._squares / self._scored - mean**2))


def nothing_new(plan: ScorePlan) -> Summary:
    """Of a run that had nothing to score."""
    return Summary(None, 0, 0, plan.known, backlog=plan.backlog)


def summarize(
    plan: ScorePlan, statistics: RowStatistics, seconds: float, model_scans_per_s: float
) -> Summary:
    """The figures of a run whose rows are counted."""
    fresh = statistics.scans - plan.resumed
    speed = fresh / seconds if seconds else 0.0
    mean, deviation = statistics.entropy
    return Summary(
        generation=plan.generation.number,
        scans=statistics.scans,
        resumed=plan.resumed,
        known=plan.known,
        backlog=plan.backlog,
        status=dict(statistics.status.most_common()),
        classes=dict(statistics.classes.most_common()),
        reasons=dict(statistics.reasons.most_common()),
        mean_entropy=mean,
        entropy_deviation=deviation,
        out_of_domain=statistics.out_of_domain,
        shift=statistics.shift,
        seconds=seconds,
        scans_per_s=speed,
        model_scans_per_s=model_scans_per_s,
        share_of_model_speed=speed / model_scans_per_s if model_scans_per_s and fresh else None,
    )


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs that is not null."""
    found = pc.value_counts(column.drop_null()).to_pylist()
    return {item["values"]: item["counts"] for item in found}
