"""Both maps by another engine than torch: what `benchmarks/explain.py --engine NAME` runs.

One process per network, in which all candidates take turns with the same pictures, as the archive
job runs them: a batch for each thread, each batch on one thread, with the job's allocator. In fp32
and, for OpenVINO, bf16:

- torch, ours: both maps by the predictor's torch engine;
- NAME, forward: plain forward of the same folded network, uint8 to logits, nothing else;
- NAME, ours: both maps as the predictor makes them with this engine;
- NAME, ours, one graph: both maps as outputs of the exported graph;
- int8, forward and ours: the quantized network (its other layers in bf16), where NNCF is installed;
- openvino-xai: plain forward with its map of every class inserted (ReciproCAM), with
  `--xai-python`: the interpreter of an environment that has it, as it needs an old OpenVINO. It
  changes the graph there; the graph runs here, in the same OpenVINO as ours, a scan at a time, as
  it takes no more;
- grad-cam, torchcam (fp32): with `--peers`.

Written to DIR: explain-NAME.json and explain-NAME.png.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import common, explain
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.engines.convert import to_openvino
from braintumor_ray.engines.engine import make_engine, run_in_onnxruntime, run_in_openvino
from braintumor_ray.engines.graph import ExplainedGraph, Normalized
from braintumor_ray.explain.cam import cams, class_gradient, predicted_class
from braintumor_ray.extras import is_installed, require
from braintumor_ray.models.allocator import allocator_environment
from braintumor_ray.models.device import use_bf16

NETWORKS = ("mobilenetv2_100", "efficientnet_b0", "densenet121", "resnet50")
CALIBRATION = 24  # pictures; speed does not depend on them
CPU = torch.device("cpu")
# Runs in the environment of openvino-xai: a graph without maps in, one with maps out.
INSERT = """
import sys
import openvino
from openvino_xai import Task, insert_xai
source, target, layer = sys.argv[1:]
model = openvino.Core().read_model(source)
openvino.save_model(insert_xai(model, Task.CLASSIFICATION, target_layer=layer or None), target,
                    compress_to_fp16=False)
"""
Call = Callable[[], object]


class Plain(Normalized):
    """The folded network without maps, uint8 to logits."""

    def forward(self, images: Tensor) -> Tensor:
        return self.network.logits(super().forward(images))


class Candidates:
    """What is timed for one network."""

    def __init__(self, network: str, options: argparse.Namespace) -> None:
        self.size = explain.SIZES.get(network, 224)
        self.network, self.name = network, options.engine
        self.parallel, self.xai_python = options.threads, options.xai_python
        # OpenVINO refuses bf16 where the CPU has none; beside int8 layers it computes in fp32 then.
        self.low = "bf16" if self.name == "openvino" and use_bf16(CPU, "auto") else "fp32"
        self.model = explain.build(network, self.size).requires_grad_(False)
        mean, std = (explain.MEAN,) * 3, (explain.STD,) * 3
        self.preprocessing = Preprocessing(self.size, "area", mean, std)
        self.gray = explain.gray_pictures(options.batch, self.size)
        self.explained: dict[str, Callable[[], dict[str, Tensor]]] = {}

    def calls(self, peers: bool) -> dict[str, Call]:
        found: dict[str, Call] = {}
        for precision in dict.fromkeys(("fp32", self.low)):
            found[f"torch, ours, {precision}"] = self._ours("torch", precision)
            found |= self._engine(precision)
        if self.name == "openvino" and is_installed("nncf"):
            found |= self._int8()
        if self.name == "openvino" and self.xai_python:
            found |= self._openvino_xai()
        if peers:
            case = explain.Case(self.network, len(self.gray), "fp32", "cpu")
            found |= {"grad-cam, fp32": case.grad_cam, "torchcam, fp32": case.torchcam}
        return found

    def _ours(self, name: str, precision: str, quantized: object = None) -> Call:
        engine = make_engine(
            name, self.model, self.preprocessing, CPU, precision, self.parallel, quantized
        )

        def call() -> dict[str, Tensor]:
            features = engine.features(self.gray)
            return cams(features, class_gradient(engine.model, features, predicted_class))

        self.explained[f"{name}{', int8' if quantized else ''}, {precision}"] = call
        return call

    def _engine(self, precision: str) -> dict[str, Call]:
        graph = ExplainedGraph(self.model, self.preprocessing, 1.0)
        plain = Plain(self.model, self.preprocessing)
        return {
            f"{self.name}, forward, {precision}": self._run(plain, ("logits",), precision),
            f"{self.name}, ours, {precision}": self._ours(self.name, precision),
            f"{self.name}, ours, one graph, {precision}": self._run(
                graph, graph.output_names, precision
            ),
        }

    def _run(self, module: nn.Module, outputs: tuple[str, ...], precision: str) -> Call:
        if self.name == "openvino":
            return self._run_graph(to_openvino(module.eval(), self.size, outputs), precision)
        run = run_in_onnxruntime(module.eval(), self.size, outputs, parallel=self.parallel)
        return lambda: run(self.gray)

    def _run_graph(self, graph: object, precision: str) -> Call:
        run = run_in_openvino(graph, bf16=precision == "bf16", parallel=self.parallel)
        return lambda: run(self.gray)

    def _int8(self) -> dict[str, Call]:
        from braintumor_ray.engines.quantize import quantize_backbone, quantize_graph

        pictures = explain.gray_pictures(CALIBRATION, self.size)
        plain = to_openvino(Plain(self.model, self.preprocessing).eval(), self.size, ("logits",))
        backbone = quantize_backbone(self.model, self.preprocessing, pictures)
        return {
            "openvino, int8, forward": self._run_graph(quantize_graph(plain, pictures), self.low),
            "openvino, int8, ours": self._ours("openvino", self.low, backbone),
        }

    def _openvino_xai(self) -> dict[str, Call]:
        openvino = require("openvino")
        graph = to_openvino(Plain(self.model, self.preprocessing).eval(), self.size, ("logits",))
        with tempfile.TemporaryDirectory() as folder:
            source, target = (str(Path(folder) / name) for name in ("plain.xml", "xai.xml"))
            openvino.save_model(graph, source, compress_to_fp16=False)
            layer = last_map_layer(graph)
            command = [self.xai_python, "-c", INSERT, source, target, layer]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            made = openvino.Core().read_model(
                Path(target).read_bytes(), Path(target).with_suffix(".bin").read_bytes()
            )
        return {f"openvino-xai, {p}": self._one_by_one(made, p) for p in ("fp32", "bf16")}

    def _one_by_one(self, graph: object, precision: str) -> Call:
        run = run_in_openvino(graph, bf16=precision == "bf16", parallel=self.parallel)
        return lambda: [run(self.gray[i : i + 1]) for i in range(len(self.gray))]

    def difference(self) -> float:
        """Largest, of the fp32 maps of torch and of the engine, as a share of their scale."""
        ours, other = (self.explained[f"{name}, fp32"]() for name in ("torch", self.name))
        wanted = {name: maps.clone() for name, maps in ours.items()}
        return max(
            float((other[name] - maps).abs().max() / maps.abs().max())
            for name, maps in wanted.items()
        )


def last_map_layer(graph: object) -> str:
    """The last operation whose output is a map with more than one cell: the target layer."""
    names = [
        op.get_friendly_name()
        for op in graph.get_ordered_ops()
        if op.get_output_size() == 1
        and len(shape := op.get_output_partial_shape(0)) == 4
        and all(shape[axis].is_static and shape[axis].get_length() > 1 for axis in (1, 2, 3))
    ]
    return names[-1]


def together(calls: dict[str, Call], pool: ThreadPoolExecutor, parallel: int) -> dict[str, Call]:
    """Each call as many times at once as there are threads."""

    def spread_out(call: Call) -> Call:
        return lambda: list(pool.map(lambda _: call(), range(parallel)))

    return {name: spread_out(call) for name, call in calls.items()}


def time_network(options: argparse.Namespace) -> dict:
    """The figures of one network; runs in a process of its own."""
    torch.set_num_threads(options.threads)
    candidates = Candidates(options.network, options)
    calls = candidates.calls(options.peers)
    difference = candidates.difference()
    torch.set_num_threads(1)
    alone = {"initializer": torch.set_num_threads, "initargs": (1,)}
    with ThreadPoolExecutor(options.threads, **alone) as pool:
        at_once = together(calls, pool, options.threads)
        times = common.interleaved(at_once, options.rounds, options.max_seconds)
    count = options.threads * options.batch
    rates = {
        name: common.spread([count / seconds for seconds in values])
        for name, values in times.items()
    }
    return {
        "rates": rates,
        "ratios": ratios(times, options.engine),
        "difference": difference,
        "batch": options.batch,
    }


def ratios(times: dict[str, list[float]], engine: str) -> dict[str, dict[str, float]]:
    """Speed of the first over the second, by turns."""
    pairs = []
    for precision in ("fp32", "bf16"):
        plain, ours = f"{engine}, forward, {precision}", f"{engine}, ours, {precision}"
        graph = f"{engine}, ours, one graph, {precision}"
        pairs += [(ours, plain), (graph, plain), (ours, f"torch, ours, {precision}")]
        pairs += [(ours, f"openvino-xai, {precision}")]
    pairs += [
        ("openvino, int8, ours", "openvino, ours, bf16"),
        ("openvino, int8, forward", "openvino, forward, bf16"),
        ("openvino, int8, ours", "openvino, int8, forward"),
        (f"{engine}, ours, fp32", "grad-cam, fp32"),
        (f"{engine}, ours, fp32", "torchcam, fp32"),
    ]
    return {
        f"{first} / {second}": common.ratios(times[second], times[first])
        for first, second in pairs
        if first in times and second in times
    }


def checks(cases: dict, engine: str) -> list[tuple[str, float, str, float]]:
    """The bars: maps cost next to nothing, the engine gains over torch, int8 over bf16."""
    bars = {"openvino, int8, forward / openvino, forward, bf16": 1.8}
    for precision in ("fp32", "bf16"):
        ours = f"{engine}, ours, {precision}"
        bars[f"{ours} / {engine}, forward, {precision}"] = 0.95
        bars[f"{ours} / torch, ours, {precision}"] = 1.4
    return [
        (f"{network}: {key}", case["ratios"][key]["median"], ">=", bar)
        for network, case in cases.items()
        for key, bar in bars.items()
        if key in case["ratios"]
    ]


def table(cases: dict) -> str:
    """A row per candidate, a column per network: scans/s, and quartiles."""
    names = list(dict.fromkeys(name for case in cases.values() for name in case["rates"]))
    return common.table(
        [
            {"scans/s": name}
            | {network: cell(case["rates"].get(name)) for network, case in cases.items()}
            for name in names
        ]
    )


def cell(rate: dict[str, float] | None) -> str:
    return "" if rate is None else f"{rate['median']:.1f} ({rate['q1']:.1f} to {rate['q3']:.1f})"


def report(options: argparse.Namespace) -> None:
    """Run all networks, each in a process of its own; print tables, write files."""
    networks = explain.TINY if options.tiny else NETWORKS
    values = {name: getattr(options, name) for name in ("threads", "rounds", "max_seconds")}
    values["peers"] = options.peers
    further = {"xai_python": options.xai_python} if options.xai_python else {}
    batch = (options.batches or [2 if options.tiny else 16])[0]
    cases = {}
    for network in networks:
        if options.only and options.only not in network:
            continue
        cases[network] = common.child(
            str(Path(explain.__file__)), "engine", network=network, batch=batch,
            engine=options.engine, environment=allocator_environment(), **values, **further,
        )  # fmt: skip
        print(f"{table({network: cases[network]})}\n", flush=True)
    found = {
        "machine": common.machine(),
        "threads": options.threads,
        "int8_instructions": int8_instructions(),
        "cases": cases,
        "checks": checks(cases, options.engine),
    }
    known = common.write_json(options.output, f"explain-{options.engine}", found)
    groups = {f"{network}, batch {batch}": case["rates"] for network, case in cases.items()}
    title = f"Logits and both maps: {common.cpu_name()}, {options.threads} batches at a time"
    common.bars(known.with_suffix(".png"), title, groups, "scans/s (median and quartiles)")
    print(table(cases))
    print("maps of torch and of the engine in fp32, largest difference of their scale:")
    print(json.dumps({network: case["difference"] for network, case in cases.items()}))
    print("instructions for int8:", ", ".join(found["int8_instructions"]) or "none")
    print(common.checks_table(found["checks"]))
    print(f"{found['machine']}\nwritten: {known}, {known.with_suffix('.png')}")


def int8_instructions() -> list[str]:
    """What of this CPU multiplies int8: VNNI has twice, AMX eight times the rate of bf16's dot."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    known = ("avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    return [name for name in known if name in flags]
