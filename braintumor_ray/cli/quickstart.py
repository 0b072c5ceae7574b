"""From a folder of class folders to a report and a worklist, by commands that are shown."""

import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from braintumor_ray.cli.console import foreign_names, open_pages
from braintumor_ray.cli.options import anonymous_options, load_source
from braintumor_ray.errors import GateError, UsageError
from braintumor_ray.options import Option
from braintumor_ray.progress import Log, duration
from braintumor_ray.storage import is_local, local_path, spelled, write_atomically

if TYPE_CHECKING:
    from braintumor_ray.catalog.labels import ClassMap
    from braintumor_ray.training.speed import TrainingPlan

Clock = Callable[[], float]
RunCommand = Callable[[list[str]], int]  # a command line to its exit code
PLAN, SOURCE = "plan.json", "source.txt"
OWN = {"audit", "run", "results", "report", "worklist", PLAN, SOURCE}  # what a quickstart writes
LEAST_SCANS = 10  # of a class: to train, to choose a threshold and to test on


@dataclass(frozen=True)
class QuickstartOptions:
    """How much time there is, and what is known of the scans."""

    minutes: Annotated[
        float, Option("Time for all of it; training is shortened to fit.", "N", least=1)
    ] = 15
    output: Annotated[
        Path, Option("Where to write it all.", "FOLDER", flags=("--output", "-o"))
    ] = Path("quickstart-output")
    weights: Annotated[
        str,
        Option(
            "Pretrained weights of mobilenetv2_100; with none, a small network is trained.",
            "imagenet|none|FILE.safetensors",
        ),
    ] = "imagenet"
    truth: Annotated[
        str | None,
        Option(
            "Where tumors are, if that is known: teaches and measures the maps.",
            "MASKS|BOXES|OUTLINES",
        ),
    ] = None


def run_quickstart(
    source: str,
    options: QuickstartOptions,
    run: RunCommand,
    log: Log,
    *,
    show: bool = False,
    clock: Clock = time.monotonic,
) -> dict[str, Any]:
    """Audit, train, score, evaluate and list; in the same folder it goes on from what is finished.

    Args:
        source: a folder of class folders, a CSV or a catalog.
        options: see there.
        run: runs a command line and returns its exit code.
        log: takes a line for people.
        show: open the pages in the browser at the end.
        clock: gives seconds; for tests.

    Returns:
        Where to look, by what it is, and `minutes` that it took.

    Raises:
        UsageError: scans that no network can be trained on, or a folder with something else, such
            as a quickstart of another source.
        typer.Exit: a step failed; it has reported why.
    """
    started = clock()
    _check_output(options.output, source)
    counts, classes = check_scans(source)
    _check_weights(options.weights)
    write_atomically(options.output / SOURCE, f"{_place(source)}\n".encode())
    with redirect_stdout(sys.stderr):
        _QuickstartSteps(source, options, run, log, clock, started).all(counts, classes)
    out, spent = options.output, clock() - started
    pages = {
        "report": str(out / "report" / "report.html"),
        "worklist": str(out / "worklist" / "worklist.html"),
        "audit": str(out / "audit" / "audit.html"),
    }
    if show:
        open_pages(list(pages.values()))
    log(f"{duration(spent)} of {options.minutes:g} min. Not for patients. Look at these:")
    bundle, results = str(out / "run" / "bundle"), str(out / "results")
    log(f"next, to correct labels: braintumor-ray review {results} --bundle {bundle}")
    return pages | {"bundle": bundle, "results": results, "minutes": round(spent / 60, 2)}


def check_scans(source: str) -> tuple[dict[str, int], "ClassMap"]:
    """Scans by class, and the classes.

    Raises:
        CatalogError: there are no scans.
        UsageError: no two classes, or a class with too few scans.
    """
    from braintumor_ray.recipes.loader import load_recipe
    from braintumor_ray.training.run_data import class_map

    table = load_source(source, anonymous_options())
    classes = class_map(table, load_recipe("best"))
    found = Counter(classes.apply(label) for label in table["label"].to_pylist())
    counts = {name: found[name] for name in classes.classes}
    least = min(counts, key=lambda name: counts[name])
    if counts[least] < LEAST_SCANS:
        raise UsageError(
            f"'{source}': class '{least}' has {counts[least]} scans, and quickstart needs "
            f"{LEAST_SCANS} of each class to train, to choose a threshold and to test; add scans, "
            "or leave the class out with 'catalog' and 'train --classes'"
        )
    return counts, classes


def _check_output(output: Path, source: str) -> None:
    if foreign := foreign_names(output, OWN):
        raise UsageError(
            f"'{output}' holds '{foreign[0]}', which is not of a quickstart; choose another "
            "--output"
        )
    noted = output / SOURCE  # what is finished here, such as the network, is of this source
    had = noted.read_text(encoding="utf-8").strip() if noted.exists() else None
    if had not in (None, _place(source)):
        raise UsageError(f"'{output}' holds a quickstart of '{had}'; choose another --output")


def _place(source: str) -> str:
    """The same for a source however it is spelled."""
    return spelled(str(local_path(source).resolve())) if is_local(source) else source.rstrip("/")


def _check_weights(weights: str) -> None:
    """Refuse weights that cannot be had before minutes are spent."""
    from braintumor_ray.models.classifier import build_backbone
    from braintumor_ray.models.weights import load_pretrained
    from braintumor_ray.recipes.loader import load_recipe

    if weights != "none":  # loaded, not only looked up: a file may not fit, a cache may be damaged
        recipe = load_recipe("best")
        name, size = recipe.model.backbone, recipe.data.image_size
        load_pretrained(build_backbone(name, size), name, weights, size)


@dataclass
class _QuickstartSteps:
    """The commands of a quickstart."""

    source: str
    options: QuickstartOptions
    run: RunCommand
    log: Log
    clock: Clock
    started: float

    def all(self, counts: dict[str, int], classes: "ClassMap") -> None:
        """Run every command that has not been finished by an earlier quickstart."""
        from braintumor_ray.local_ray import ray_session

        o, out = self.options, self.options.output
        truth = ["--truth", o.truth] if o.truth else []
        self._audit()
        plan = self._plan(counts, classes)
        with ray_session():  # of both steps that need it
            self._train(plan, truth)
            bundle, results = str(out / "run" / "bundle"), str(out / "results")
            # 3: many scans cannot be read. It has been reported, and the others are scored.
            score = ["score", self.source, "--bundle", bundle, "--output", results]
            self._step(score, accepted=(0, GateError.exit_code))
        audit = ["--audit", str(out / "audit" / "audit.json")]
        where = ["--bundle", bundle, "--output", str(out / "report")]
        self._step(["evaluate", str(out / "run" / "catalog.parquet"), *where, *audit, *truth])
        self._step(["worklist", results, "--output", str(out / "worklist")])

    def _audit(self) -> None:
        folder = self.options.output / "audit"
        if (folder / "audit.json").exists():
            self.log(f"audited before: {folder / 'audit.html'}")
        else:
            # Burned-in text would take several times what reading does, by which the plan is made.
            self._step(["audit", self.source, "--output", str(folder), "--no-burned-in"])

    def _plan(self, counts: dict[str, int], classes: "ClassMap") -> "TrainingPlan":
        """What is trained; an interrupted run goes on with the plan that it began with."""
        from braintumor_ray.training.speed import plan_training

        path = self.options.output / PLAN
        if path.exists():
            plan = _read_plan(path)
        else:
            plan = plan_training(
                counts,
                classes.with_tumor,
                self._left(),
                reading_s=60 * self.options.minutes - self._left(),  # by the audit, until now
                pretrained=self.options.weights != "none",
            )
            path.write_text(json.dumps(asdict(plan), indent=1) + "\n", encoding="utf-8")
        healthy = [name for name in classes.classes if name not in classes.with_tumor]
        self.log(f"classes with a tumor: {_named(classes.with_tumor)}; without: {_named(healthy)}")
        self.log(plan.sentence())
        return plan

    def _train(self, plan: "TrainingPlan", truth: list[str]) -> None:
        from braintumor_ray.training.run_folder import run_folder
        from braintumor_ray.training.speed import FROM_SCRATCH

        output = self.options.output / "run"
        if run_folder(output).note().get("status") == "finished":
            self.log(f"trained before: {output / 'bundle'}")
            return
        weights = "none" if plan.recipe == FROM_SCRATCH else self.options.weights
        minutes = f"{plan.minutes(self._left()):g}"
        chosen = ["--recipe", plan.recipe, "--minutes", minutes, "--weights", weights]
        self._step(["train", self.source, *chosen, *truth, "--output", str(output)])

    def _left(self) -> float:
        """Seconds of the time that was given."""
        return 60 * self.options.minutes - (self.clock() - self.started)

    def _step(self, command: list[str], accepted: tuple[int, ...] = (0,)) -> None:
        """Show a command and run it.

        Raises:
            typer.Exit: it failed.
        """
        self.log(f"\n$ braintumor-ray {shlex.join(command)}")
        began = self.clock()
        code = self.run(command)
        if code not in accepted:
            raise typer.Exit(code)
        self.log(f"({command[0]}: {duration(self.clock() - began)})")


def _read_plan(path: Path) -> "TrainingPlan":
    from braintumor_ray.training.speed import TrainingPlan

    try:
        return TrainingPlan(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"'{path}' is not a plan of this version; remove '{path.parent}', or choose another "
            "--output"
        ) from error


def _named(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
