"""The project's exceptions: each message names the value, the cause and the way out."""

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

# Ray Data 2.60 puts a remark about retries where an OSError has the name of its file.
_RAYS_REMARK = ": 'Failed to apply UDF"

# Where Ray keeps what was raised in another process: of a task, a controller, a training worker.
_REMOTE_CAUSES = ("cause", "controller_failure", "_base_exc")


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


def lacks_space(error: BaseException) -> bool:
    """Whether a disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in _NO_SPACE


def describe_validation(error: "ValidationError") -> str:
    """A pydantic error as one line: field, what is wrong, the value."""
    parts = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"])
        parts.append(f"{field or 'recipe'}: {item['msg']} (got {item['input']!r:.80})")
    return "; ".join(parts)


def root_cause(error: BaseException) -> str:
    """The innermost cause of an error on one line: its type and the first line of its text."""
    error = innermost(error)
    text, name = first_line(error), type(error).__name__
    return text if text.startswith(name) or "Traceback" in str(error) else f"{name}: {text}"


def first_line(error: BaseException) -> str:
    """What an error says, on one line; the type's name where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # The text of an error that crossed processes is a traceback: the error is its last line.
    text = lines[-1] if "Traceback" in str(error) else lines[0]
    return text.split(_RAYS_REMARK)[0]


def innermost(error: BaseException) -> BaseException:
    """The error at the end of the chain of causes, also of those that came from other processes.

    The project's own errors are ends: they say everything.
    """
    seen = {id(error)}
    while (inner := _inner(error)) is not None and id(inner) not in seen:
        seen.add(id(inner))
        error = inner
    return error


def _inner(error: BaseException) -> BaseException | None:
    causes = [getattr(error, name, None) for name in _REMOTE_CAUSES]
    causes += getattr(error, "worker_failures", {}).values()
    if not isinstance(error, BrainTumorError):
        causes.append(error.__cause__)
    # Ray adds causes without text, which only mark where an error came from.
    return next((c for c in causes if isinstance(c, BaseException) and str(c)), None)
