"""Predictions and labels of reviewers as files of other tools: COCO and FiftyOne."""

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa

from braintumor_ray import __version__
from braintumor_ray.catalog.reviewed import Key, Reviewed, read_reviewed
from braintumor_ray.errors import UsageError
from braintumor_ray.predict.results import results_folder
from braintumor_ray.progress import Log
from braintumor_ray.review.options import LABELS, ReviewOptions
from braintumor_ray.review.pictures import LARGEST, NoPicture, Pictures
from braintumor_ray.review.scans import RankedScans
from braintumor_ray.serving.web import NOTICE
from braintumor_ray.storage import is_local, local_path, spelled, write_atomically
from braintumor_ray.types import FractionBox

COCO_FILE = ".json"
SHOWN = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")  # what a browser draws, so FiftyOne too
_READ = ("uri", "frame", "pixel_sha256")
_PLACE = ("path", "frame", "width", "height")
_TOLD = ("predicted_class", "probabilities", "decision", "out_of_domain", "known_label")
States = Mapping[Key, Reviewed]


def export_review(
    results: str, source: pa.Table | None, options: ReviewOptions
) -> dict[str, object]:
    """Write predictions and labels for another tool, and nothing else.

    Args:
        results: the folder, a path or URI.
        source: catalog of where the scans are now; None: where they were scored.
        options: `export` and `output` are set.

    Returns:
        `output`, and the numbers of `scans`, `labeled` ones, `boxes` and scans that were `left_out`
        because they cannot be shown.

    Raises:
        UsageError: the output does not fit the format, or `--labels` cannot be read.
        ResultsError: no results, or no scan was scored.
    """
    output = _checked_output(options)
    folder = results_folder(results)
    scans = RankedScans.load(folder, source)
    states = _states(results, options.labels)
    known = {key: states[key] for key in scans.keys if key in states}
    left_out = 0
    if options.export == "coco":
        write_atomically(output, _as_json(coco(scans, known)))
    else:
        left_out = _write_fiftyone(scans, known, Path(output))
    return {
        "output": output,
        "scans": scans.rows.num_rows,
        "labeled": sum(seen.label is not None for seen in known.values()),
        "boxes": sum(len(seen.boxes) for seen in known.values()),
        "left_out": left_out,
    }


def _checked_output(options: ReviewOptions) -> str:
    output = options.output
    if output is None:
        raise UsageError(f"--export {options.export} needs --output: where it is written")
    if options.export == "coco" and not output.endswith(COCO_FILE):
        raise UsageError(f"--output '{output}' is no {COCO_FILE} file, and COCO is one; rename it")
    if options.export == "fiftyone" and not is_local(output):
        raise UsageError(f"--output '{output}' is no folder here; FiftyOne reads local folders")
    return output if not is_local(output) else str(local_path(output))


def _states(results: str, labels: str | None) -> States:
    """The reviewers' labels; nothing where no label was given yet."""
    if labels is not None:
        return read_reviewed(labels)
    own = f"{results.rstrip('/')}/{LABELS}"
    return read_reviewed(own) if is_local(own) and local_path(own).exists() else {}


def coco(scans: RankedScans, states: States) -> dict[str, Any]:
    """COCO's object detection format: boxes of reviewers, in pixels, of the class that they gave.

    COCO has no labels of whole images: they are further keys of each image, which its readers
    ignore.
    """
    names = _class_names(scans, states)
    images = _images(scans, states)
    annotations: list[dict[str, Any]] = []
    for image in images:
        for box in image.pop("boxes"):
            number, category = len(annotations) + 1, names.index(_box_class(image)) + 1
            annotations.append(_annotation(number, image, category, box))
    positive = set(scans.folder.meta["positive_classes"])
    return {
        "info": {
            "description": f"braintumor-ray {__version__}; {NOTICE}",
            "bundle_fingerprint": scans.folder.meta["bundle_fingerprint"],
            "date_created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        },
        "licenses": [],
        "categories": [
            {"id": at, "name": name, "supercategory": "positive" if name in positive else "other"}
            for at, name in enumerate(names, 1)
        ],
        "images": images,
        "annotations": annotations,
    }


def _class_names(scans: RankedScans, states: States) -> list[str]:
    """The network's classes in its order, then further ones that labels name."""
    known = scans.rows["known_label"].to_pylist() + [seen.label for seen in states.values()]
    further = sorted({name for name in known if name} - set(scans.class_names))
    return [*scans.class_names, *further]


def _images(scans: RankedScans, states: States) -> list[dict[str, Any]]:
    """What is known of each scan, in order of urgency."""
    facts = scans.rows.select([*_PLACE, *_TOLD]).to_pylist()
    return [
        {
            "id": row + 1,
            "file_name": scan["path"],
            "scan": scans.names[row],
            **{name: scan[name] for name in ("width", "height", "frame", *_TOLD)},
            "probabilities": dict(zip(scans.class_names, scan["probabilities"], strict=True)),
            **_said(states.get(scans.keys[row])),
        }
        for row, scan in enumerate(facts)
    ]


def _said(seen: Reviewed | None) -> dict[str, Any]:
    return {
        "label": seen and seen.label,
        "verdict": seen and seen.verdict,
        "note": seen.note if seen else "",
        "reviewer": seen.reviewer if seen else "",
        "time": seen.time if seen else "",
        "boxes": seen.boxes if seen else (),
    }


def _box_class(image: Mapping[str, Any]) -> str:
    """The class of a box: the reviewer's, else the source's, else the likeliest one."""
    return str(image["label"] or image["known_label"] or image["predicted_class"])


def _annotation(
    number: int, image: Mapping[str, Any], category: int, box: FractionBox
) -> dict[str, Any]:
    width, height = image["width"], image["height"]
    x, y = box[0] * width, box[1] * height
    w, h = box[2] * width - x, box[3] * height - y
    corners = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {
        "id": number,
        "image_id": image["id"],
        "category_id": category,
        "bbox": [round(value, 2) for value in (x, y, w, h)],
        "area": round(w * h, 2),
        "segmentation": [[round(value, 2) for value in corners]],
        "iscrowd": 0,
    }


def _write_fiftyone(scans: RankedScans, states: States, output: Path) -> int:
    """Three data sets in FiftyOne's own formats over the same pictures; returns how many lack one.

    `predictions` and `labels` are a FiftyOneImageClassificationDataset each, `boxes` is a
    FiftyOneImageDetectionDataset: labels.json, and in data.json the file of each scan.
    """
    data, left_out = _picture_files(scans, output / "pictures")
    names = _class_names(scans, states)
    found: dict[str, dict[str, Any]] = {"predictions": {}, "labels": {}, "boxes": {}}
    for image in _images(scans, states):
        if (name := image["scan"]) not in data:
            continue
        found["predictions"][name] = _predicted(image, names)
        if image["label"]:
            found["labels"][name] = _given(image, names)
        if image["boxes"]:
            found["boxes"][name] = [_detection(image, box, names) for box in image["boxes"]]
    for kind, labels in found.items():
        (output / kind).mkdir(parents=True, exist_ok=True)
        files = {name: data[name] for name in labels}
        write_atomically(output / kind / "data.json", _as_json(files))
        labels_file = {"classes": names, "labels": labels}
        write_atomically(output / kind / "labels.json", _as_json(labels_file))
    return left_out


def _as_json(value: Any) -> bytes:  # noqa: ANN401 - JSON values
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _predicted(image: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    shown = ("path", "frame", "decision", "out_of_domain", "known_label")
    facts = {**image, "path": image["file_name"]}
    return {
        "label": names.index(image["predicted_class"]),
        "confidence": image["probabilities"][image["predicted_class"]],
        "attributes": {name: facts[name] for name in shown if facts[name] is not None},
    }


def _given(image: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    shown = ("verdict", "note", "reviewer", "time")
    return {
        "label": names.index(image["label"]),
        "attributes": {name: image[name] for name in shown if image[name]},
    }


def _detection(image: Mapping[str, Any], box: FractionBox, names: list[str]) -> dict[str, Any]:
    return {
        "label": names.index(_box_class(image)),
        "bounding_box": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
        "attributes": {name: image[name] for name in ("reviewer", "time") if image[name]},
    }


def _picture_files(scans: RankedScans, folder: Path) -> tuple[dict[str, str], int]:
    """A file for each scan that FiftyOne can draw: its own, else a PNG that is written for it."""
    pictures, files, left_out = Pictures(), dict[str, str](), 0
    rows = scans.rows.select(list(_READ))
    try:
        for row, name in enumerate(scans.names):
            uri, frame = (rows[column][row].as_py() for column in ("uri", "frame"))
            if _is_picture(uri, frame):
                files[name] = str(local_path(uri).absolute())
            elif written := _written(pictures, rows.slice(row, 1), folder / f"{name}.png"):
                files[name] = written
            else:
                left_out += 1
    finally:
        pictures.close()
    return files, left_out


def _is_picture(uri: str, frame: int) -> bool:
    if frame or not is_local(uri) or not uri.lower().endswith(SHOWN):
        return False
    path = local_path(uri)
    return path.is_file() and spelled(str(path)) == str(path)  # else its name is no UTF-8


def _written(pictures: Pictures, row: pa.Table, target: Path) -> str | None:
    try:
        content = pictures.scan(row, LARGEST).content
    except NoPicture:
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, content)
    return str(target.absolute())


def exported(found: Mapping[str, object], log: Log) -> str:
    """The line that reports what was written; logs what was left out before."""
    if found["left_out"]:
        log(
            f"{found['left_out']} scans cannot be read where they were scored and are left out; "
            "give the place where they are as --source"
        )
    return (
        f"{found['scans']} scans, {found['labeled']} with a reviewer's label, {found['boxes']} "
        f"boxes: {found['output']}"
    )
