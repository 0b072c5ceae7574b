"""The command line: parse, call one function, print. Heavy modules are imported in commands."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from braintumor_ray import __version__
from braintumor_ray.console import progress_bar, say, short_errors

if TYPE_CHECKING:
    import pyarrow as pa

app = typer.Typer(
    name="braintumor-ray",
    help="Brain-tumour MRI classification that scales and explains itself. "
    "Research software, not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print results as JSON on stdout.")]
KeyFile = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads this at run time, also on Python 3.10
    typer.Option(help="File with the secret for hashing ids (else BRAINTUMOR_HASH_KEY)."),
]
ClearIds = Annotated[bool, typer.Option(help="Keep patient ids readable: they may name people.")]
PathColumn = Annotated[Optional[str], typer.Option(help="CSV column of the file paths.")]  # noqa: UP045
LabelColumn = Annotated[Optional[str], typer.Option(help="CSV column of the classes.")]  # noqa: UP045
PatientColumn = Annotated[Optional[str], typer.Option(help="CSV column of the patients.")]  # noqa: UP045
Root = Annotated[Optional[str], typer.Option(help="Folder that the CSV's paths are below.")]  # noqa: UP045
PatientPattern = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Regular expression over the path, group 'patient' is the id."),
]
Source = Annotated[str, typer.Argument(help="Folder, CSV, catalog (.parquet) or URI of images.")]
BundleOption = Annotated[
    str, typer.Option("--bundle", "-b", help="Bundle directory: RUN/bundle of a training run.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Precision = Annotated[str, typer.Option(help="auto (bf16 where the hardware gains), fp32 or bf16.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and end.")
    ] = False,
) -> None:
    """Brain-tumour MRI classification that scales and explains itself."""


@app.command()
@short_errors
def phantom(
    directory: Annotated[Path, typer.Argument(help="Where to write the data set.")],
    patients: Annotated[int, typer.Option(min=4, help="Patients over all four classes.")] = 40,
    seed: Annotated[int, typer.Option(help="The same seed gives the same scans.")] = 0,
    as_json: Json = False,
) -> None:
    """Write synthetic scans with exact tumour masks and planted bad files (not real patients)."""
    from dataclasses import asdict

    from braintumor_ray.data.phantom import write_phantoms

    with progress_bar("phantoms") as advance:
        summary = write_phantoms(directory, patients=patients, seed=seed, progress=advance)
    _print(asdict(summary), as_json, f"synthetic scans in {directory / 'scans'}")


@app.command()
@short_errors
def catalog(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="The catalog, .parquet.")],
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    patient_column: PatientColumn = None,
    root: Root = None,
    patient_pattern: PatientPattern = None,
    hash_key_file: KeyFile = None,
    clear_ids: ClearIds = False,
    as_json: Json = False,
) -> None:
    """List every scan of a source: one row per file, or per frame of a volume."""
    from braintumor_ray.data.catalog import write_catalog

    options = _catalog_options(
        path_column, label_column, patient_column, root, patient_pattern, hash_key_file, clear_ids
    )
    table = _load(source, options)
    write_catalog(table, output)
    counts = _value_counts(table, "label")
    _print(
        {"catalog": str(output), "scans": table.num_rows, "labels": counts},
        as_json,
        f"{table.num_rows} scans in {output}: "
        + ", ".join(f"{name or 'unlabelled'} {n}" for name, n in counts.items()),
    )


@app.command()
@short_errors
def split(
    catalog_file: Annotated[Path, typer.Argument(metavar="CATALOG", help="From 'catalog'.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The catalog with splits.")],
    fractions: Annotated[str, typer.Option(help="Shares of train, val and test.")] = "0.7,0.2,0.1",
    seed: Annotated[int, typer.Option(help="Of the shuffle.")] = 0,
    as_json: Json = False,
) -> None:
    """Share scans out, stratified by class; patients and duplicates never straddle a split."""
    from braintumor_ray.data.catalog import read_catalog, write_catalog
    from braintumor_ray.training.split import split_catalog

    with progress_bar("decoding") as advance:
        table = split_catalog(read_catalog(catalog_file), _fractions(fractions), seed, advance)
    write_catalog(table, output)
    counts = _value_counts(table, "split")
    _print(
        {"catalog": str(output), "splits": counts},
        as_json,
        f"{output}: " + ", ".join(f"{name or 'none'} {n}" for name, n in counts.items()),
    )


recipes_app = typer.Typer(help="List the recipes, or show one.", invoke_without_command=True)
app.add_typer(recipes_app, name="recipes")


@recipes_app.callback()
@short_errors
def recipes(context: typer.Context, as_json: Json = False) -> None:
    """List the recipes, or show one."""
    if context.invoked_subcommand:
        return
    from braintumor_ray.recipes.loader import load_recipe, recipe_names

    found = {name: load_recipe(name).description for name in recipe_names()}
    width = max(len(name) for name in found)
    lines = "\n".join(f"{name:<{width}}  {text}" for name, text in found.items())
    _print(found, as_json, lines)


@recipes_app.command("show")
@short_errors
def recipes_show(name: Annotated[str, typer.Argument(help="A recipe, or a TOML file.")]) -> None:
    """Print a recipe, its published figures in the comments."""
    from braintumor_ray.recipes.loader import recipe_text

    typer.echo(recipe_text(name), nl=False)


@app.command()
@short_errors
def train(
    source: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="As for 'catalog'; else $BRAINTUMOR_DATA, else phantoms."),
    ] = None,
    recipe: Annotated[str, typer.Option(help="A name ('recipes' lists them) or a TOML file.")] = (
        "mobilenetv2-finetune"
    ),
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the run; bundle at RUN/bundle.")
    ] = Path("runs/latest"),
    weights: Annotated[
        str, typer.Option(help="imagenet, none or a .safetensors file with timm's keys.")
    ] = "imagenet",
    num_workers: Annotated[str, typer.Option(help="Workers, or MIN:MAX (elastic).")] = "1",
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="A field of the recipe, such as optimizer.lr=3e-4."),
    ] = None,
    classes: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Merge, rename, leave out: tumor=glioma_tumor+pituitary_tumor,no_tumor."),
    ] = None,
    split_by: Annotated[str, typer.Option(help="group, or official (the source's folders).")] = (
        "group"
    ),
    allow_leakage: Annotated[bool, typer.Option(help="Train on a split that leaks.")] = False,
    cache: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Folder of decoded scans, shared by runs; else inside the run."),
    ] = None,
    use_gpu: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--gpu/--no-gpu", help="A GPU per worker; else where the cluster has them."),
    ] = None,
    preview_augmentation: Annotated[
        bool, typer.Option(help="Only draw augmented scans, RUN/augmentation.png.")
    ] = False,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    patient_column: PatientColumn = None,
    root: Root = None,
    patient_pattern: PatientPattern = None,
    hash_key_file: KeyFile = None,
    clear_ids: ClearIds = False,
    as_json: Json = False,
) -> None:
    """Train a recipe on Ray Train and write its bundle; an interrupted run goes on."""
    from braintumor_ray.commands import train_command

    _check_choice("--split-by", split_by, ("group", "official"))
    options = _catalog_options(
        path_column, label_column, patient_column, root, patient_pattern, hash_key_file, clear_ids
    )
    found = train_command(
        source=source,
        recipe=recipe,
        settings=settings or [],
        classes=classes,
        output=output,
        weights=weights,
        num_workers=num_workers,
        split_by=split_by,
        allow_leakage=allow_leakage,
        cache=cache,
        use_gpu=use_gpu,
        preview=preview_augmentation,
        catalog_options=options,
    )
    _print(found, as_json, _train_lines(found))


@app.command()
@short_errors
def score(
    source: Source,
    bundle: BundleOption,
    output: Annotated[str, typer.Option("--output", "-o", help="The results folder or URI.")],
    limit: Annotated[Optional[int], typer.Option(min=1, help="At most so many new scans.")] = None,  # noqa: UP045
    dry_run: Annotated[bool, typer.Option(help="Say what would be scored, and end.")] = False,
    max_quarantine_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="More unreadable scans than this: exit 3.")
    ] = 0.1,
    cam_class: Annotated[
        str, typer.Option(help="Map of the predicted class, or of the likeliest positive one.")
    ] = "predicted",
    block_size: Annotated[int, typer.Option(min=1, help="Scans per commit.")] = 256,
    batch_size: Annotated[Optional[int], typer.Option(min=1, help="Per forward pass.")] = None,  # noqa: UP045
    num_predictors: Annotated[str, typer.Option(help="Predictors, or MIN:MAX.")] = "1",
    device: Device = "auto",
    precision: Precision = "auto",
    decode_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which a decoder counts as stalled.")
    ] = 30.0,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    patient_column: PatientColumn = None,
    root: Root = None,
    patient_pattern: PatientPattern = None,
    hash_key_file: KeyFile = None,
    clear_ids: ClearIds = False,
    as_json: Json = False,
) -> None:
    """Score what is new in an archive: predictions and heatmaps as Parquet, exactly once.

    Run it every night, and again after any crash. Unreadable scans become rows with a reason.
    """
    from braintumor_ray.commands import score_command

    _check_choice("--cam-class", cam_class, ("predicted", "positive"))
    _check_choice("--precision", precision, ("auto", "fp32", "bf16"))
    options = _catalog_options(
        path_column, label_column, patient_column, root, patient_pattern, hash_key_file, clear_ids
    )
    found = score_command(
        source=source,
        bundle=bundle,
        output=output,
        limit=limit,
        dry_run=dry_run,
        cam_class=cam_class,
        block_size=block_size,
        batch_size=batch_size,
        num_predictors=num_predictors,
        device=device,
        precision=precision,
        decode_timeout=decode_timeout,
        catalog_options=options,
    )
    _print(found, as_json, _score_lines(found, output))
    _gate_quarantine(found, max_quarantine_fraction)


@app.command()
@short_errors
def verify(
    results: Annotated[str, typer.Argument(help="A results folder or URI.")],
    as_json: Json = False,
) -> None:
    """Check that every scan has one current row, and nothing else; exit 3 if not."""
    from dataclasses import asdict

    from braintumor_ray.errors import GateError
    from braintumor_ray.scoring.verify import verify as check

    report = check(results)
    if report.differences:
        if as_json:
            typer.echo(json.dumps(asdict(report)))
        for difference in report.differences:
            say(f"differs: {difference}")
        raise GateError(f"'{results}' has {len(report.differences)} differences")
    _print(asdict(report), as_json, f"{report.scans} scans, each with one current row: verified")


@app.command()
@short_errors
def explain(
    files: Annotated[Optional[list[str]], typer.Argument(help="Images to explain.")] = None,  # noqa: UP045
    bundle: Annotated[Optional[str], typer.Option("--bundle", "-b", help="For files.")] = None,  # noqa: UP045
    results: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Draw rows of a results folder instead; needs no model."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the pictures.")] = (
        Path("explained")
    ),
    method: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="gradcam, gradcam_pp, ... or any of the grad-cam library (scorecam)."),
    ] = None,
    layer: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Module of the backbone, for methods of the grad-cam library."),
    ] = None,
    layout: Annotated[str, typer.Option(help="full (a row per method) or compact.")] = "full",
    colormap: Annotated[str, typer.Option(help="jet, turbo, inferno, viridis, ...")] = "jet",
    alpha: Annotated[float, typer.Option(min=0, max=1, help="Opacity of the heatmap.")] = 0.4,
    limit: Annotated[int, typer.Option(min=1, help="At most so many rows of --results.")] = 24,
    cam_class: Annotated[str, typer.Option(help="predicted or positive.")] = "predicted",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Draw scan, heatmap and overlay, for files or for rows that were scored."""
    from braintumor_ray.commands import explain_command

    _check_choice("--layout", layout, ("full", "compact"))
    _check_choice("--cam-class", cam_class, ("predicted", "positive"))
    found = explain_command(
        files=files or [],
        bundle=bundle,
        results=results,
        output=output,
        methods=method or ["gradcam", "gradcam_pp"],
        layer=layer,
        layout=layout,
        colormap=colormap,
        alpha=alpha,
        limit=limit,
        cam_class=cam_class,
        device=device,
    )
    _print(found, as_json, "\n".join(found["pictures"]))


@app.command()
@short_errors
def worklist(
    results: Annotated[str, typer.Argument(help="A results folder or URI.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the lists.")] = Path(
        "worklist"
    ),
    by: Annotated[
        str, typer.Option(help="urgency (tumour probability) or usefulness (of a label: entropy).")
    ] = "urgency",
    limit: Annotated[Optional[int], typer.Option(min=1, help="At most so many scans.")] = None,  # noqa: UP045
    overlays: Annotated[int, typer.Option(min=0, help="Scans with a picture on the page.")] = 50,
    as_json: Json = False,
) -> None:
    """Sort scored scans and patients for a reviewer: CSV and a page, from Parquet alone.

    The CSV has an empty label column: fill it in and give it to 'catalog' to train on.
    """
    from braintumor_ray.evaluation.worklist import make_worklist

    _check_choice("--by", by, ("urgency", "usefulness"))
    found = make_worklist(results, output, by, limit, overlays)  # type: ignore[arg-type]
    _print(found, as_json, _listed(found))


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
    from braintumor_ray.evaluation.neurons import NeuronOptions, run_neurons

    table = _load(source, _anonymous_options())
    with progress_bar("neurons") as advance:
        found = run_neurons(
            table, bundle, output, NeuronOptions(device=device, top=top, limit=limit), advance
        )
    _print(found, as_json, _listed(found))


@app.command()
@short_errors
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write it all.")] = (
        Path("demo-output")
    ),
    as_json: Json = False,
) -> None:
    """Everything on synthetic scans: train, score, verify, explain. No data or network needed."""
    from braintumor_ray.demo import run_demo

    found = run_demo(output, say)
    _print(found, as_json, "\n".join(f"{key}: {value}" for key, value in found.items()))


def main() -> None:
    """Entry point of the `braintumor-ray` command."""
    app()


def _catalog_options(
    path_column: str | None,
    label_column: str | None,
    patient_column: str | None,
    root: str | None,
    patient_pattern: str | None,
    hash_key_file: Path | None,
    clear_ids: bool,
) -> Any:  # noqa: ANN401 - the type is imported late
    from braintumor_ray.data.catalog import CatalogOptions
    from braintumor_ray.data.identity import compile_patient_pattern, load_identity_hash

    return CatalogOptions(
        path_column,
        label_column,
        patient_column,
        root,
        compile_patient_pattern(patient_pattern),
        load_identity_hash(hash_key_file, clear_ids),
    )


def _anonymous_options() -> Any:  # noqa: ANN401 - the type is imported late
    """For commands that only group by patient: a key of the moment, kept nowhere."""
    import secrets

    from braintumor_ray.data.catalog import CatalogOptions
    from braintumor_ray.data.identity import IdentityHash

    return CatalogOptions(identity=IdentityHash(secrets.token_bytes(32)))


def _load(source: str, options: Any) -> "pa.Table":  # noqa: ANN401
    from braintumor_ray.data.catalog import load_catalog

    with progress_bar("cataloguing") as advance:
        return load_catalog(source, options, advance)


def _value_counts(table: "pa.Table", column: str) -> dict[str, int]:
    found = sorted(
        ((item["values"], item["counts"]) for item in table[column].value_counts().to_pylist()),
        key=lambda pair: str(pair[0]),
    )
    return dict(found)


def _fractions(text: str) -> dict[str, float]:
    from braintumor_ray.errors import UsageError

    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 3:
        raise UsageError(f"--fractions '{text}' is not three shares such as 0.7,0.2,0.1")
    return dict(zip(("train", "val", "test"), values, strict=True))


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    from braintumor_ray.errors import UsageError

    if value not in choices:
        raise UsageError(f"{option} '{value}' is unknown; use {' or '.join(choices)}")


def _train_lines(found: dict[str, Any]) -> str:
    if "augmentation" in found:
        return str(found["augmentation"])
    return (
        f"bundle: {found['bundle']}\n"
        f"validation: accuracy {found['accuracy']:.3f}, balanced accuracy "
        f"{found['balanced_accuracy']:.3f} (threshold {found['threshold']:.3f}, temperature "
        f"{found['temperature']:.2f}); see {found['curves']}"
    )


def _score_lines(found: dict[str, Any], output: str) -> str:
    if "would_score" in found:
        return f"{found['would_score']} of {found['scans']} scans would be scored into {output}"
    if found["generation"] is None:
        return f"nothing new: all {found['known']} scans are scored in {output}"
    counts = ", ".join(f"{name} {n}" for name, n in found["status"].items())
    classes = ", ".join(f"{name} {n}" for name, n in found["classes"].items())
    lines = [
        f"{found['scans']} scans in {output}: {counts}",
        f"classes: {classes}",
        f"{found['seconds']:.1f} s, {found['scans_per_s']:.0f} scans/s",
    ]
    if found["share_of_model_speed"] is not None:
        lines[-1] += f" ({found['share_of_model_speed']:.0%} of the model's own speed)"
    lines += [f"quarantined: {reason} ({n})" for reason, n in list(found["reasons"].items())[:5]]
    return "\n".join(lines)


def _gate_quarantine(found: dict[str, Any], most: float) -> None:
    from braintumor_ray.errors import GateError

    share = found.get("quarantine_fraction", 0.0)
    if share > most:
        raise GateError(
            f"{share:.1%} of the scans are quarantined, over --max-quarantine-fraction {most}; "
            "the rows are committed: look at their reasons"
        )


def _listed(found: dict[str, Any]) -> str:
    """Short values of a result, a line each."""
    short = {k: v for k, v in found.items() if isinstance(v, str | int | float)}
    return "\n".join(f"{key}: {value}" for key, value in short.items())


def _print(found: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, default=str))
    else:
        typer.echo(text)


if __name__ == "__main__":
    sys.exit(main())  # type: ignore[func-returns-value]
