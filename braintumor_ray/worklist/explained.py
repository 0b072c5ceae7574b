"""Pictures of explanations: for files through the model, for scored rows from Parquet alone."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from braintumor_ray.catalog.labels import label_key
from braintumor_ray.decode.burned_in import text_lines
from braintumor_ray.decode.hashes import pixel_sha256
from braintumor_ray.decode.reading import run_on_scans
from braintumor_ray.decode.sandbox import DecodeSandbox
from braintumor_ray.decode.types import Decoded, DecodeOptions
from braintumor_ray.errors import ResultsError, UsageError
from braintumor_ray.explain.overlay import (
    METHOD_LABELS,
    Verdict,
    contact_sheet,
    panel,
    write_png,
)
from braintumor_ray.explain.sheets import ROWS, SheetRow, compare_sheet
from braintumor_ray.models.bundle import load_bundle
from braintumor_ray.pages.names import scan_name
from braintumor_ray.predict.options import PredictorOptions
from braintumor_ray.predict.predictor import Columns, Predictor
from braintumor_ray.predict.results import (
    CHANGED_FILE,
    ResultsFolder,
    committed_runs,
    current_files,
    results_folder,
)
from braintumor_ray.storage import is_local, local_path
from braintumor_ray.worklist.options import ExplainOptions

SHEET_COLUMNS, SHEET_WIDTH = 3, 3300  # of panels; pixels
CONTACT_SHEET = "contact_sheet"
ENOUGH = 5_000  # scored rows among which a few are chosen to be drawn


def explain_files(
    files: Sequence[str],
    bundle: str,
    output: Path,
    options: ExplainOptions,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Predict and draw files, and those in folders; unreadable ones are named with their reason.

    Returns:
        `pictures` (paths), `predictions` (a record per file), `unreadable` (file -> reason),
        `burned_in` (names of scans that seem to carry text, as their pictures then do), and what
        ran the network (`Predictor.runs_in`).

    Raises:
        UsageError: a method, layer or class is unknown, or no file can be read.
    """
    ours, others = _by_library(options)
    files = in_folders(files, options.limit)
    chosen = PredictorOptions.of(options, methods=tuple(ours))
    predictor = Predictor(load_bundle(bundle), chosen)
    classes = explained_classes(predictor, options)
    fields = predictor.bundle.fields
    scans, unreadable = _read_files(files)
    images = [gray for _, gray in scans]
    of_classes: dict[str, Columns] = {}
    if classes:
        columns, of_classes = predictor.explain_classes(images, classes)
    else:
        columns = predictor(images, explain=bool(ours))
    drawings = _Drawings(output, options, files)
    predictions = []
    stems = distinct_stems([name for name, _ in scans])
    for index, (name, gray) in enumerate(scans):
        if classes:
            maps = {label_of(m, c): of_classes[c][m][index] for m in ours for c in classes}
        else:
            maps = {method: columns[method][index] for method in ours}
        for method, of_class in product(others, classes or [columns["cam_class"][index]]):
            key = label_of(method, of_class) if classes else method
            maps[key] = predictor.library_map(gray, of_class, method, options.layer)
        record = _record(name, columns, index, fields.class_names)
        predictions.append(record)
        verdict = _verdict(record["decision"], columns["probabilities"][index], dict(fields))
        predicted, probability = record["predicted_class"], record["probability"]
        drawings.draw(stems[index], name, gray, maps, predicted, probability, verdict)
        if progress:
            progress(index + 1, len(scans))
    found = {"predictions": predictions, "unreadable": unreadable}
    return drawings.finish() | found | predictor.runs_in


def explain_results(
    results: str,
    output: Path,
    options: ExplainOptions,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Draw rows of a results folder from their stored maps, without the model.

    A few pictures show every predicted class, of each the most and the least certain scans. They
    are chosen among the newest `ENOUGH` rows or a little more, so that an archive of any size
    costs the same; maps are read of the files that are drawn only. A file whose pixels are not
    those that were scored counts as unreadable: the stored maps are of another picture.

    Returns:
        `pictures`, `unreadable` (uri -> reason) and `burned_in`, as `explain_files`.

    Raises:
        ResultsError: nothing is committed, a method was not stored, or no chosen scan can be read.
    """
    folder = results_folder(results)
    meta = folder.meta
    _check_stored(results, meta, options)
    manifests = committed_runs(folder)
    chosen = _interesting(_newest(folder, manifests), options.limit)
    table = _read_chosen(folder, chosen, list(options.methods))
    labels = _labels(folder, manifests, chosen)
    classes = {label_key(name): name for name in meta["class_names"]}
    drawings, unreadable = _Drawings(output, options), {}
    for index, (row, decoded) in enumerate(zip(table.to_pylist(), _decoded(table), strict=True)):
        if decoded.gray is None:
            unreadable[row["uri"]] = decoded.reason
            continue
        if pixel_sha256(decoded.gray) != row["pixel_sha256"]:
            unreadable[row["uri"]] = CHANGED_FILE
            continue
        shape = tuple(meta["cam_shape"])
        maps = {m: np.array(row[m], np.float32).reshape(shape) for m in options.methods}
        probability = row["probabilities"][meta["class_names"].index(row["predicted_class"])]
        label = labels.get(row["scan_id"])
        drawings.draw(
            f"{index:03d}_{_stem(row['uri'])}",
            scan_name({"path": row["uri"], "frame": row["frame"]}),
            decoded.gray,
            maps,
            row["predicted_class"],
            probability,
            _verdict(row["decision"], row["probabilities"], meta),
            label,
            classes.get(label_key(label)) if label else None,
        )
        if progress:
            progress(index + 1, table.num_rows)
    if not drawings.rows:
        raise ResultsError(f"no scan of '{results}' can be drawn: {_reasons(unreadable)}")
    return drawings.finish() | {"unreadable": unreadable}


def _check_stored(results: str, meta: Mapping[str, Any], options: ExplainOptions) -> None:
    missing = [m for m in options.methods if m not in meta["cam_methods"]]
    if missing:
        raise ResultsError(
            f"'{results}' holds no maps of '{missing[0]}', only {', '.join(meta['cam_methods'])}; "
            "use 'explain FILE --bundle BUNDLE' for others"
        )
    if options.of_classes:
        raise UsageError(
            f"--class '{options.of_classes[0]}' needs the network: results hold one map a method; "
            "use 'explain FILE --bundle BUNDLE'"
        )


@dataclass
class _Drawings:
    """Pictures of scans as they are drawn, and in the end sheets of all.

    Attributes:
        output: folder of the pictures; it is made.
        options: what they look like.
        scans: files whose place no picture takes.
    """

    output: Path
    options: ExplainOptions
    scans: Sequence[str] = ()
    pictures: list[str] = field(default_factory=list)
    panels: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    rows: list[SheetRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)

    def draw(
        self,
        stem: str,
        name: str,
        gray: npt.NDArray[np.uint8],
        maps: dict[str, npt.NDArray[Any]],
        predicted: str,
        probability: float,
        verdict: Verdict,
        label: str | None = None,
        true_class: str | None = None,
    ) -> None:
        """Draw one scan, in STEM.png.

        A label that is none of the bundle's classes, which may be several labels in one, has no
        true class: the prediction is then neither right nor wrong.
        """
        self.panels.append(
            panel(
                gray,
                maps,
                predicted=predicted,
                probability=probability,
                true_class=true_class,
                layout="full" if self.options.layout == "full" else "compact",
                alpha=self.options.alpha,
                colormap=self.options.colormap,
                mask_head=self.options.mask_head,
                verdict=verdict,
            )
        )
        self.pictures.append(self._write(stem, self.panels[-1]))
        note = f"{predicted} {probability:.1%}" + (f"\nlabel {label}" if label else "")
        self.rows.append(SheetRow(last_part(name), note, gray, maps))

    def finish(self) -> dict[str, Any]:
        """Draw the sheets: `pictures`, sheets first, and `burned_in`, see `explain_files`."""
        self.pictures[:0] = [self._write(*sheet) for sheet in self._sheets()]
        with_text = [row.name for row in self.rows if text_lines(row.gray)]
        return {"pictures": self.pictures, "burned_in": with_text}

    def _sheets(self) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
        """Names and sheets: panels with file names, or `compare_sheet`s."""
        if self.options.layout == "compare":
            for start in range(0, len(self.rows), ROWS):
                yield (
                    f"compare_{start // ROWS + 1:02d}",
                    compare_sheet(
                        self.rows[start : start + ROWS],
                        alpha=self.options.alpha,
                        colormap=self.options.colormap,
                        mask_head=self.options.mask_head,
                    ),
                )
        elif len(self.panels) > 1:
            # Panels of many classes are wide: fewer of them side by side stay readable.
            widest = self.panels[0].shape[1]
            columns = min(max(1, SHEET_WIDTH // widest), SHEET_COLUMNS, len(self.panels))
            size = min(SHEET_WIDTH // columns, max(self.panels[0].shape))
            names = [row.name for row in self.rows]
            yield CONTACT_SHEET, contact_sheet(self.panels, columns, names, size)

    def _write(self, stem: str, image: npt.NDArray[np.uint8]) -> str:
        path = _new_name(self.output / f"{stem}.png", [*self.scans, *self.pictures])
        write_png(path, image)
        return str(path)


def _verdict(
    decision: bool, probabilities: Sequence[float], described: Mapping[str, Any]
) -> Verdict:
    """The decision of a scan.

    Args:
        decision: as predicted.
        probabilities: of the classes, in the order of `class_names`.
        described: `class_names`, `positive_classes` and `threshold`, of a bundle or of results.
    """
    positive = described["positive_classes"]
    pairs = zip(described["class_names"], probabilities, strict=True)
    probability = float(sum(p for name, p in pairs if name in positive))
    return Verdict(decision, probability, described["threshold"])


def _by_library(options: ExplainOptions) -> tuple[list[str], list[str]]:
    """Methods that come from the one forward pass, and those of the grad-cam library."""
    from braintumor_ray.explain import cam, library

    methods = options.methods
    unknown = [m for m in methods if m not in library.METHODS]
    if unknown:
        raise UsageError(f"--method '{unknown[0]}' is unknown; use {', '.join(library.METHODS)}")
    ours = [m for m in methods if m in cam.METHODS and options.layer is None]
    return ours, [m for m in methods if m not in ours]


def _read_files(
    files: Sequence[str],
) -> tuple[list[tuple[str, npt.NDArray[np.uint8]]], dict[str, str]]:
    scans, unreadable = [], {}
    rows = pa.table({"uri": list(files), "frame": [0] * len(files)})
    for name, decoded in zip(files, _decoded(rows), strict=True):
        if decoded.gray is None:
            unreadable[name] = str(decoded.reason)
        else:
            scans.append((name, decoded.gray))
    if not scans:
        raise UsageError(f"no file can be read: {_reasons(unreadable)}")
    return scans, unreadable


def _reasons(unreadable: Mapping[str, str | None]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in unreadable.items())


def _decoded(rows: pa.Table) -> Iterator[Decoded]:
    """The scans of catalog rows at full size."""
    with DecodeSandbox("braintumor_ray.decode.decode:decode_frames") as sandbox:
        yield from run_on_scans(rows, sandbox, DecodeOptions(), _quarantined)


def _quarantined(reason: str) -> Decoded:
    return Decoded(reason=reason, status="quarantined")


def _record(
    name: str, columns: dict[str, Any], index: int, class_names: Sequence[str]
) -> dict[str, Any]:
    predicted = columns["predicted_class"][index]
    probabilities = columns["probabilities"][index].tolist()
    return {
        "file": name,
        "predicted_class": predicted,
        "probability": probabilities[list(class_names).index(predicted)],
        "probabilities": dict(zip(class_names, probabilities, strict=True)),
        "decision": bool(columns["decision"][index]),
        "entropy": float(columns["entropy"][index]),
        "out_of_domain": bool(columns["out_of_domain"][index]),
    }


def _newest(folder: ResultsFolder, manifests: Sequence[dict[str, Any]]) -> pa.Table:
    """What the choice goes by, of newest rows that were scored 'ok', and the file of each."""
    import pyarrow.compute as pc

    columns = ["scan_id", "status", "predicted_class", "entropy"]
    found, count = [], 0
    for path, rows in current_files(folder, manifests[::-1], columns):
        scored = rows.filter(pc.equal(rows["status"], "ok"))
        found.append(scored.append_column("file", pa.array([path] * scored.num_rows, pa.string())))
        count += scored.num_rows
        if count >= ENOUGH:
            break
    return pa.concat_tables(found)


def _interesting(scored: pa.Table, limit: int) -> pa.Table:
    if not scored.num_rows:
        raise ResultsError("no scan was scored 'ok'; there is nothing to draw")
    scored = scored.sort_by([("entropy", "descending")])
    queues: dict[str, list[int]] = {}
    for index, name in enumerate(scored["predicted_class"].to_pylist()):
        queues.setdefault(name, []).append(index)
    both_ends = [_from_both_ends(queue) for queue in queues.values()]
    return scored.take(pa.array(list(_in_turn(both_ends, limit)), pa.int64()))


def _read_chosen(folder: ResultsFolder, chosen: pa.Table, methods: list[str]) -> pa.Table:
    """The rows to draw, in their order, from no more files than hold them."""
    import pyarrow.compute as pc

    columns = ["scan_id", "uri", "frame", "pixel_sha256", "predicted_class", "probabilities"]
    columns += ["decision", *methods]
    tables = []
    for path in dict.fromkeys(chosen["file"].to_pylist()):
        of_file = chosen.filter(pc.equal(chosen["file"], path))
        (rows,) = folder.read_parquet([path], columns)
        tables.append(_with_ids(rows, of_file["scan_id"]))
    table = pa.concat_tables(tables)
    position = {scan: index for index, scan in enumerate(table["scan_id"].to_pylist())}
    return table.take(pa.array([position[scan] for scan in chosen["scan_id"].to_pylist()]))


def _with_ids(rows: pa.Table, ids: pa.ChunkedArray) -> pa.Table:
    import pyarrow.compute as pc

    return rows.filter(pc.is_in(rows["scan_id"], value_set=ids.combine_chunks()))


def _from_both_ends(queue: list[int]) -> list[int]:
    """Last, first, last but one, second, ...: most and least certain by turns."""
    half = (len(queue) + 1) // 2
    pairs = zip_longest(reversed(queue[len(queue) - half :]), queue[: len(queue) - half])
    return [index for pair in pairs for index in pair if index is not None]


def _in_turn(queues: list[list[int]], limit: int) -> Iterator[int]:
    given = 0
    for position in range(max(map(len, queues))):
        for queue in queues:
            if position < len(queue) and given < limit:
                given += 1
                yield queue[position]


def _labels(
    folder: ResultsFolder, manifests: Sequence[dict[str, Any]], chosen: pa.Table
) -> dict[int, str | None]:
    """Labels of the chosen scans, by scan id; newest catalogs first, until all are found."""
    labels: dict[int, str | None] = {}
    for manifest in reversed(manifests):
        for path in manifest["catalogs"]:
            (rows,) = folder.read_parquet([path], ["scan_id", "label"])
            rows = _with_ids(rows, chosen["scan_id"])
            found = zip(rows["scan_id"].to_pylist(), rows["label"].to_pylist(), strict=True)
            labels = dict(found) | labels
            if len(labels) == chosen.num_rows:
                return labels
    return labels


def last_part(name: str) -> str:
    """The name of a file without its folders."""
    return _parts(name)[-1]


def distinct_stems(names: Sequence[str]) -> list[str]:
    """Names for the pictures of scans: their own, and as many folders as distinguish them.

    Also where case is ignored, and different from the name of the contact sheet.
    """
    stems = _distinct_names(names)
    found: list[str] = []
    for name in names:
        number, unique = 2, stems[name]
        while unique.lower() in (CONTACT_SHEET, *(other.lower() for other in found)):
            unique, number = f"{stems[name]}_{number}", number + 1
        found.append(unique)
    return found


def _distinct_names(names: Sequence[str]) -> dict[str, str]:
    """Stems by name, with as few folders as make each the only one, or with all of them."""
    stems: dict[str, str] = {}
    for depth in range(1, max(len(_parts(name)) for name in names) + 1):
        deeper = {name: _stem(name, depth) for name in names}
        counts = Counter(stem.lower() for stem in deeper.values())
        for name, stem in deeper.items():
            if counts[stem.lower()] == 1:
                stems.setdefault(name, stem)
    return {name: stems.get(name, _stem(name)) for name in names}


def _stem(name: str, depth: int = 1) -> str:
    """The last parts of a location without its ending, in characters that are safe everywhere."""
    parts = _parts(name)[-depth:]
    parts[-1] = Path(parts[-1]).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "_".join(parts))[:80] or "scan"


def in_folders(files: Sequence[str], limit: int) -> list[str]:
    """Files as they are, and of each folder at most `limit` scans, evenly from all of it.

    Raises:
        CatalogError: a folder holds no scan.
    """
    from braintumor_ray.catalog.listing import list_files

    found: list[str] = []
    for name in files:
        if not (is_local(name) and local_path(name).is_dir()):
            found.append(name)
            continue
        listed = [file.uri for file in list_files(name).files]
        step = max(len(listed) / limit, 1)
        found += [listed[int(i * step)] for i in range(min(limit, len(listed)))]
    return found


def explained_classes(predictor: Predictor, options: ExplainOptions) -> list[str]:
    """The classes that `--class` names; none: the one of `cam_class`.

    Raises:
        UsageError: a class that the bundle does not have.
    """
    if options.of_classes == ("all",):
        return list(predictor.bundle.fields.class_names)
    for name in options.of_classes:
        predictor.explaining(name)
    return list(options.of_classes)


def label_of(method: str, class_name: str) -> str:
    """The label of a map of one class."""
    return f"{METHOD_LABELS.get(method, method)}, {class_name}"


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"[/\\]+", name) if part not in ("", ".", "..")] or [name]


def _new_name(path: Path, files: Sequence[str]) -> Path:
    """Another name where a picture would take the place of a scan that is explained."""
    taken = {os.path.realpath(local_path(name)) for name in files if is_local(name)}
    while os.path.realpath(path) in taken:
        path = path.with_name(f"{path.stem}_explained.png")
    return path
