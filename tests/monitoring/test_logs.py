"""Logs as JSON: of this process, of what libraries print, of workers; nobody is named."""

import io
import json
import logging
import sys
import warnings

import pytest
import typer
from typer.testing import CliRunner

from braintumor_ray.cli.console import log, short_errors
from braintumor_ray.errors import GateError
from braintumor_ray.monitoring.logs import json_logs, log_as_worker, without_paths


@pytest.fixture
def lines(capsys):
    """What is written on stderr, as a list of objects."""
    return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_for_people_becomes_a_record(lines):
    with json_logs(True):
        log("warning: the disk is nearly full", {"free": 3})
    (record,) = lines()
    assert (record["level"], record["message"]) == ("WARNING", "the disk is nearly full")
    assert record["fields"] == {"free": 3}
    assert record["logger"] == "braintumor_ray.console"
    assert record["run_id"]


def test_what_libraries_print_and_log_are_records(lines):
    with json_logs(True):
        print("one\ntwo", file=sys.stderr)
        logging.getLogger("other.library").warning("three %d", 3)
    assert [record["message"] for record in lines()] == ["one", "two", "three 3"]


def test_afterwards_all_is_as_before(lines):
    before = sys.stderr, logging.getLogger().handlers[:], warnings.showwarning
    with json_logs(True):
        assert sys.stderr is not before[0]
    assert (sys.stderr, logging.getLogger().handlers[:], warnings.showwarning) == before


def test_records_of_workers_pass_and_their_other_lines_do_not(lines):
    with json_logs(True):
        own = io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            handlers, shown = logging.getLogger().handlers[:], warnings.showwarning
            patch.setattr(sys, "stderr", own)
            log_as_worker()
            logging.getLogger("braintumor_ray.worker").warning("a remark")
            logging.getLogger().handlers[:], warnings.showwarning = handlers, shown
        prefix = "\x1b[36m(MapWorker(MapBatches(PredictStage)) pid=12, ip=10.0.0.3)\x1b[0m "
        print(prefix + own.getvalue().strip(), file=sys.stderr)
        print(prefix + "Traceback of /archive/DOE^JOHN.dcm", file=sys.stderr)
        print("\x1b[33m(raylet)\x1b[0m [2026-11-26 I 1] a remark of Ray's core", file=sys.stderr)
    (record,) = lines()
    assert (record["logger"], record["message"]) == ("braintumor_ray.worker", "a remark")


@pytest.mark.parametrize(
    "text",
    [
        "cannot read '/archive/DOE^JOHN/1.dcm'; mend it",
        "cannot read 'archive/DOE JOHN/1.dcm'",
        "file s3://archive/DOE/1.dcm changed",
        "stopped: [Errno 2] No such file: /archive/DOE/x",
        'File "/archive/DOE/x.py", line 3',
        "uri=/archive/DOE/1.dcm",
        "(file:///archive/DOE/1.dcm)",
    ],
)
def test_paths_are_hidden(text):
    assert "DOE" not in without_paths(text)
    assert "[path]" in without_paths(text)


def test_known_places_and_ordinary_words_are_shown():
    text = "scoring into '/data/results' stopped: 12/20 done at 3.5 scans/s and/or so"
    assert without_paths(text, ["/data/results"]) == text
    assert "[path]" in without_paths("'/data/results-of-DOE'", ["/data/results"])


def test_a_librarys_warning_is_a_record_without_its_text(lines):
    with json_logs(True):
        warnings.showwarning(UserWarning("PatientName DOE^JOHN"), UserWarning, "/x/pydicom.py", 7)
    (record,) = lines()
    assert record["message"] == "UserWarning in pydicom.py:7"


def command(failure):
    app = typer.Typer()

    @app.command()
    @short_errors
    def run() -> None:
        """Fails."""
        raise failure

    return app


def test_errors_keep_their_exit_code_and_are_one_record():
    found = CliRunner().invoke(command(GateError("2 gates not met")), ["--log-json"])
    (line,) = found.stderr.splitlines()
    assert found.exit_code == 3
    assert json.loads(line)["level"] == "ERROR"
    assert json.loads(line)["message"] == "2 gates not met"


def test_an_unexpected_failure_tells_its_place_and_not_its_text():
    found = CliRunner().invoke(command(KeyError("DOE^JOHN")), ["--log-json"])
    (line,) = found.stderr.splitlines()
    assert found.exit_code == 1
    assert "KeyError at" in json.loads(line)["message"]
    assert "DOE" not in line


def test_without_the_option_nothing_changes():
    found = CliRunner().invoke(command(GateError("2 gates not met")), [])
    assert found.stderr == "error: 2 gates not met\n"
