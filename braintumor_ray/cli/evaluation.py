"""Commands that judge: audit of data, evaluation and validation of a bundle, its neurons."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from braintumor_ray.audit.options import LabelOptions
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.cli.console import log, progress_bar, short_errors
from braintumor_ray.cli.options import (
    BundleArgument,
    BundleOption,
    Json,
    Source,
    anonymous_options,
    flag,
    load_source,
    print_result,
    takes,
)
from braintumor_ray.evaluation.options import EvaluateOptions, ValidateOptions, named_values
from braintumor_ray.neurons.options import NeuronOptions
from braintumor_ray.tracking.options import TrackingOptions

if TYPE_CHECKING:
    from braintumor_ray.tracking.run import Run

app = typer.Typer()


@app.command()
@short_errors
@takes(label_options=LabelOptions)
def audit(
    label_options: LabelOptions,
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Data sets.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Of the audit.")
    ] = Path("audit"),
    shortcuts: Annotated[
        bool,
        typer.Option(
            metavar="",
            rich_help_panel="Checks",
            help="Can size, border, compression alone predict the class?",
        ),
    ] = True,
    burned_in: Annotated[
        bool,
        typer.Option(
            metavar="", rich_help_panel="Checks", help="Look for burned-in text in pictures."
        ),
    ] = True,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Decoding processes.")] = 2,
    on_ray: Annotated[
        bool, flag("Read the files with Ray Data, on the whole cluster.", "--ray")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find duplicates, leakage, conflicting labels and shortcuts: audit.json and audit.html."""
    from braintumor_ray.audit.audit import run_audit
    from braintumor_ray.catalog.sources import source_names

    names = source_names(sources)
    options = anonymous_options()
    tables = [(n, load_source(s, options)) for n, s in zip(names, sources, strict=True)]
    if on_ray:
        from braintumor_ray.audit.job import fingerprint_on_cluster
        from braintumor_ray.local_ray import ray_session

        with ray_session(workers):
            tables = [(name, fingerprint_on_cluster(table, burned_in)) for name, table in tables]
    with progress_bar("auditing") as advance:
        found = run_audit(
            tables, output, workers=workers, shortcuts=shortcuts, burned_in=burned_in,
            labels=label_options, progress=advance,
        )  # fmt: skip
    print_result(found, as_json, _audit_text(found, output, burned_in))


def _audit_text(found: dict[str, Any], output: Path, burned_in: bool) -> str:
    cross, surplus = found["cross_split"], found["surplus"]
    return (
        f"across splits: {cross['pixel_identical']} scans pixel-identical to one in another split "
        f"({cross['byte_identical']} byte-identical)\n"
        f"surplus copies: {surplus['pixel_identical']} pixel-identical "
        f"({surplus['byte_identical']} byte-identical)\n"
        f"groups with conflicting labels: {found['groups']['conflicting_labels']}\n"
        + (_burned_in_line(found["burned_in"]) if burned_in else "")
        + "".join(f"{line}\n" for line in _suspect_lines(found))
        + f"report: {output / 'audit.html'}"
    )


def _burned_in_line(found: dict[str, Any]) -> str:
    return f"burned-in text: {found['tag']} scans by tag, {found['picture']} by their picture\n"


@app.command()
@short_errors
@takes(options=EvaluateOptions, catalog_options=CatalogOptions, tracking=TrackingOptions)
def evaluate(
    source: Source,
    bundle: BundleOption,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Of the report.")
    ],
    options: EvaluateOptions,
    catalog_options: CatalogOptions,
    tracking: TrackingOptions,
    as_json: Json = False,
) -> None:
    """Measure a bundle on a split: metrics.json with intervals, report.html, galleries.

    Give RUN/catalog.parquet, which knows the splits. Exit 3 if scans were trained on.
    """
    from braintumor_ray.evaluation.evaluate import METRICS, REPORT
    from braintumor_ray.evaluation.evaluate import evaluate as measure
    from braintumor_ray.tracking.run import tracked

    with tracked(tracking, f"evaluate {options.split}", log) as run:
        table = load_source(source, catalog_options.with_own_key(output))
        options = replace(options, sections={**_phases(bundle), **options.sections})
        with progress_bar("evaluating") as advance:
            found = measure(table, bundle, output, options, advance)
        _track(run, found, found, output, (METRICS, REPORT))
    print_result(found, as_json, _evaluation_lines(found, output))


@app.command()
@short_errors
@takes(options=ValidateOptions, catalog_options=CatalogOptions, tracking=TrackingOptions)
def validate(
    bundle: BundleArgument,
    on: Annotated[
        list[str],
        typer.Option("--on", metavar="NAME=SOURCE", help="A data set; may be repeated."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Of the table and the page.")
    ],
    options: ValidateOptions,
    catalog_options: CatalogOptions,
    tracking: TrackingOptions,
    trained_on: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="SOURCE",
            help="What the bundle was trained on, in place of its run's catalog; may be repeated.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a bundle on data of other origins: one table, validation.json, validation.html.

    Copies of training scans are left out and counted; nothing is chosen on these data.
    """
    from braintumor_ray.evaluation.validation import PAGE, VALIDATION
    from braintumor_ray.evaluation.validation import validate as measure
    from braintumor_ray.evaluation.validation_page import terminal_lines
    from braintumor_ray.tracking.run import tracked

    catalog_options = _able_to_group(catalog_options)
    sources = named_values("--on", on, "SOURCE")
    with tracked(tracking, f"validate {', '.join(sources)}", log) as run:
        catalogs = {name: load_source(source, catalog_options) for name, source in sources.items()}
        trained = {source: load_source(source, catalog_options) for source in trained_on or []}
        with progress_bar("validating") as advance:
            found = measure(catalogs, bundle, output, options, trained_on=trained, progress=advance)
        _track(run, found, found["sets"], output, (VALIDATION, PAGE))
    print_result(found, as_json, f"{terminal_lines(found)}\npage: {output / PAGE}")


def _track(
    run: "Run",
    found: dict[str, Any],
    figures: dict[str, Any],
    output: Path,
    files: tuple[str, ...],
) -> None:
    """Log in a tracked run what was measured, with which bundle, and where that is written."""
    kept = ("split", "test_time_augmentation", "engine", "precision", "n_boot", "seed")
    settings = {name: found[name] for name in kept if name in found}
    run.parameters({"bundle": found["bundle"], **settings})
    run.tags({"bundle_fingerprint": found["bundle"]["fingerprint"]})
    left_out = ("bundle", "schema_version", "seed", "n_boot", "engine_scans_per_s", "sections")
    run.figures({k: v for k, v in figures.items() if k not in left_out})
    run.files(str(output), files)


def _able_to_group(options: CatalogOptions) -> CatalogOptions:
    """Ids only group scans here: a key need not be given."""
    given = options.identity.secret is not None or options.identity.clear
    return options if given else replace(options, identity=anonymous_options().identity)


@app.command()
@short_errors
@takes(options=NeuronOptions)
def neurons(
    source: Source,
    bundle: BundleOption,
    options: NeuronOptions,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Of the tables.")
    ] = Path("neurons"),
    as_json: Json = False,
) -> None:
    """Which features of the last layer follow which class, and which scans excite them most."""
    from braintumor_ray.neurons.neurons import run_neurons

    table = load_source(source, anonymous_options())
    with progress_bar("neurons") as advance:
        found = run_neurons(table, bundle, output, options, advance)
    print_result(found, as_json, _neuron_lines(found, output))


def _suspect_lines(found: dict[str, Any]) -> list[str]:
    """Suspect labels of each data set, and the split and class that has the largest share."""
    lines = []
    for name, part in found.get("labels", {}).items():
        if "note" in part:
            lines.append(f"suspect labels, {name}: not ranked, {part['note']}")
            continue
        worst = max(part["by_class"], key=lambda row: row["share"])
        lines.append(
            f"suspect labels, {name}: {part['suspects']} of {part['scans']}; most in "
            f"{worst['split']} / {worst['label']}, {worst['suspects']} of {worst['scans']}"
        )
    return lines


def _phases(bundle: str) -> dict[str, Any]:
    """The run's phase table, where the bundle is still in its run; each row is of one rule."""
    from braintumor_ray.evaluation.evaluate import run_phases
    from braintumor_ray.models.bundle import read_bundle_fields

    rows = run_phases(bundle, read_bundle_fields(bundle).positive_classes)
    kept = ("rule", "threshold", "accuracy", "balanced_accuracy", "macro_f1")
    found = {row["phase"]: {key: row[key] for key in kept} for row in rows}
    return {"phases": found} if found else {}


def _neuron_lines(found: dict[str, Any], output: Path) -> str:
    """The neuron that follows each class best, and where everything is."""
    lines = [f"{found['scans']} scans, {found['neurons']} neurons; the best per class:"]
    for name, neurons in found["classes"].items():
        for best in neurons[:1]:
            lines.append(
                f"  {name}: neuron {best['neuron']}, correlation {best['r']:.2f}, AUROC "
                f"{best['auroc']:.2f}, most excited by {best['examples'][0]['path']}"
            )
    lines.append(found["note"])
    return "\n".join([*lines, *(f"{output / name}" for name in found["files"])])


def _evaluation_lines(found: dict[str, Any], output: Path) -> str:
    from braintumor_ray.evaluation.conclusions import conclusions
    from braintumor_ray.evaluation.leakage import describe_check
    from braintumor_ray.metrics.verdicts import DECISION, LIKELIEST

    binary = found["binary"]
    lines = [f"by the {LIKELIEST}: {_figures(found, ('accuracy', 'balanced_accuracy'))}"]
    decided = _figures(found | binary, ("sensitivity", "specificity"))
    if decided:
        lines.append(f"{DECISION} at threshold {binary['threshold']:.3f}: {decided}")
    lines += conclusions(found)
    for level in ("studies", "patients"):
        if (part := found.get(level)) and (chosen := part["chosen"]):
            figures = (
                f"{n} {chosen[n]:.3f}"
                for n in ("sensitivity", "specificity")
                if chosen[n] is not None
            )
            by = f"{chosen['aggregate']} of the slices, chosen on validation"
            lines.append(f"{part['rows']} {level} by the {by}: {', '.join(figures)}")
    if unseen := describe_check(found["leakage"]):
        lines.append(unseen)
    return "\n".join([*lines, f"{found['n']} scans; report: {output / 'report.html'}"])


def _figures(found: dict[str, Any], names: tuple[str, ...]) -> str:
    """Some figures with their intervals, those that are defined."""
    shown = []
    for name in names:
        low, high = found["intervals"][name]["low"], found["intervals"][name]["high"]
        around = f" (95% interval {low:.3f} to {high:.3f})" if low is not None else ""
        if found[name] is not None:
            shown.append(f"{name.replace('_', ' ')} {found[name]:.3f}{around}")
    return ", ".join(shown)
