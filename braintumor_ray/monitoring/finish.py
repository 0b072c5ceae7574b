"""The end of a run, reported to a command or a webhook; nothing here changes how the run ended."""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from braintumor_ray.errors import GateError, UsageError
from braintumor_ray.monitoring.options import command_words, is_webhook
from braintumor_ray.progress import Log

TRIES = 3
WEBHOOK_TIMEOUT_S = 10.0
PAUSE_S = 1.0  # before the second try; twice as long before the third
COMMAND_TIMEOUT_S = 300.0
OUTCOMES = {0: "done", UsageError.exit_code: "usage", GateError.exit_code: "gate not met"}


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended.

    Attributes:
        command: 'score' or 'nightly'.
        run_id: of this process; also in its logs.
        results: label of the results folder.
        started, finished: seconds since 1970.
        exit_code: of the command.
        error: why it is not 0; without paths of scans.
        summary: what the command prints with `--json`; None: it did not come so far.
    """

    command: str
    run_id: str
    results: str
    started: float
    finished: float
    exit_code: int
    error: str | None = None
    summary: Mapping[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """What is reported, as plain values."""
        return {
            "command": self.command,
            "run_id": self.run_id,
            "results": self.results,
            "started_at": _as_text(self.started),
            "finished_at": _as_text(self.finished),
            "exit_code": self.exit_code,
            "outcome": OUTCOMES.get(self.exit_code, "failed"),
            "error": self.error,
            "summary": self.summary,
        }


def notify(target: str, run: FinishedRun, log: Log) -> None:
    """Give the summary to a command or a webhook; what goes wrong is one warning.

    Args:
        target: `--on-finish`.
        run: what is reported.
        log: takes lines for people.
    """
    body = json.dumps(run.document(), default=str).encode()
    try:
        if is_webhook(target):
            _post(target, body)
        else:
            _run(target, body, run, log)
    except (OSError, subprocess.SubprocessError) as error:
        log(f"warning: --on-finish {_named(target)}: {_cause(error)}; the run itself is unchanged")


def _run(target: str, body: bytes, run: FinishedRun, log: Log) -> None:
    own = {"BRAINTUMOR_EXIT_CODE": str(run.exit_code), "BRAINTUMOR_RUN_ID": run.run_id}
    done = subprocess.run(
        command_words(target),
        input=body,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | own,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    for line in done.stdout.decode("utf-8", "replace").splitlines():  # ours are the results
        log(line)
    done.check_returncode()


class _NotRedirected(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer: urllib would follow it by a GET, and nobody were told."""

    def redirect_request(self, *_: Any) -> None:  # noqa: ANN401 - as urllib has it
        """Nowhere else."""


def _post(url: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    opener = urllib.request.build_opener(_NotRedirected)
    for attempt in range(TRIES):
        try:
            request = urllib.request.Request(url, body, headers)
            with opener.open(request, timeout=WEBHOOK_TIMEOUT_S):
                return
        except (OSError, ValueError, HTTPException) as error:
            if attempt == TRIES - 1 or not _may_pass(error):
                raise OSError(_cause(error)) from error
        time.sleep(PAUSE_S * 2**attempt)


def _may_pass(error: Exception) -> bool:
    """Whether another try may help: not where the server has refused the request as such."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code in (408, 429)
    return not isinstance(error, ValueError)  # no address


def _cause(error: Exception) -> str:
    """Without the address, which is often a secret itself."""
    if isinstance(error, urllib.error.HTTPError):
        return f"answered {error.code}"
    if isinstance(error, HTTPException):
        return f"no answer in HTTP ({type(error).__name__})"
    if isinstance(error, subprocess.CalledProcessError):
        return f"ended with {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"not done after {error.timeout:.0f} s"
    return str(getattr(error, "reason", error) or type(error).__name__)


def _named(target: str) -> str:
    if is_webhook(target):
        return f"{urlsplit(target).hostname}"
    return f"'{command_words(target)[0]}'"


def _as_text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
