"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans, or a skip that says why."""
    folder = Path(os.environ.get("BRAINTUMOR_DATA", PROJECT.parent / "shared" / "data"))
    if not (folder / "mri4").is_dir():
        pytest.skip(f"real scans not found at {folder}; set BRAINTUMOR_DATA")
    return folder
