"""The commands as a user calls them."""

import ast
import json
import re

import pytest
import typer.main
from typer.testing import CliRunner

from braintumor_ray import __version__
from braintumor_ray.cli import app
from braintumor_ray.errors import UsageError
from braintumor_ray.options import parse_range
from tests.builders import write_archive
from tests.command import PROJECT, run_command


def call(*arguments, env=None):
    return CliRunner().invoke(app, [str(a) for a in arguments], env=env)


COMMANDS = sorted(typer.main.get_command(app).commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    found = call(command, "--help")
    assert found.exit_code == 0
    assert len(found.stdout) > 300


def test_every_option_has_a_help_text():
    for name, command in typer.main.get_command(app).commands.items():
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name}: {parameter.name}"


def test_version():
    assert call("--version").stdout.strip() == __version__


def test_catalog_and_split(tmp_path):
    write_archive(tmp_path / "archive", 40)
    found = call("catalog", tmp_path / "archive", "-o", tmp_path / "c.parquet", "--json")
    assert json.loads(found.stdout)["scans"] == 40
    found = call("split", tmp_path / "c.parquet", "-o", tmp_path / "s.parquet", "--json")
    assert json.loads(found.stdout)["splits"] == {"test": 4, "train": 28, "val": 8}


def test_recipes_are_listed_and_shown():
    assert "mobilenetv2-finetune" in call("recipes").stdout
    assert "0.91 at threshold 0.65" in call("recipes", "show", "mobilenetv2-finetune").stdout


def test_explain_draws_files_and_names_what_it_cannot_read(tmp_path, bundle_path):
    good, *_ = write_archive(tmp_path / "archive", 3)
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no")
    found = call(
        *("explain", good, bad, "-b", bundle_path, "-o", tmp_path / "out", "--device", "cpu"),
        *("--method", "gradcam", "--method", "eigencam", "--json"),
    )
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)
    assert list(result["unreadable"]) == [str(bad)]
    assert len(list((tmp_path / "out").glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("catalog", "nowhere", "-o", "c.parquet"), 1, "'nowhere' does not exist"),
        (("recipes", "show", "nothing"), 2, "recipe 'nothing'"),
        (("score", "x", "-b", "nowhere", "-o", "r"), 1, "not a bundle"),
        (("verify", "nowhere"), 1, "not a results folder"),
        (("explain", "-o", "out"), 2, "--results"),
        (("explain", "--results", "nowhere"), 1, "not a results folder"),
        (("evaluate", "c.parquet", "-b", "b", "-o", "o", "--section", "x"), 1, "c.parquet"),
        (("train", "--num-workers", "many"), 2, "--num-workers 'many'"),
        (("train", "--set", "optimizer.rate=1"), 2, "optimizer.rate"),
        (("train", "--split-by", "luck"), 2, "--split-by 'luck'"),
        (("split", "c.parquet", "-o", "s.parquet", "--fractions", "1,2"), 1, "c.parquet"),
    ],
)
def test_mistakes_are_one_line_on_stderr(tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    found = call(*arguments)
    assert found.exit_code == code, found.output
    assert found.stderr.startswith("error: ")
    assert words in found.stderr
    assert found.stderr.count("\n") == 1
    assert not found.stdout


@pytest.mark.parametrize(("text", "value"), [("4", 4), ("2:8", (2, 8)), ("3:3", (3, 3))])
def test_worker_numbers_and_ranges(text, value):
    assert parse_range("--num-workers", text) == value


@pytest.mark.parametrize("text", ["0", "-1", "8:2", "a", "1:2:3", ""])
def test_wrong_ranges(text):
    with pytest.raises(UsageError, match="--num-workers"):
        parse_range("--num-workers", text)


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_phantoms_are_written_below_a_local_output(tmp_path, monkeypatch, form):
    monkeypatch.delenv("BRAINTUMOR_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    found = call("train", "--preview-augmentation", "--output", form.format(tmp_path / "run"))
    assert found.exit_code == 0, found.output
    assert (tmp_path / "run" / "phantoms" / "scans.csv").exists()
    assert (tmp_path / "run" / "augmentation.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_preview_on_a_store_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_archive(tmp_path / "archive", 4)
    found = call("train", "archive", "--preview-augmentation", "--output", "s3://bucket/run")
    assert found.exit_code == 2
    assert "give a local --output" in found.output
    assert not (tmp_path / "s3:").exists()


def test_labels_are_mapped_to_the_bundles_classes_by_evaluate(tmp_path, bundle_path):
    write_archive(tmp_path / "archive", 12, classes=("tumor_a", "healthy"))
    where = ("--bundle", bundle_path, "--output", tmp_path / "out", "--split", "all")
    common = ("evaluate", tmp_path / "archive", *where, "--n-boot", 0, "--device", "cpu")
    refused = call(*common)
    assert refused.exit_code == 2
    assert "map the labels with --classes" in refused.output
    found = call(*common, "--classes", "glioma_tumor=tumor_a,no_tumor=healthy", "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["counts"]["measured"] == 12


def test_messages_name_only_options_that_some_command_has():
    known = {
        option
        for command in typer.main.get_command(app).commands.values()
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    foreign = {"--help", "--version", "--working-dir", "--num-cpus", "--submission-id"}
    named = {}
    for path in (PROJECT / "braintumor_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", node.value):
                    named.setdefault(option, path.name)
    assert {o: where for o, where in named.items() if o not in known | foreign} == {}


@pytest.mark.ray
@pytest.mark.slow
def test_score_verify_and_explain_from_the_command_line(tmp_path, bundle_path):
    archive = tmp_path / "archive"
    paths = write_archive(archive, 10)
    paths[0].write_bytes(b"")
    paths[1].write_bytes(b"not an image")
    results = tmp_path / "results"
    dry = run_command("score", archive, "-b", bundle_path, "-o", results, "--dry-run", "--json")
    assert json.loads(dry.stdout)["would_score"] == 10
    assert not results.exists()
    gate = run_command("score", archive, "-b", bundle_path, "-o", results, "--json")
    assert gate.returncode == 3, gate.stderr
    assert "20.0% of the scans are quarantined" in gate.stderr
    assert json.loads(gate.stdout)["status"] == {"ok": 8, "quarantined": 2}
    again = run_command("score", archive, "-b", bundle_path, "-o", results)
    assert again.returncode == 0
    assert "nothing new" in again.stdout
    assert run_command("verify", results).returncode == 0
    drawn = run_command(
        "explain", "--results", results, "-o", tmp_path / "drawn", "--limit", 4, "--json"
    )
    assert len(json.loads(drawn.stdout)["pictures"]) == 5
