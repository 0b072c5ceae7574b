"""From a folder of class folders to report and worklist; what each step is told."""

import json
from contextlib import nullcontext

import pytest
import typer.main
from typer.testing import CliRunner

from braintumor_ray.cli import app
from braintumor_ray.cli.demo import _check_folder
from braintumor_ray.cli.quickstart import OWN, QuickstartOptions, _check_output, run_quickstart
from braintumor_ray.errors import UsageError
from braintumor_ray.recipes.loader import load_recipe
from braintumor_ray.training.speed import (
    LEAST_EPOCHS,
    START_S,
    STEP_S,
    Speed,
    measure_speed,
    plan_training,
)
from tests.builders import write_archive
from tests.training.here import in_this_process

COUNTS = {"glioma": 800, "none": 200}


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def planned(seconds, *, pretrained=True, train=0.02, predict=0.005, reading=10.0):
    asked = []

    def measure(recipe, classes):
        asked.append((recipe.name, classes))
        return Speed(train, predict) if recipe.name == "best" else Speed(train / 10, predict / 10)

    plan = plan_training(
        COUNTS, ["glioma"], seconds, reading_s=reading, pretrained=pretrained, measure=measure
    )
    return plan, asked


class TestPlan:
    def test_with_time_enough_the_recipe_keeps_its_own_epochs(self):
        plan, asked = planned(3600)
        assert (plan.recipe, plan.epochs, plan.fits) == ("best", 30, True)
        assert asked == [("best", 2)]

    def test_epochs_fit_the_time(self):
        plan, _ = planned(300)
        assert plan.recipe == "best"
        assert LEAST_EPOCHS <= plan.epochs < 30
        # Healthy scans are shown twice, and all scans are predicted by maps in scoring.
        epoch = 1.2 * (0.8 * (800 + 2 * 200) * 0.02 + 0.1 * 1000 * 0.005)
        after = 10 + 1.1 * 1000 * 2 * 0.005 + 3 * STEP_S
        before = START_S + 10 + (0.9 + 7 * 0.1) * 1000 * 0.005
        assert plan.after_s == pytest.approx(after)
        assert plan.epochs == int((300 - after - before) / epoch)

    def test_training_gets_what_is_left_when_it_starts(self):
        plan, _ = planned(300)
        assert plan.minutes(240) == pytest.approx((240 - plan.after_s) / 60, abs=0.01)

    def test_the_small_network_takes_over_where_the_strong_one_does_not_fit(self):
        plan, asked = planned(160)
        assert plan.recipe == "demo"
        assert [name for name, _ in asked] == ["best", "demo"]

    def test_without_weights_only_the_small_network_is_asked(self):
        assert planned(3600, pretrained=False)[1] == [("demo", 2)]

    def test_too_little_time_is_told_and_is_enough_for_the_fewest_epochs(self):
        plan, _ = planned(1)
        assert (plan.epochs, plan.fits) == (LEAST_EPOCHS, False)
        assert "this takes longer" in plan.sentence()
        assert plan.minutes(0) == pytest.approx(plan.train_s / 60, abs=0.01)

    def test_speed_is_measured(self):
        speed = measure_speed(load_recipe("demo", ["data.batch_size=4"]), 3)
        assert min(speed.train, speed.predict) > 0


@pytest.fixture
def archive(tmp_path):
    write_archive(tmp_path / "archive", 40)
    return tmp_path / "archive"


class TestRefusals:
    @pytest.mark.parametrize(
        ("classes", "number", "words"),
        [(("glioma",), 12, "1 class (glioma)"), (("a", "no_tumor"), 6, "needs 10 of each class")],
    )
    def test_a_folder_that_cannot_be_trained_on(self, tmp_path, classes, number, words):
        write_archive(tmp_path / "archive", number, classes=classes)
        found = call("quickstart", tmp_path / "archive", "-o", tmp_path / "out")
        assert (found.exit_code, found.stdout) == (2, "")
        assert words in found.stderr.splitlines()[-1]
        assert not (tmp_path / "out").exists()

    def test_an_empty_folder(self, tmp_path):
        (tmp_path / "empty").mkdir()
        found = call("quickstart", tmp_path / "empty", "-o", tmp_path / "out")
        assert found.exit_code == 1
        assert found.stderr.startswith("error: ")
        assert found.stderr.count("\n") == 1

    def test_an_output_with_something_else(self, tmp_path, archive):
        (tmp_path / "out" / "thesis").mkdir(parents=True)
        found = call("quickstart", archive, "-o", tmp_path / "out")
        assert (found.exit_code, found.stderr.count("\n")) == (2, 1)
        assert "'thesis'" in found.stderr

    def test_what_a_file_manager_leaves_is_not_in_the_way(self, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / ".DS_Store").touch()
        _check_output(tmp_path, "archive")
        _check_folder(tmp_path, print)
        (tmp_path / "thesis").touch()
        with pytest.raises(UsageError, match="'thesis'"):
            _check_folder(tmp_path, print)

    def test_weights_that_cannot_be_had_are_noticed_before_any_step(self, tmp_path, archive):
        found = call("quickstart", archive, "-o", tmp_path / "out", "--weights", "no.safetensors")
        assert found.exit_code == 1
        assert "no such file" in found.stderr
        assert not (tmp_path / "out").exists()


class TestSteps:
    """With a runner that notes the commands in place of running them."""

    @pytest.fixture
    def steps(self, tmp_path, archive, monkeypatch):
        monkeypatch.setattr("braintumor_ray.local_ray.ray_session", nullcontext)
        codes, commands, lines = {}, [], []
        seconds = {"audit": 30.0, "train": 60.0}  # what a command takes by the clock
        now = [0.0]

        def run(command):
            commands.append(command)
            now[0] += seconds.get(command[0], 0.0)
            if command[0] == "audit":
                (tmp_path / "out" / "audit").mkdir(parents=True)
                (tmp_path / "out" / "audit" / "audit.json").touch()
            return codes.get(command[0], 0)

        def start(source=archive, **options):
            commands.clear()
            chosen = QuickstartOptions(output=tmp_path / "out", weights="none", **options)
            found = run_quickstart(str(source), chosen, run, lines.append, clock=lambda: now[0])
            return found, [list(command) for command in commands]

        start.codes, start.lines, start.out = codes, lines, tmp_path / "out"
        return start

    def test_every_step_is_shown_as_it_runs_and_is_a_command_line_of_ours(self, steps):
        found, commands = steps(truth="boxes.csv")
        names = [command[0] for command in commands]
        assert names == ["audit", "train", "score", "evaluate", "worklist"]
        shown = "\n".join(steps.lines)
        for name, *arguments in commands:
            assert f"$ braintumor-ray {name} " in shown
            typer.main.get_command(app).commands[name].make_context(name, list(arguments))
        for name in ("train", "evaluate"):
            command = commands[names.index(name)]
            assert command[command.index("--truth") + 1] == "boxes.csv"
        assert found["report"] == str(steps.out / "report" / "report.html")
        assert {path.name for path in steps.out.iterdir()} <= OWN

    def test_training_gets_the_minutes_that_audit_and_what_follows_leave(self, steps):
        _, commands = steps(minutes=10)
        plan = json.loads((steps.out / "plan.json").read_text())
        train = commands[1]
        left = 600 - 30 - plan["after_s"]
        assert float(train[train.index("--minutes") + 1]) == pytest.approx(left / 60, abs=0.01)
        assert plan["after_s"] > 30  # scoring reads all scans, as the audit did

    def test_a_second_time_the_audit_and_the_plan_are_used_again(self, steps):
        steps(minutes=1)
        plan = (steps.out / "plan.json").read_text()
        _, commands = steps(minutes=500)
        assert commands[0][0] == "train"
        assert json.loads(plan)["recipe"] in commands[0]
        assert (steps.out / "plan.json").read_text() == plan

    def test_a_second_time_with_other_scans_is_refused(self, steps, archive, tmp_path, monkeypatch):
        """Audit, network and report of the first would be shown as those of the second."""
        steps(minutes=1)
        write_archive(tmp_path / "other", 40)
        with pytest.raises(UsageError, match=r"holds a quickstart of '.*archive'"):
            steps(tmp_path / "other", minutes=1)
        monkeypatch.chdir(tmp_path)
        assert steps("archive/", minutes=1)[1][0][0] == "train"  # the same, spelled otherwise

    def test_a_plan_of_another_version_is_refused(self, steps):
        steps(minutes=1)
        (steps.out / "plan.json").write_text('{"recipe": "best", "stage": "finetune"}')
        with pytest.raises(UsageError, match="not a plan of this version"):
            steps()

    def test_a_step_that_fails_ends_it_with_its_code(self, steps):
        steps.codes["train"] = 2
        with pytest.raises(typer.Exit) as failed:
            steps()
        assert failed.value.exit_code == 2

    def test_scans_that_cannot_be_read_do_not_end_it(self, steps):
        steps.codes["score"] = 3
        assert steps()[1][-1][0] == "worklist"


@pytest.mark.ray
@pytest.mark.slow
def test_from_a_folder_to_pages(tmp_path, archive, cluster):
    words = ("quickstart", archive, "--minutes", 1, "--weights", "none", "-o", tmp_path / "out")
    with in_this_process(tmp_path / "ray"):
        found = call(*words, "--json")
    assert found.exit_code == 0, found.output
    pages = json.loads(found.stdout)
    for name in ("report", "worklist", "audit"):
        assert "<html" in (tmp_path / "out" / name / f"{name}.html").read_text()[:100], pages
