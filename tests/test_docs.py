"""The documents say what the program does."""

import re
from pathlib import Path

import duckdb
import pytest
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


@pytest.mark.ray
def test_the_readmes_query_runs(tmp_path, bundle_path, cluster, monkeypatch):
    from braintumor_ray.catalog.build import load_catalog
    from braintumor_ray.scoring.job import ScoreOptions, score
    from braintumor_ray.scoring.options import PredictSettings
    from tests.builders import write_archive

    write_archive(tmp_path / "archive", 8)
    catalog = load_catalog(tmp_path / "archive")
    score(catalog, str(tmp_path / "results"), ScoreOptions(PredictSettings(str(bundle_path))))
    monkeypatch.chdir(tmp_path)
    (query,) = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
    connection = duckdb.connect()
    for statement in re.sub(r"--.*", "", query).strip().rstrip(";").split(";"):
        rows = connection.sql(statement)
    assert sum(row[1] for row in rows.fetchall()) == 8
