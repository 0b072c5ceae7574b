"""What `make` does on a machine with only Python."""

import shutil
import subprocess
import venv

import pytest

from tests.command import PROJECT


@pytest.mark.skipif(not shutil.which("make"), reason="make is absent")
def test_an_environment_without_pip_is_made_again(tmp_path):
    """Debian without python3-venv leaves one, as does Ctrl-C; to install into it fails for ever."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(PROJECT / name, tmp_path)
    venv.create(tmp_path / ".venv", with_pip=False)
    command = ["make", "--silent", "demo", "PYTHON=echo made again:; false"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("made again:")
