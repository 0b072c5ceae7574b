"""A command's run in MLflow: parameters, figures while they come, files, the bundle as a model.

Before the work starts a fault of the tracking server is an error. Afterwards it is a warning: what
was trained or measured is in its folder, and figures are sent again with the next ones.
"""

import math
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from braintumor_ray import __version__
from braintumor_ray.errors import TrackingError, first_line
from braintumor_ray.extras import require
from braintumor_ray.models.bundle import copy_bundle
from braintumor_ray.progress import Log
from braintumor_ray.storage import (
    Folder,
    is_local,
    is_uri,
    local_path,
    read_bytes,
    without_password,
)
from braintumor_ray.tracking.options import TrackingOptions

NOTE = "mlflow.json"  # in the folder of a run: an interrupted run goes on in MLflow, too
MODEL = Path(__file__).with_name("model.py")
BATCH, PARAMETERS = 1000, 100  # MLflow's limits of one request
LONGEST = 500  # characters of a parameter, in MLflow's early versions
CHECK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
# Set where the user has not: MLflow 3.13 and later ask for the first one before they use a folder.
DEFAULTS = {
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_PLAIN_NAMES = ("databricks", "databricks-uc", "uc")  # tracking URIs without a scheme
_ODD = re.compile(r"[^\w\-. /]")


class Run:
    """What a command logs of its work; this one is tracked nowhere."""

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Settings, nested or not."""

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """An entry of the training history; `fold` is which fold it belongs to."""

    def figures(self, values: Mapping[str, Any]) -> None:
        """Final figures, nested or not; what is no number is left out."""

    def files(self, location: str, names: Iterable[str]) -> None:
        """Files of a folder or URI; one that is not there is left out."""

    def bundle(self, location: str, name: str) -> None:
        """The bundle, registered as a model of that name."""

    def tags(self, values: Mapping[str, str]) -> None:
        """What runs are found by."""


@contextmanager
def tracked(
    options: TrackingOptions, name: str, log: Log, resumed_in: str | Path | None = None
) -> Iterator[Run]:
    """A run in MLflow for as long as the block lasts; it ends as finished, failed or killed.

    Args:
        options: where; without a URI nothing is tracked.
        name: of the run.
        log: takes a line for people.
        resumed_in: folder or URI that remembers the run, so that an interrupted one goes on.

    Raises:
        TrackingError: the server does not answer, or refuses the run.
        UsageError: MLflow is not installed.
    """
    if options.mlflow is None:
        yield Run()
        return
    run = _started(options.mlflow, options.mlflow_experiment, name, log, resumed_in)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        run.end(status)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by points; lists are values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{_ODD.sub('_', str(key))}"
        if isinstance(value, Mapping):
            found |= flattened(value, f"{name}.")
        else:
            found[name] = value
    return found


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among nested values, by their flat names."""
    return {
        name: float(value)
        for name, value in flattened(values).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


class MlflowRun(Run):
    """A run of a tracking server; faults of the server are logged once and end nothing."""

    def __init__(self, mlflow: ModuleType, client: Any, run_id: str, log: Log) -> None:  # noqa: ANN401
        self._mlflow, self._client, self.run_id, self._log = mlflow, client, run_id, log
        self._waiting: list[Any] = []

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Settings; those that a resumed run has already keep their values."""
        with self._kept("parameters"):
            known = self._client.get_run(self.run_id).data.params
            param = self._mlflow.entities.Param
            new = {k: v for k, v in flattened(values).items() if k not in known}
            made = [param(key, str(value)[:LONGEST]) for key, value in new.items()]
            for start in range(0, len(made), PARAMETERS):
                self._client.log_batch(self.run_id, params=made[start : start + PARAMETERS])

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """Every number of an epoch, at that step."""
        prefix = f"fold-{entry['fold']}/" if "fold" in entry else ""
        shown = {k: v for k, v in entry.items() if k not in ("epoch", "fold")}
        found = {f"{prefix}{name}": value for name, value in numbers(shown).items()}
        self._send(found, int(entry["epoch"]), f"epoch {entry['epoch']}")

    def figures(self, values: Mapping[str, Any]) -> None:
        """Final figures, at step 0."""
        self._send(numbers(values), 0, "final figures")

    def files(self, location: str, names: Iterable[str]) -> None:
        """Files as artifacts of the run."""
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                try:
                    data = read_bytes(f"{location.rstrip('/')}/{name}")
                except FileNotFoundError:
                    continue
                copy = Path(folder) / Path(name).name
                copy.write_bytes(data)
                with self._kept(copy.name):
                    self._client.log_artifact(self.run_id, str(copy))

    def bundle(self, location: str, name: str) -> None:
        """The bundle with the predictor as a registered model."""
        signature = self._mlflow.models.ModelSignature(
            params=self._mlflow.types.ParamSchema(
                [self._mlflow.types.ParamSpec("explain", "boolean", True)]
            )
        )
        with tempfile.TemporaryDirectory() as folder, self._kept("the bundle as a model"):
            copy_bundle(location, Path(folder))
            with self._mlflow.start_run(run_id=self.run_id):
                self._mlflow.pyfunc.log_model(
                    name="bundle",
                    python_model=str(MODEL),
                    artifacts={"bundle": folder},
                    registered_model_name=_ODD.sub("_", name).replace("/", "_"),
                    pip_requirements=[f"braintumor-ray=={__version__}"],
                    signature=signature,
                )

    def tags(self, values: Mapping[str, str]) -> None:
        """Tags of the run."""
        with self._kept("tags"):
            for key, value in values.items():
                self._client.set_tag(self.run_id, key, value)

    def end(self, status: str) -> None:
        """Send what waits, and end the run as FINISHED, FAILED or KILLED."""
        self._send({}, 0, "figures")
        with self._kept("the end of the run"):
            self._client.set_terminated(self.run_id, status)

    def _send(self, found: Mapping[str, float], step: int, what: str) -> None:
        now = int(time.time() * 1000)
        metric = self._mlflow.entities.Metric
        self._waiting += [metric(key, value, now, step) for key, value in found.items()]
        with self._kept(what):
            while self._waiting:
                self._client.log_batch(self.run_id, metrics=self._waiting[:BATCH])
                del self._waiting[:BATCH]

    @contextmanager
    def _kept(self, what: str) -> Iterator[None]:
        """A fault of the server does not end the work; it is logged."""
        try:
            yield
        except (self._mlflow.exceptions.MlflowException, OSError) as error:
            self._log(f"warning: MLflow does not take {what}: {_short(error)}")


def _started(
    location: str, experiment: str, name: str, log: Log, resumed_in: str | Path | None
) -> MlflowRun:
    """Connect, and start a run or go on with the one that a folder remembers."""
    for key, value in DEFAULTS.items():
        os.environ.setdefault(key, value)
    mlflow = require("mlflow")
    require("mlflow.pyfunc")
    uri, shown = _tracking_uri(location), without_password(location)
    folder = None if resumed_in is None else Folder(str(resumed_in).rstrip("/"))
    try:
        with _environment(CHECK):
            mlflow.set_tracking_uri(uri)
            client = mlflow.MlflowClient(uri)
            run_id = _remembered(mlflow, client, folder, shown) or _new_run(
                client, experiment, name
            )
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise TrackingError(
            f"--mlflow '{shown}' does not work: {_short(error)}; start the server, correct the "
            "address, or leave the option out"
        ) from error
    if folder is not None:
        folder.write_json({"tracking_uri": shown, "run_id": run_id}, NOTE)
    log(f"MLflow: run {run_id} in experiment '{experiment}' at {shown}")
    return MlflowRun(mlflow, client, run_id, log)


def _new_run(client: Any, experiment: str, name: str) -> str:  # noqa: ANN401 - no stubs
    found = client.get_experiment_by_name(experiment)
    where = found.experiment_id if found else client.create_experiment(experiment)
    return str(client.create_run(where, run_name=name).info.run_id)


def _remembered(
    mlflow: ModuleType,
    client: Any,  # noqa: ANN401 - no stubs
    folder: Folder | None,
    shown: str,
) -> str | None:
    """The run that the folder remembers, running again; None: there is none, or it was deleted."""
    if folder is None or NOTE not in folder.names():
        return None
    note = folder.read_json(NOTE)
    if note["tracking_uri"] != shown:
        return None
    try:
        client.update_run(note["run_id"], status="RUNNING")
    except mlflow.exceptions.MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return str(note["run_id"])


def _tracking_uri(location: str) -> str:
    """As MLflow takes it; a folder by its absolute path."""
    if location in _PLAIN_NAMES or (is_uri(location) and not is_local(location)):
        return location
    return local_path(location).resolve().as_uri()


def _short(error: BaseException) -> str:
    """What an error says, on one line without credentials."""
    return without_password(first_line(error))[:300].rstrip(".")


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the length of the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
