"""The documents say what the program does."""

import re
from pathlib import Path

import typer.main

from braintumor_ray.cli import app
from braintumor_ray.predict.schema import OPTIONAL_FIELDS, result_schema

PROJECT = Path(__file__).resolve().parent.parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")
CONTRACT = (PROJECT / "docs" / "data-contract.md").read_text(encoding="utf-8")


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 160


def test_the_readme_lists_every_command():
    for name in typer.main.get_command(app).commands:
        assert re.search(rf"^\| `{name}[ `]", README, re.MULTILINE), name


def test_links_lead_somewhere():
    elsewhere = [*(PROJECT / "docs").rglob("*.md"), PROJECT / "cluster" / "README.md"]
    for document in [PROJECT / "README.md", *elsewhere]:
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_the_contract_lists_every_column():
    for field in result_schema((7, 7), ("gradcam", "gradcam_pp"), [*OPTIONAL_FIELDS]):
        assert f"`{field.name}`" in CONTRACT, field.name


def test_research_software_is_said_to_be_so():
    for text in (README, app.info.help):
        assert "not a medical device" in text
