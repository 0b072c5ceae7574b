"""The pins of `constraints.txt`, against what the pinned packages say of themselves."""

from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
OLDEST = "3.10"  # README: "Only Python 3.10 or newer is needed"


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def takes(package, python):
    try:
        wanted = metadata(package)["Requires-Python"]
    except PackageNotFoundError:  # of an extra, or of another system
        return True
    return SpecifierSet(wanted or "").contains(python)


def test_the_oldest_python_is_the_one_of_the_package():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'requires-python = ">={OLDEST}"' in text


def test_a_pin_that_the_oldest_python_cannot_install_is_not_for_it():
    """pip refuses the whole installation for one such pin, whoever asks for the package."""
    for_oldest = [
        pin for pin in pins() if not pin.marker or pin.marker.evaluate({"python_version": OLDEST})
    ]
    assert [pin.name for pin in for_oldest if not takes(pin.name, f"{OLDEST}.99")] == []
