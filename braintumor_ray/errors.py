"""The project's exceptions: each message names the value, the cause and the way out."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class BrainTumorError(ValueError):
    """Something the user can mend; the command line prints it as one line and exits 1."""

    exit_code = 1


class UsageError(BrainTumorError):
    """An argument, option or recipe field that is not valid; exits 2."""

    exit_code = 2


class StartError(BrainTumorError):
    """Something that the work needs does not start on this machine."""


class GateError(BrainTumorError):
    """A check was not passed (leaky split, too many unreadable scans, verify differs); exits 3."""

    exit_code = 3


class CatalogError(BrainTumorError):
    """A folder, CSV or catalog that cannot be turned into rows, one per scan."""


class BundleError(BrainTumorError):
    """A bundle directory that is missing, incomplete or inconsistent."""


class WeightsError(BrainTumorError):
    """Pretrained weights that cannot be had or do not fit the model."""


class ResultsError(BrainTumorError):
    """A folder held by another run; results that are missing or belong to another bundle."""


class PublishError(BrainTumorError):
    """Scans that cannot become DICOM objects, or a server that does not take them."""


class ServerError(BrainTumorError):
    """A DICOMweb server that is down, refuses access or is none."""


class TrainingError(BrainTumorError):
    """A training run that cannot start, or that must not be repeated under the same name."""


class TrackingError(BrainTumorError):
    """A tracking server that does not answer, or a run that it does not take."""


class MetricsError(BrainTumorError):
    """Labels, probabilities or groups from which no metric can be computed."""


def describe_validation(error: "ValidationError") -> str:
    """A pydantic error as one line: field, what is wrong, the value."""
    parts = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"])
        parts.append(f"{field or 'recipe'}: {item['msg']} (got {item['input']!r:.80})")
    return "; ".join(parts)
