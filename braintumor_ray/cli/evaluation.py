"""Commands that judge: audit of data, evaluation of a bundle, its neurons."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from braintumor_ray.cli.console import progress_bar, short_errors
from braintumor_ray.cli.options import (
    BundleOption,
    Device,
    Json,
    Precision,
    Source,
    anonymous_options,
    check_choice,
    listed,
    load_source,
    print_result,
    takes_catalog_options,
)

if TYPE_CHECKING:
    from braintumor_ray.catalog.schema import CatalogOptions

app = typer.Typer()


@app.command()
@short_errors
def audit(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Data sets.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the audit.")] = Path(
        "audit"
    ),
    shortcuts: Annotated[
        bool, typer.Option(help="Can size, border, compression alone predict the class?")
    ] = True,
    workers: Annotated[int, typer.Option(min=1, help="Decoding processes.")] = 2,
    on_ray: Annotated[
        bool, typer.Option("--ray", help="Read the files with Ray Data, on the whole cluster.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find duplicates, leakage, conflicting labels and shortcuts: audit.json and audit.html."""
    from braintumor_ray.audit.audit import run_audit

    names = _distinct_names(sources)
    options = anonymous_options()
    tables = [(n, load_source(s, options)) for n, s in zip(names, sources, strict=True)]
    if on_ray:
        from braintumor_ray.audit.job import fingerprint_on_cluster
        from braintumor_ray.local_ray import ray_session

        with ray_session(workers):
            tables = [(name, fingerprint_on_cluster(table)) for name, table in tables]
    with progress_bar("auditing") as advance:
        found = run_audit(tables, output, workers=workers, shortcuts=shortcuts, progress=advance)
    cross, surplus = found["cross_split"], found["surplus"]
    text = (
        f"across splits: {cross['pixel_identical']} scans pixel-identical to one in another split "
        f"({cross['byte_identical']} byte-identical)\n"
        f"surplus copies: {surplus['pixel_identical']} pixel-identical "
        f"({surplus['byte_identical']} byte-identical)\n"
        f"groups with conflicting labels: {found['groups']['conflicting_labels']}\n"
        f"report: {output / 'audit.html'}"
    )
    print_result(found, as_json, text)


@app.command()
@short_errors
@takes_catalog_options
def evaluate(
    source: Source,
    bundle: BundleOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the report.")],
    split: Annotated[str, typer.Option(help="test, val, train, or all.")] = "test",
    classes: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Labels to the bundle's classes: glioma_tumor=glioma,no_tumor=none+healthy."
        ),
    ] = None,
    truth: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Tumor masks (folder), boxes (CSV, YOLO folder) or outlines (VIA)."),
    ] = None,
    faithfulness: Annotated[
        int, typer.Option(min=0, help="Scans on which faithfulness of the maps is measured.")
    ] = 0,
    compare: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A second bundle, on the same scans (McNemar, paired bootstrap)."),
    ] = None,
    recalibrate: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write a new bundle, temperature and threshold from validation."),
    ] = None,
    tta: Annotated[bool, typer.Option(help="Average over mirrored and turned views.")] = False,
    subgroup: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Catalog column for figures per value; may be repeated."),
    ] = None,
    audit_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--audit", help="audit.json for the report."),
    ] = None,
    section: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="NAME=FILE.json: a further summary for metrics.json and the report."),
    ] = None,
    allow_leakage: Annotated[
        bool, typer.Option(help="Measure scans that were trained on, and say so.")
    ] = False,
    n_boot: Annotated[int, typer.Option(min=0, help="Resamples for the intervals.")] = 1000,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
    *,
    catalog_options: "CatalogOptions",
) -> None:
    """Measure a bundle on a split: metrics.json with intervals, report.html, galleries.

    Give RUN/catalog.parquet, which knows the splits. Exit 3 if scans were trained on.
    """
    from braintumor_ray.evaluation.evaluate import evaluate as measure
    from braintumor_ray.evaluation.heatmaps import faithfulness_section
    from braintumor_ray.evaluation.options import EvaluateOptions
    from braintumor_ray.localization.truth import load_truth

    check_choice("--precision", precision, ("auto", "fp32", "bf16"))
    table = load_source(source, catalog_options)
    options = EvaluateOptions(
        split=split,
        classes=classes,
        device=device,
        precision=precision,  # type: ignore[arg-type]
        tta=tta,
        recalibrate=recalibrate,
        compare=compare,
        allow_leakage=allow_leakage,
        n_boot=n_boot,
        subgroups=tuple(subgroup or ()),
        truth=load_truth(truth) if truth else None,
        audit=audit_file,
        sections=_phases(bundle)
        | _read_sections(section or [])
        | ({"faithfulness": faithfulness_section(faithfulness)} if faithfulness else {}),
    )
    with progress_bar("evaluating") as advance:
        found = measure(table, bundle, output, options, advance)
    print_result(found, as_json, _evaluation_lines(found, output))


@app.command()
@short_errors
def neurons(
    source: Source,
    bundle: BundleOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the tables.")] = Path(
        "neurons"
    ),
    limit: Annotated[Optional[int], typer.Option(min=1, help="At most so many scans.")] = None,  # noqa: UP045
    top: Annotated[int, typer.Option(min=1, help="Neurons shown per class.")] = 6,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Which features of the last layer follow which class, and which scans excite them most."""
    from braintumor_ray.neurons.neurons import NeuronOptions, run_neurons

    table = load_source(source, anonymous_options())
    with progress_bar("neurons") as advance:
        found = run_neurons(
            table, bundle, output, NeuronOptions(device=device, top=top, limit=limit), advance
        )
    print_result(found, as_json, listed(found))


def _phases(bundle: str) -> dict[str, Any]:
    """The run's phase table, where the bundle still lies in its run."""
    path = Path(bundle).parent / "phases.json"
    if not path.is_file():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))
    kept = ("threshold", "accuracy", "balanced_accuracy", "macro_f1")
    return {"phases": {row["phase"]: {key: row[key] for key in kept} for row in rows}}


def _read_sections(named: list[str]) -> dict[str, Any]:
    from braintumor_ray.errors import UsageError

    sections = {}
    for text in named:
        name, _, path = text.partition("=")
        try:
            sections[name] = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"--section '{text}' is not NAME=FILE.json: {error}") from error
    return sections


def _distinct_names(sources: list[str]) -> list[str]:
    """Each source by its last part, by its whole path where two have the same."""
    short = [Path(source.rstrip("/")).name for source in sources]
    return [s if short.count(n) > 1 else n for n, s in zip(short, sources, strict=True)]


def _evaluation_lines(found: dict[str, Any], output: Path) -> str:
    interval = found["intervals"]
    lines = []
    for name in ("accuracy", "balanced_accuracy"):
        low, high = interval[name]["low"], interval[name]["high"]
        around = f" (95% interval {low:.3f} to {high:.3f})" if low is not None else ""
        lines.append(f"{name.replace('_', ' ')}: {found[name]:.3f}{around}")
    binary = found["binary"]
    for name in ("sensitivity", "specificity"):
        if binary[name] is not None:
            lines.append(f"{name} at the bundle's threshold: {binary[name]:.3f}")
    return "\n".join([*lines, f"{found['n']} scans; report: {output / 'report.html'}"])
