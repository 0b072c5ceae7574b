"""The explained network as a file for other programs, with a card and an example."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader
from numpy.typing import NDArray

from braintumor_ray.engines.convert import INPUT, openvino_core, to_onnx, to_openvino
from braintumor_ray.engines.graph import ExplainedGraph
from braintumor_ray.engines.options import ExportOptions, Format
from braintumor_ray.errors import BundleError, UsageError
from braintumor_ray.extras import is_installed, require
from braintumor_ray.models.bundle import Bundle, load_bundle

KEY = "braintumor_ray"  # of the metadata
SUFFIXES: Mapping[Format, str] = {"onnx": ".onnx", "openvino": ".xml"}
COMPARED = 4  # random inputs on which the file is held against torch
PROBABILITIES, MAPS = 1e-4, 1e-3  # largest differences, of maps as a share of their scale
NOTE = "Research software, not a medical device."
LICENSE = (
    "Code: Apache-2.0. The weights carry the terms of the data and of the pretrained weights that "
    "they were trained with; see the bundle's model card."
)
Arrays = dict[str, NDArray[Any]]

_LOAD = {
    "onnx": """import onnxruntime

session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["{key}"])
names = [output.name for output in session.get_outputs()]
run = lambda images: dict(zip(names, session.run(names, {{"{input}": images}})))
""",
    "openvino": """import openvino

model = openvino.Core().read_model("{file}")
about = json.loads(model.get_rt_info("{key}").astype(str))
compiled = openvino.compile_model(model, "CPU")
names = [output.get_any_name() for output in model.outputs]
run = lambda images: dict(zip(names, compiled(images).values()))
""",
}
_EXAMPLE = '''"""Predict and explain with {package} and numpy alone. {note}"""
import json
import sys

import numpy as np
{load}
side = about["image_size"]
noise = np.random.default_rng(0).integers(0, 256, (2, side, side), np.uint8)
images = np.load(sys.argv[1]) if len(sys.argv) > 1 else noise  # uint8 (n, side, side): see the card
found = run(images)
positive = [about["class_names"].index(name) for name in about["positive_classes"]]
for p, c, cam in zip(found["probabilities"], found["predicted_class"], found["gradcam"]):
    tumor = p[positive].sum() >= about["threshold"]
    row, column = np.unravel_index(cam.argmax(), cam.shape)
    print(about["class_names"][c], f"{{p[c]:.3f}} tumor={{tumor}}, hottest cell {{row}} {{column}}")
'''


def export_bundle(
    location: str | Path, output: str | Path, options: ExportOptions | None = None
) -> dict[str, Any]:
    """Write a bundle's network with its maps as one file; whole or not at all.

    Args:
        location: the bundle, a folder or URI.
        output: the file, local; a card `FILE.md` and an example `FILE.example.py` go into the
            same folder.
        options: format, and whether maps of every class are outputs.

    Returns:
        `format`, `files` (the graph first), `outputs` (names), and `differences` from torch, None
        where the file's runtime is not installed.

    Raises:
        BundleError: the bundle cannot be loaded.
        UsageError: a head whose gradient is not known as forward operations, a quantized bundle, a
            package that is missing, a file name that does not fit, or one that exists already.
    """
    options = options or ExportOptions()
    target = _target(Path(output), options.format)
    require("onnx" if options.format == "onnx" else "openvino")
    bundle = load_bundle(location)
    bundle.require_float("export")
    fields = bundle.fields
    graph = ExplainedGraph(
        bundle.build_model(),
        bundle.preprocessing,
        fields.temperature,
        all_classes=options.all_classes,
    ).eval()
    about = describe(bundle)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.stem}-", dir=target.parent))
    try:
        made = _write_graph(work / target.name, graph, about, options.format)
        differences = compare(work / target.name, graph, options.format)
        made += _write_texts(work, target, about, options, differences)
        for name in reversed(made):  # the graph itself last
            os.replace(work / name, target.parent / name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {
        "format": options.format,
        "files": [str(target.parent / name) for name in made],
        "outputs": list(graph.output_names),
        "differences": differences,
    }


def describe(bundle: Bundle) -> dict[str, Any]:
    """What a user of the file must know, for its metadata."""
    fields = bundle.fields
    return {
        "note": NOTE,
        "license": LICENSE,
        "bundle_fingerprint": bundle.fingerprint,
        "backbone": fields.architecture.backbone,
        "head": fields.architecture.head,
        "class_names": list(fields.class_names),
        "positive_classes": list(fields.positive_classes),
        "threshold": fields.threshold,
        "temperature": fields.temperature,
        "image_size": fields.preprocessing.image_size,
        "interpolation": fields.preprocessing.interpolation,
        "crop": fields.preprocessing.crop,
        "intensity": fields.preprocessing.intensity,
        "map_shape": list(bundle.map_shape),
        "map_frame": list(bundle.map_frame),
    }


def compare(path: Path, graph: ExplainedGraph, kind: Format) -> dict[str, float] | None:
    """Largest differences between a file and the network in torch; None without its runtime.

    Raises:
        BundleError: they are too large: the file would not be this network.
    """
    if not is_installed("onnxruntime" if kind == "onnx" else "openvino"):
        return None
    side = graph.features.network.architecture.image_size
    images = np.random.default_rng(0).integers(0, 256, (COMPARED, side, side)).astype(np.uint8)
    with torch.no_grad():
        tensors = graph(torch.from_numpy(images))
    wanted = {n: t.numpy() for n, t in zip(graph.output_names, tensors, strict=True)}
    found = RUN[kind](path)(images)
    maps = [name for name in wanted if name.startswith("gradcam")]
    differences = {
        "probabilities": float(np.abs(found["probabilities"] - wanted["probabilities"]).max()),
        "maps": max(_of_scale(found[name], wanted[name]) for name in maps),
    }
    if differences["probabilities"] > PROBABILITIES or differences["maps"] > MAPS:
        raise BundleError(
            f"the {kind} graph differs from the network: {differences['probabilities']:.1e} "
            f"in probabilities and {differences['maps']:.1e} of the maps' scale; nothing was "
            "written; try the other --format"
        )
    return differences


def _of_scale(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), 1e-12))


def _target(path: Path, kind: Format) -> Path:
    suffix = SUFFIXES[kind]
    if path.suffix != suffix:
        raise UsageError(f"--output '{path}': a file of --format {kind} ends in {suffix}")
    for name in _names(path, kind):
        if (path.parent / name).exists():
            raise UsageError(f"'{path.parent / name}' exists already; choose another --output")
    return path.absolute()


def _names(path: Path, kind: Format) -> list[str]:
    """Names of the files that belong to an export, the graph first."""
    weights = [f"{path.stem}.bin"] if kind == "openvino" else []
    return [path.name, *weights, f"{path.name}.md", f"{path.name}.example.py"]


def _write_graph(
    path: Path, graph: ExplainedGraph, about: Mapping[str, Any], kind: Format
) -> list[str]:
    side, names = about["image_size"], graph.output_names
    text = json.dumps(about, ensure_ascii=False)
    if kind == "openvino":
        openvino = require("openvino")
        model = to_openvino(graph, side, names)
        model.set_rt_info(text, KEY)
        openvino.save_model(model, path, compress_to_fp16=False)
        return _names(path, kind)[:2]
    onnx = require("onnx")
    made = onnx.load_from_string(to_onnx(graph, side, names))
    made.doc_string, made.producer_name = NOTE, "braintumor-ray"
    onnx.helper.set_model_props(made, {KEY: text})
    onnx.checker.check_model(made, full_check=True)
    path.write_bytes(made.SerializeToString())
    return [path.name]


def _write_texts(
    work: Path,
    target: Path,
    about: Mapping[str, Any],
    options: ExportOptions,
    differences: Mapping[str, float] | None,
) -> list[str]:
    *_, card, example = _names(target, options.format)
    environment = Environment(
        loader=PackageLoader("braintumor_ray.engines", "."), trim_blocks=True, autoescape=False
    )
    text = environment.get_template("export_card.md.j2").render(
        name=target.name,
        about=about,
        format=options.format,
        key=KEY,
        k=len(about["class_names"]),
        all_classes=options.all_classes,
        differences=differences,
        compared=COMPARED,
        example=example,
    )
    (work / card).write_text(text + "\n", encoding="utf-8")
    load = _LOAD[options.format].format(file=target.name, key=KEY, input=INPUT)
    package = "onnxruntime" if options.format == "onnx" else "openvino"
    program = _EXAMPLE.format(package=package, note=NOTE, load=load)
    (work / example).write_text(program, encoding="utf-8")
    return [card, example]


def _run_onnx(path: Path) -> Callable[[NDArray[np.uint8]], Arrays]:
    session = require("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {INPUT: images}), strict=True))


def _run_openvino(path: Path) -> Callable[[NDArray[np.uint8]], Arrays]:
    core = openvino_core()
    model = core.read_model(path)
    names = [output.get_any_name() for output in model.outputs]  # compiling adds others
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: dict(zip(names, compiled(images).values(), strict=True))


RUN: Mapping[Format, Callable[[Path], Callable[[NDArray[np.uint8]], Arrays]]] = {
    "onnx": _run_onnx,
    "openvino": _run_openvino,
}
