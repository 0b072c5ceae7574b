"""Does an archive as a whole differ from what a bundle was trained and validated on?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.special import chdtri

if TYPE_CHECKING:  # it imports torch, which readers of results do without
    from braintumor_ray.models.domain import ArchiveReference

LEAST_SCANS = 20
CHANCE = 1e-3  # of an alarm where nothing but chance is at work
_KEPT_PATIENTS = 100_000  # beyond them the limit no longer depends on how many there are
# What other scans of the same hospitals differ by, in standard deviations: measured on the test
# splits of a public set, whose scans come from several sources.
USUAL = 0.1


@dataclass(frozen=True)
class Shift:
    """The distance of an archive.

    Attributes:
        scans: that were compared.
        independent: of them; slices of one patient are alike and count as one.
        distance: of the mean scan, in standard deviations of the known scans (root mean square
            over the coordinates).
        limit: what chance and usual differences explain.
        differs: the distance is above the limit.
    """

    scans: int
    independent: int
    distance: float
    limit: float
    differs: bool

    @classmethod
    def of_run(cls, summary: Mapping[str, Any]) -> "Shift | None":
        """As a run's summary holds it; None in those of earlier versions, or of too few scans."""
        found = summary.get("shift")
        return cls(**found) if found else None

    def sentence(self) -> str:
        """The message for people, without a full stop."""
        if not self.differs:
            return f"scans look as in training (distance {self.distance:.2f} of {self.limit:.2f})"
        return (
            f"these {self.scans} scans differ from those that the bundle was trained on "
            f"(distance {self.distance:.2f}, limit {self.limit:.2f}): its sensitivity, specificity "
            "and probabilities may not hold here; check with 'validate' on labeled scans"
        )


@dataclass
class ShiftStatistics:
    """Adds up coordinates, a batch at a time; memory does not grow.

    Attributes:
        counts: scans decided negative, and positive.
        total: sum of their coordinates (r,); None before the first scan.
        independent: patients; a scan without a patient is one of its own.
    """

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, np.int64))
    total: npt.NDArray[np.float64] | None = None
    independent: int = 0
    _patients: set[str] = field(default_factory=set)

    def add(
        self,
        coordinates: npt.NDArray[np.floating],
        positive: npt.NDArray[np.bool_],
        patients: Sequence[str | None],
    ) -> None:
        """Count scans: coordinates (n, r), decisions (n,), and keys of their patients."""
        if not len(coordinates):
            return
        added = np.asarray(coordinates, np.float64).sum(axis=0)
        self.total = added if self.total is None else self.total + added
        self.counts += np.bincount(positive.astype(int), minlength=2)
        for patient in patients:
            self.independent += patient not in self._patients
            if patient is not None and len(self._patients) < _KEPT_PATIENTS:
                self._patients.add(patient)

    def shift(self, reference_scans: npt.NDArray[np.int64]) -> Shift | None:
        """The distance; None for fewer than `LEAST_SCANS` independent scans.

        Args:
            reference_scans: `ArchiveReference.scans`; few of them leave its centers uncertain.
        """
        if self.total is None or self.independent < LEAST_SCANS:
            return None
        scans = int(self.counts.sum())
        mean = self.total / scans
        shares = self.counts / scans
        variance = 1 / self.independent + float((shares**2 / reference_scans).sum())
        # The mean square of r standard normal coordinates is a chi square over r.
        chance = variance * float(chdtri(len(mean), CHANCE)) / len(mean)
        distance, limit = float(np.sqrt((mean**2).mean())), float(np.sqrt(USUAL**2 + chance))
        return Shift(scans, self.independent, distance, limit, distance > limit)


def shift_of(
    reference: "ArchiveReference",
    coordinates: npt.NDArray[np.floating],
    positive: npt.NDArray[np.bool_],
    patients: Sequence[Any],
) -> Shift | None:
    """The shift of scans that are all at hand; arguments as for `ShiftStatistics`."""
    statistics = ShiftStatistics()
    statistics.add(coordinates, positive, patients)
    return statistics.shift(reference.scans)
