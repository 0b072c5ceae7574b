"""The job files are thin, and are the commands of the command line."""

import subprocess
import sys
from pathlib import Path

import pytest

JOBS = Path(__file__).resolve().parents[2] / "jobs"
COMMANDS = {"train.py": "train", "evaluate.py": "evaluate", "score_archive.py": "nightly"}


def test_there_are_these_and_no_others():
    assert {path.name for path in JOBS.glob("*.py")} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_job_is_thin(name):
    assert len((JOBS / name).read_text(encoding="utf-8").splitlines()) <= 30


@pytest.mark.parametrize(("name", "command"), COMMANDS.items())
def test_a_job_takes_what_its_command_takes(name, command):
    done = subprocess.run(
        [sys.executable, str(JOBS / name), "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=JOBS.parent,
        timeout=60,
    )
    assert f" {command} " in done.stdout.partition("[OPTIONS]")[0]


def test_a_mistake_is_one_line_and_exit_code_1(tmp_path):
    done = subprocess.run(
        [sys.executable, str(JOBS / "score_archive.py"), "x", "-b", "nowhere", "-o", "r"],
        capture_output=True,
        text=True,
        check=False,
        cwd=JOBS.parent,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: 'nowhere' is not a bundle")
