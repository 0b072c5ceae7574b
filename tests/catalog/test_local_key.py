"""A key for ids is made on first use, is the user's alone, and is told apart from others."""

import json
import stat
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.identity import IdentityHash
from braintumor_ray.catalog.local_key import check_results, key_path, own_key
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.catalog.schema import write_catalog
from braintumor_ray.cli import app
from braintumor_ray.errors import CatalogError, UsageError
from braintumor_ray.scoring.scans import open_scans
from tests.builders import write_archive


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def table(tmp_path):
    write_archive(tmp_path / "archive", 4)
    names = sorted(p.relative_to(tmp_path) for p in (tmp_path / "archive").rglob("*.png"))
    lines = ["path,patient", *(f"{name},P{index}" for index, name in enumerate(names))]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return str(tmp_path / "table.csv")


def test_the_key_is_made_once_for_this_user_alone_and_said_in_one_line(capsys):
    first = own_key()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(key_path()) in said
    assert first.decode() not in said
    assert stat.S_IMODE(key_path().stat().st_mode) == 0o600
    assert own_key() == first
    assert len(first) == 64
    assert capsys.readouterr().err == ""


def test_an_empty_key_is_refused():
    own_key()
    key_path().write_text(" \n")
    with pytest.raises(UsageError, match="is empty"):
        own_key()


def test_ids_are_hashed_with_it_and_no_key_is_made_without_ids(table, tmp_path):
    options = CatalogOptions().with_own_key("local")
    assert load_catalog(tmp_path / "archive", options).num_rows == 4
    assert not key_path().exists()
    found = load_catalog(table, options)
    assert found["patient_key"][0].as_py() == IdentityHash(own_key())("P0")


@pytest.mark.parametrize(("output", "address"), [("s3://bucket/out", ""), ("local", "auto")])
def test_where_results_are_shared_a_key_must_be_given(table, output, address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(CatalogError, match="no key to hash them"):
        load_catalog(table, CatalogOptions().with_own_key(output))
    assert not key_path().exists()


def test_a_given_key_goes_before(table):
    options = CatalogOptions(identity=IdentityHash(b"ours")).with_own_key("local")
    assert load_catalog(table, options)["patient_key"][0].as_py() == IdentityHash(b"ours")("P0")
    assert not key_path().exists()


def test_a_catalog_and_results_refuse_another_key(table, tmp_path):
    ours = CatalogOptions(identity=IdentityHash(b"ours"))
    theirs = replace(ours, identity=IdentityHash(b"theirs"))
    path = str(tmp_path / "catalog.parquet")
    write_catalog(load_catalog(table, ours), path)
    for read in (load_catalog, open_scans):
        assert read(path, ours).num_rows == read(path).num_rows == 4
        with pytest.raises(CatalogError, match="hashed with another key"):
            read(path, theirs)

    results = str(tmp_path / "results")
    mine, other = (open_scans(table, options).key_check for options in (ours, theirs))
    assert mine == open_scans(path).key_check
    assert mine != other
    check_results(results, mine)
    check_results(results, None)
    check_results(results, mine)
    with pytest.raises(CatalogError, match="give that key, or another --output"):
        check_results(results, other)


def test_clear_ids_leave_no_check_value(table):
    assert open_scans(table, CatalogOptions(identity=IdentityHash(clear=True))).key_check is None


@pytest.mark.parametrize("given", [None, "of the environment"])
def test_commands_that_only_group_take_catalogs_with_ids_of_any_key(
    table, tmp_path, monkeypatch, given
):
    if given:
        monkeypatch.setenv("BRAINTUMOR_HASH_KEY", given)
    path = str(tmp_path / "catalog.parquet")
    words = ["catalog", table, "--output", path]
    assert CliRunner().invoke(app, words).exit_code == 0
    audit = ["audit", path, table, "--no-shortcuts", "--output", str(tmp_path / "audit"), "--json"]
    found = CliRunner().invoke(app, audit)
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["patients"]["known"] == 4  # of both: they have one key
    (tmp_path / "key").write_text("of others")
    assert (
        CliRunner().invoke(app, [*words, "--hash-key-file", str(tmp_path / "key")]).exit_code == 0
    )
    found = CliRunner().invoke(app, audit)
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["patients"]["known"] == 8
