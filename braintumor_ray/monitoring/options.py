"""What a command reports to its operators; see docs/monitoring.md."""

import re
import shlex
from dataclasses import dataclass, field
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

from braintumor_ray.errors import UsageError
from braintumor_ray.options import Option

PANEL = "Monitoring"


def is_webhook(target: str) -> bool:
    """Whether the target of `--on-finish` is an address; else it is a command."""
    return target.startswith(("http://", "https://"))


def check_target(text: str) -> str:
    """A target of `--on-finish`, checked before there is anything to report.

    Raises:
        UsageError: it is neither a command nor an address that a request can be sent to.
    """
    if not is_webhook(text):
        command_words(text)
    elif not _is_address(text):  # which may be a secret
        raise UsageError("--on-finish: the address of the webhook is not valid; encode its blanks")
    return text


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0 and not re.search(r"[\x00-\x20\x7f]", url)
    except ValueError:
        return False


def command_words(text: str) -> list[str]:
    """A command as program and arguments; no shell reads it.

    Raises:
        UsageError: a quotation mark is not closed, or there is no word in it.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--on-finish '{text}' cannot be split into words: {error}") from error
    if not words:
        raise UsageError("--on-finish is empty; give a command or an http(s) address")
    return words


@dataclass(frozen=True)
class LiveMetrics:
    """Metrics while a command runs on a Ray of its own.

    Attributes:
        metrics_port: where this machine's Ray exports them; None: nowhere. A cluster
            exports them without this option.
    """

    PANEL: ClassVar = PANEL

    metrics_port: Annotated[
        int | None,
        Option("Of Prometheus metrics, where no cluster is used.", "PORT", least=1, most=65535),
    ] = None


@dataclass(frozen=True)
class RunReport:
    """What is reported of a run at its end, whatever the end is.

    Attributes:
        live: metrics meanwhile.
        metrics_file: figures of the run as Prometheus text, replaced at once.
        on_finish: command, or address of a webhook, that gets the summary.
    """

    PANEL: ClassVar = PANEL

    live: LiveMetrics = field(default_factory=LiveMetrics)
    metrics_file: Annotated[
        str | None,
        Option("Figures of the run, for node_exporter's textfile collector.", "FILE.prom"),
    ] = None
    on_finish: Annotated[
        str | None,
        Option(
            "Gets the summary as JSON at the end, failed or not.", "COMMAND|URL", parse=check_target
        ),
    ] = None
