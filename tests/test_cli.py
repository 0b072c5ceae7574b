"""The commands as a user calls them."""

import ast
import inspect
import json
import re
import shutil
from dataclasses import dataclass, field, make_dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import pytest
import typer.main
from typer.testing import CliRunner

from braintumor_ray import Predictor, __version__, storage
from braintumor_ray.catalog.schema import read_catalog
from braintumor_ray.cli import app, scoring
from braintumor_ray.cli.console import short_errors
from braintumor_ray.cli.options import takes
from braintumor_ray.errors import BundleError, UsageError
from braintumor_ray.evaluation.options import EvaluateOptions, ValidateOptions
from braintumor_ray.local_ray import ray_session
from braintumor_ray.monitoring.options import RunReport
from braintumor_ray.options import Option, parse_range
from braintumor_ray.predict.options import PredictorOptions
from braintumor_ray.scoring.options import PredictSettings, ScoreOptions
from braintumor_ray.serving.command import serving_settings
from braintumor_ray.serving.settings import ServingSettings
from tests.builders import write_archive
from tests.command import PROJECT
from tests.s3 import environment_of


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


def options_of(*command):
    """Spellings of a command's options, those of the application for none."""
    found = typer.main.get_command(app)
    for name in command:
        found = found.commands[name]
    names = (name for p in found.params for name in (*p.opts, *p.secondary_opts))
    return [name for name in names if name.startswith("-") and not name.startswith("--help")]


def help_at(width, monkeypatch, *command):
    """What `--help` prints on a terminal of so many columns."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", width)
    shown = call(*command, "--help").stdout
    assert max(len(line) for line in shown.splitlines()) <= width
    return shown


def every_command(command=None, path=()):
    """The words of each command, of groups, and of what is in them."""
    yield path
    found = typer.main.get_command(app) if command is None else command
    for name, inner in getattr(found, "commands", {}).items():
        yield from every_command(inner, (*path, name))


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
@pytest.mark.parametrize("width", [80, 100])
def test_help_breaks_no_option(command, width, monkeypatch):
    shown = help_at(width, monkeypatch, *command)
    for spelling in options_of(*command):
        assert re.search(rf"(?<![\w-]){spelling}(?![\w-])", shown), spelling
    assert "\u2026" not in shown  # nothing is cut either
    assert not re.search(r"<\w+>", shown)  # the type of a flag is no value of it


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_panels_by_subject(command, monkeypatch):
    shown = help_at(100, monkeypatch, command)
    panels = re.findall(r"^\u256d\u2500 (\w+) \u2500", shown, re.MULTILINE)
    if len(typer.main.get_command(app).commands[command].params) > 11:  # --help is one
        assert len(panels) >= 4
    assert panels.index("Options") <= 1  # what everybody needs comes first


parse_turns = partial(parse_range, "--turns")


@dataclass(frozen=True)
class Grinder:
    """A part."""

    PANEL: ClassVar = "Grinding"

    burrs: Annotated[Literal["steel", "stone"], Option("What grinds.")] = "steel"
    beans: Annotated[tuple[str, ...], Option("Which.", "BEAN", flags=("--bean",))] = ()
    turns: Annotated[tuple[int, int], Option("How often.", "MIN:MAX", parse=parse_turns)] = (1, 2)


@dataclass(frozen=True)
class Coffee:
    """A toy's options."""

    cup: Annotated[str, Option("In what.", "CUP")]
    grinder: Grinder = field(default_factory=Grinder)
    sugar: Annotated[int, Option("Spoons.", least=0)] = 3
    secret: Annotated[int, Option("In files only.", hidden=True)] = 7


@dataclass(frozen=True)
class MoreOptions(ScoreOptions):
    """The job's options and one more."""

    tries: Annotated[int, Option("How often.", "TRIES", least=1)] = 5


@dataclass(frozen=True, kw_only=True)
class MoreRun(scoring.ScoreRun):
    """A run with them."""

    options: MoreOptions


@dataclass(frozen=True)
class MorePredict(PredictSettings):
    """The predictor's settings and one more."""

    tries: Annotated[int, Option("How often.", "TRIES", least=1)] = 5


@dataclass(frozen=True)
class MorePredictOptions(ScoreOptions):
    """A job's options with them."""

    predict: MorePredict


@dataclass(frozen=True, kw_only=True)
class MorePredictRun(scoring.ScoreRun):
    """A run with them."""

    options: MorePredictOptions


def brewed(*arguments, kind=Coffee):
    """The object that a command gets, and what `--help` prints."""
    got, brewer = [], typer.Typer()

    @brewer.command()
    @short_errors
    @takes(coffee=kind)
    def brew(coffee: Coffee) -> None:
        got.append(coffee)

    found = CliRunner().invoke(brewer, arguments)
    return found, got


class TestDeclaredOptions:
    def test_an_option_added_in_one_place_is_in_the_help_and_in_the_object(self):
        more = make_dataclass(
            "More",
            [("milk", Annotated[float, Option("Of the cup.", panel="Extras")], 0.5)],
            bases=(Coffee,),
            frozen=True,
        )
        shown = brewed("--help", kind=more)[0].stdout
        assert "--milk" in shown
        assert "Extras" in shown
        _, (coffee,) = brewed("--cup", "mug", "--milk", "0.25", kind=more)
        assert coffee == more("mug", milk=0.25)

    def test_one_added_to_the_jobs_options_reaches_the_job(
        self, monkeypatch, tmp_path, bundle_path
    ):
        from braintumor_ray.scoring import job

        got, plan = [], job.plan_only
        monkeypatch.setattr(job, "plan_only", lambda *a: got.append(a[-1]) or plan(*a))
        scorer = typer.Typer()
        scorer.command()(takes(run=MoreRun, report=RunReport)(inspect.unwrap(scoring.score)))
        assert "TRIES" in CliRunner().invoke(scorer, ["--help"]).stdout
        write_archive(tmp_path / "archive", 4)
        words = [str(tmp_path / "archive"), "-b", str(bundle_path), "-o", "r", "--dry-run"]
        found = CliRunner().invoke(scorer, [*words, "--tries", "9", "--num-predictors", "2"])
        assert found.exit_code == 0, found.output
        (options,) = got
        assert (options.tries, options.request.predictors) == (9, (2, 2))

    def test_one_added_to_the_predictors_options_reaches_the_predictor(
        self, monkeypatch, tmp_path, bundle_path
    ):
        from braintumor_ray.scoring import predict_stage

        got = []
        own = make_dataclass(
            "MorePredictor", [("tries", int, 1)], bases=(PredictorOptions,), frozen=True
        )

        class Recorded(Predictor):
            def __init__(self, bundle, chosen):
                got.append(chosen)
                super().__init__(bundle, PredictorOptions.of(chosen))

        monkeypatch.setattr(predict_stage, "PredictorOptions", own)
        monkeypatch.setattr(predict_stage, "Predictor", Recorded)
        scorer = typer.Typer()
        scorer.command()(takes(run=MorePredictRun, report=RunReport)(inspect.unwrap(scoring.score)))
        assert "TRIES" in CliRunner().invoke(scorer, ["--help"]).stdout
        write_archive(tmp_path / "archive", 4)
        words = [str(tmp_path / "archive"), "-b", str(bundle_path), "-o", "r", "--plan"]
        words += ["--tries", "9", "--precision", "fp32", "--cam-class", "positive"]
        found = CliRunner().invoke(scorer, [*words, "--device", "cpu", "--batch-size", "3"])
        assert found.exit_code == 0, found.output
        assert got == [
            own(device="cpu", precision="fp32", cam_class="positive", batch_size=3, tries=9)
        ]

    @pytest.mark.parametrize(
        "chosen", [PredictSettings("b"), ServingSettings("b"), EvaluateOptions(), ValidateOptions()]
    )
    def test_every_commands_options_of_the_predictor_reach_it(self, chosen):
        other = {"device": "cuda:7", "precision": "fp32", "engine": "openvino"}
        other |= {"cam_class": "positive", "batch_size": 3, "tta": True}
        offered = {name: value for name, value in other.items() if hasattr(chosen, name)}
        assert {"device", "precision", "engine", "cam_class"} <= offered.keys()
        found = PredictorOptions.of(replace(chosen, **offered))
        assert found == PredictorOptions(**offered)

    def test_what_is_not_given_is_the_dataclasss_own_default(self):
        _, (coffee,) = brewed("--cup", "mug")
        assert coffee == Coffee("mug")

    def test_parts_repeats_and_parsed_texts(self):
        _, (coffee,) = brewed(
            *("--cup", "mug", "--bean", "a", "--bean", "b", "--turns", "2:3", "--sugar", "0")
        )
        assert coffee == Coffee("mug", Grinder("steel", ("a", "b"), (2, 3)), 0)

    def test_what_cannot_be_is_refused(self):
        found, got = brewed("--cup", "mug", "--burrs", "wood")
        assert (found.exit_code, got) == (2, [])
        assert found.stderr == "error: --burrs 'wood' is unknown; use steel or stone\n"
        assert brewed("--cup", "mug", "--sugar", "-1")[0].exit_code == 2
        assert brewed()[0].exit_code == 2
        assert brewed("--cup", "mug", "--secret", "1")[0].exit_code == 2

    def test_help_shows_panels_choices_and_defaults(self):
        shown = brewed("--help")[0].stdout
        assert "Grinding" in shown
        assert "steel|stone" in shown
        assert "[default: 3]" in shown
        assert "--secret" not in shown


class TestBundlesAreReadOnce:
    @pytest.fixture
    def unpacked(self, monkeypatch):
        import safetensors.torch

        calls, load = [], safetensors.torch.load
        monkeypatch.setattr(safetensors.torch, "load", lambda blob: calls.append(1) or load(blob))
        return calls

    @pytest.mark.parametrize("only", ["--dry-run", "--plan"])
    def test_score_unpacks_the_weights_once(self, tmp_path, bundle_path, unpacked, only):
        write_archive(tmp_path / "archive", 4)
        words = ("score", tmp_path / "archive", "-b", bundle_path, "-o", "r", "--device", "cpu")
        found = call(*words, only)
        assert found.exit_code == 0, found.output
        assert len(unpacked) == 1

    def test_serve_checks_the_weights_without_unpacking_them(self, tmp_path, bundle_path, unpacked):
        settings = serving_settings(ServingSettings(str(bundle_path)))
        assert (settings.bundle, unpacked) == (str(bundle_path), [])
        broken = tmp_path / "broken"
        shutil.copytree(bundle_path, broken)
        (broken / "model.safetensors").write_bytes(b"no")
        with pytest.raises(BundleError, match="do not belong together"):
            serving_settings(ServingSettings(str(broken)))


def test_a_ray_that_does_not_start_in_time_is_one_line(monkeypatch):
    def init(**_):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    starter = typer.Typer()

    @starter.command()
    @short_errors
    def start() -> None:
        with ray_session():
            raise AssertionError

    found = CliRunner().invoke(starter, [])
    assert found.exit_code == 1
    assert found.stderr.startswith("error: Ray did not start")
    assert found.stderr.count("\n") == 1


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
    assert f"warning: not drawn: {bad}: " in found.stderr
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
        (("evaluate", "c.parquet", "-b", "b", "-o", "o"), 1, "c.parquet"),
        (("evaluate", "c.parquet", "-b", "b", "-o", "o", "--section", "x"), 2, "--section 'x'"),
        (("train", "--num-workers", "many"), 2, "--num-workers 'many'"),
        (("train", "--set", "optimizer.rate=1"), 2, "optimizer.rate"),
        (("train", "--set", "optimizer.lrs=1"), 2, "did you mean 'optimizer.lr'?"),
        (("score", "x", "-b", "b", "-o", "r", "--plane", "flat"), 2, "--plane 'flat'"),
        (("score", "x", "-b", "b", "-o", "r", "--num-predictors", "3:1"), 2, "'3:1'"),
        (("score", "x", "-b", "b", "-o", "r", "--patient-pattern", "("), 2, "--patient-pattern"),
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


def test_a_range_may_begin_at_none():
    assert parse_range("--replicas", "0:2", least=0) == (0, 2)
    for text in ("0", "0:0"):
        with pytest.raises(UsageError, match="--replicas"):
            parse_range("--replicas", text, least=0)


@pytest.mark.parametrize("text", ["0", "0:2", "-1", "8:2", "a", "1:2:3", ""])
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


def test_catalogs_are_written_where_a_uri_says(s3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_archive(tmp_path / "archive", 12)
    for place in (f"s3://{s3[0]}/c", f"file://{tmp_path}/new/c"):
        made = call("catalog", "archive", "--output", f"{place}.parquet", "--json")
        assert made.exit_code == 0, made.output
        assert json.loads(made.stdout)["catalog"] == f"{place}.parquet"
        shared = call("split", f"{place}.parquet", "--output", f"{place}-split.parquet")
        assert shared.exit_code == 0, shared.output
        assert "split" in read_catalog(f"{place}-split.parquet").column_names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "new"]


def test_what_is_written_on_this_machine_only_takes_no_other_uri(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_archive(tmp_path / "archive", 2)
    audit = ("audit", "archive", "--no-shortcuts", "--output")
    for command in (audit, ("phantom",), ("worklist", "archive", "--output")):
        found = call(*command, "s3://bucket/out")
        assert (found.exit_code, found.stdout) == (2, "")
        assert "'s3://bucket/out' is not on this machine" in found.stderr
    assert call(*audit, f"file://{tmp_path}/out").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "out"]


def test_an_output_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, bundle_path):
    monkeypatch.chdir(tmp_path)
    write_archive(tmp_path / "archive", 2)
    (tmp_path / "file").write_text("in the way")
    with_bundle = ("archive", "--bundle", bundle_path, "--output", "file")
    for command in (
        ("audit", "archive", "--no-shortcuts", "--output", "file"),
        ("audit", "archive", "--no-shortcuts", "--output", "file/below"),
        ("phantom", "file/below"),
        ("explain", *with_bundle),
        ("network", bundle_path, "--output", "file/network.png"),
        ("train", "archive", "--output", "file"),
        ("score", *with_bundle, "--dry-run"),
        ("demo", "--output", "file"),
    ):
        found = call(*command)
        assert found.exit_code == 1
        (line,) = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
        assert re.search("'file.*(cannot be written|stopped)", line)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_store_that_does_not_answer_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "MAX_ATTEMPTS", 1)
    for name, value in environment_of("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    write_archive(tmp_path / "archive", 12)
    catalog = tmp_path / "c.parquet"
    assert call("catalog", tmp_path / "archive", "--output", catalog).exit_code == 0
    place = "s3://of-this-test-alone/r"
    for command in (
        ("verify", place),
        ("query", place, "SELECT 1"),
        ("compact", place),
        ("split", catalog, "--output", f"{place}.parquet"),
        ("train", catalog, "--output", place),
    ):
        found = call(*command)
        assert found.exit_code == 1
        (line,) = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
        assert f"'{place}" in line
        assert "Could not connect" in line


def test_options_that_a_source_does_not_follow_are_named(tmp_path):
    write_archive(tmp_path / "archive", 2)
    catalog, output = tmp_path / "c.parquet", tmp_path / "d.parquet"
    pattern = ("--patient-pattern", "(x)")
    found = call(
        "catalog", tmp_path / "archive", "--root", "x", *pattern, "--output", catalog, "--json"
    )
    assert found.exit_code == 0
    assert "archive' is no table; without effect: --root" in found.stderr
    found = call("catalog", catalog, *pattern, "--plane", "coronal", "--output", output)
    assert found.exit_code == 0
    assert "is a catalog already; without effect: --patient-pattern, --plane" in found.stderr
    assert "warning" not in call("catalog", catalog, "--output", output).stderr


def test_values_that_no_library_takes_are_named(tmp_path, bundle_path):
    found = call("network", bundle_path, "--output", tmp_path / "network.qqq")
    assert found.exit_code == 2
    assert "Format 'qqq' is not supported" in found.stderr
    assert call("split", tmp_path / "c.parquet", "--output", "x", "--seed", -1).exit_code == 2


def test_labels_are_mapped_to_the_bundles_classes_by_evaluate(tmp_path, bundle_path):
    write_archive(tmp_path / "archive", 12, classes=("tumor_a", "healthy"))
    where = ("--bundle", bundle_path, "--output", tmp_path / "out", "--split", "all")
    common = ("evaluate", tmp_path / "archive", *where, "--n-boot", 10, "--device", "cpu")
    refused = call(*common)
    assert refused.exit_code == 2
    assert "map the labels with --classes" in refused.output
    found = call(*common, "--classes", "glioma_tumor=tumor_a,no_tumor=healthy", "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["counts"]["measured"] == 12


def test_messages_name_only_options_that_some_command_has():
    commands = [*typer.main.get_command(app).commands.values()]
    commands += [inner for group in commands for inner in getattr(group, "commands", {}).values()]
    known = {
        option
        for command in commands
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    foreign = {"--help", "--version", "--working-dir", "--num-cpus", "--submission-id"}
    foreign |= {"--data-binary", "--fail-with-body", "--form", "--header"}  # curl's, at /docs
    named = {}
    for path in (PROJECT / "braintumor_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", node.value):
                    named.setdefault(option, path.name)
    assert {o: where for o, where in named.items() if o not in known | foreign} == {}
