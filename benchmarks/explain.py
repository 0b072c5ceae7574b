"""Images/s of logits + Grad-CAM + Grad-CAM++, ours beside a plain forward pass, grad-cam, torchcam.

    python benchmarks/explain.py [--full] [--append] [--only TEXT] [--output DIR] [--engine NAME]

Each case (network, batch, precision) is one process in which all candidates take turns with the
same threads and the same images; peak memory comes from one more process per candidate, on CUDA
from the allocator's counts. Plain forward has two rows: as timm builds the network, and in the
layout that is fastest for it. Peers run as their documentation shows, on the network as timm builds
it; in bf16 their target layer is cast to float32, without which grad-cam fails. Written to DIR:
explain.json and explain.png, of a GPU explain-cuda.json and explain-cuda.png.

With --engine openvino (or onnxruntime) another set of rows, see `explain_engines.py`.
"""

import argparse
import copy
import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import common
from braintumor_ray.engines.engine import for_inference
from braintumor_ray.explain.cam import cams, class_gradient, predicted_class
from braintumor_ray.models.classifier import Architecture, Classifier

QUICK = ("mobilenetv2_100", "densenet121", "densenet121-attention")
FULL = (*QUICK, "efficientnet_b0", "resnet50", "inception_v3", "cnn-3conv")
TINY = ("small-cnn",)
SIZES = {"cnn-3conv": 256, "small-cnn": 64}
MEASURED_FOR_MEMORY = ("forward", "ours", "grad-cam", "torchcam")
COMPARED = 32  # images of a batch whose maps are held against the formulas in float64
MEAN, STD = 0.45, 0.225
Maps = dict[str, np.ndarray]


class Case:
    """One network, batch and precision, and what can be run on it."""

    def __init__(self, network: str, batch: int, precision: str, device: str) -> None:
        self.bf16, self.device = precision == "bf16", torch.device(device)
        self.size = SIZES.get(network, 224)
        self.plain = build(network, self.size).to(self.device)
        self.fast_layout = copy.deepcopy(self.plain).to(memory_format=torch.channels_last)
        ready = build(network, self.size).requires_grad_(False)
        self.ours = for_inference(ready, self.device, bf16=self.bf16)
        self.images = pictures(batch, self.size).to(self.device)
        self.fast_images = self.images.contiguous(memory_format=torch.channels_last)

    def candidates(self) -> dict[str, Callable[[], object]]:
        calls = {
            "forward": lambda: self.forward(self.plain, self.images),
            "forward, channels last": lambda: self.forward(self.fast_layout, self.fast_images),
            "forward, prepared as ours": lambda: self.forward(self.ours, self.fast_images),
            "ours": self.explain,
            "ours, maps at image size": lambda: upsampled(self.explain(), self.size),
            "grad-cam": self.grad_cam,
            "torchcam": self.torchcam,
            "torchcam, one forward for both": self.torchcam_shared,
        }
        if not torchcam_is_here():
            calls = {name: call for name, call in calls.items() if "torchcam" not in name}
        return {name: self._synchronized(call) for name, call in calls.items()}

    def _synchronized(self, call: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            result = call()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            return result

        return run

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @torch.no_grad()
    def forward(self, model: Classifier, images: Tensor) -> Tensor:
        with self.autocast():
            features = model.features(images)
        return model.logits(features.float())

    @torch.no_grad()
    def explain(self, classes: Tensor | None = None) -> dict[str, Tensor]:
        with self.autocast():
            features = self.ours.features(self.fast_images)
        choose = predicted_class if classes is None else lambda _: classes
        return cams(features, class_gradient(self.ours, features, choose))

    def grad_cam(self, classes: Tensor | None = None) -> Maps:
        from braintumor_ray.models.vision_libraries import import_grad_cam

        library = import_grad_cam()
        target = library.utils.model_targets.ClassifierOutputTarget
        targets = None if classes is None else [target(int(c)) for c in classes]
        network = Tapped(self.plain, self.autocast)
        found = {}
        for name, method in (
            ("gradcam", library.GradCAM),
            ("gradcam_pp", library.GradCAMPlusPlus),
        ):
            with method(model=network, target_layers=[network.tap]) as cam:
                found[name] = cam(input_tensor=self.images, targets=targets)
        return found

    def torchcam(self, classes: Tensor | None = None) -> dict[str, Tensor]:
        methods = torchcam_methods()
        network = Tapped(self.plain, self.autocast)
        found = {}
        for name, method in methods.items():
            with method(network, network.tap, input_shape=(3, self.size, self.size)) as extractor:
                scores = network(self.images)
                chosen = scores.argmax(1) if classes is None else classes
                found[name] = extractor(chosen.tolist(), scores)[0]
        return found

    def torchcam_shared(self, classes: Tensor | None = None) -> dict[str, Tensor]:
        """Not documented, but possible: both extractors listen to one forward pass."""
        methods = torchcam_methods()
        network = Tapped(self.plain, self.autocast)
        shape = (3, self.size, self.size)
        with (
            methods["gradcam"](network, network.tap, input_shape=shape) as first,
            methods["gradcam_pp"](network, network.tap, input_shape=shape) as second,
        ):
            scores = network(self.images)
            chosen = (scores.argmax(1) if classes is None else classes).tolist()
            maps = first(chosen, scores, retain_graph=True)[0]
            return {"gradcam": maps, "gradcam_pp": second(chosen, scores)[0]}

    def agreement(self) -> dict[str, dict[str, float]]:
        """Largest difference on [0, 1] at image size from the formulas in float64, by candidate."""
        few = copy.copy(self)
        few.images, few.fast_images = self.images[:COMPARED], self.fast_images[:COMPARED]
        exact = copy.deepcopy(self.plain).double().cpu()
        features = exact.features(few.images.double().cpu())
        logits = exact.logits(features)
        classes = logits.argmax(1)
        (g,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), features)
        wanted = upsampled(formulas(features.detach(), g), self.size)
        classes = classes.to(self.device)
        found = {"ours": few.explain(classes), "grad-cam": few.grad_cam(classes)}
        if torchcam_is_here():
            found["torchcam"] = few.torchcam(classes)
        return {
            name: {
                method: float(np.abs(maps[method] - wanted[method]).max())
                for method, maps in ((m, upsampled(raw, self.size)) for m in wanted)
            }
            for name, raw in found.items()
        }


class Tapped(nn.Module):
    """A network whose last feature map passes through a module that peers can hook."""

    def __init__(self, model: Classifier, autocast: Callable[[], AbstractContextManager]) -> None:
        super().__init__()
        self.model, self.tap, self.autocast = model, nn.Identity(), autocast

    def forward(self, images: Tensor) -> Tensor:
        with self.autocast():
            features = self.model.features(images)
        return self.model.logits(self.tap(features.float()))


def formulas(features: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Grad-CAM and Grad-CAM++ as published (arXiv 1610.02391; 1710.11063, Eq. 19)."""
    total = features.sum(dim=(2, 3), keepdim=True)
    alpha = torch.where(g != 0, g**2 / (2 * g**2 + total * g**3), 0)
    weights = {
        "gradcam": g.mean(dim=(2, 3), keepdim=True),
        "gradcam_pp": (alpha * g.relu()).sum(dim=(2, 3), keepdim=True),
    }
    return {name: (w * features).sum(dim=1).relu() for name, w in weights.items()}


def upsampled(maps: dict, size: int) -> Maps:
    """Maps of any size, bilinear to (B, S, S), each stretched to [0, 1]."""
    found = {}
    for name, raw in maps.items():
        full = functional.interpolate(
            torch.as_tensor(raw)[:, None].float(), (size, size), mode="bilinear"
        )[:, 0]
        low, high = (full.amin(dim=(1, 2), keepdim=True), full.amax(dim=(1, 2), keepdim=True))
        found[name] = ((full - low) / (high - low).clamp_min(1e-12)).cpu().numpy()
    return found


def build(network: str, size: int) -> Classifier:
    torch.manual_seed(0)
    backbone, _, _ = network.partition("-attention")
    kind = "attention" if "-attention" in network else "linear"
    if network == "cnn-3conv":
        backbone, kind = network, "flatten"
    model = Classifier(Architecture(backbone, kind, 4, size))
    settle(model, size)
    return model.eval()


@torch.no_grad()
def settle(model: Classifier, size: int) -> None:
    """Give random weights the BatchNorm statistics of their inputs, so that features are alive."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.momentum = 1.0
    model(pictures(8, size))


def pictures(count: int, size: int) -> Tensor:
    gray = torch.from_numpy(gray_pictures(count, size))
    return ((gray.float() / 255 - MEAN) / STD)[:, None].repeat(1, 3, 1, 1)


def gray_pictures(count: int, size: int) -> np.ndarray:
    from tests.builders import disc_scan

    return np.stack([disc_scan(seed, (size, size)) for seed in range(count)])


def torchcam_is_here() -> bool:
    return common.version_of("torchcam") is not None


def import_peers() -> None:
    from braintumor_ray.models.vision_libraries import import_grad_cam

    import_grad_cam()
    if torchcam_is_here():
        torchcam_methods()


def torchcam_methods() -> dict[str, Callable]:
    from braintumor_ray.models.vision_libraries import import_timm

    import_timm()  # makes torchvision importable, which torchcam needs
    from torchcam.methods import GradCAM, GradCAMpp

    return {"gradcam": GradCAM, "gradcam_pp": GradCAMpp}


def time_case(options: argparse.Namespace) -> dict:
    case = Case(options.network, options.batch, options.precision, options.device)
    calls, memory = case.candidates(), {}
    if case.device.type == "cuda":
        memory = gpu_memory(calls)
        calls = {name: call for name, call in calls.items() if memory[name] is not None}
    times = common.interleaved(calls, options.rounds, options.max_seconds)
    rates = {
        name: common.spread([options.batch / seconds for seconds in values])
        for name, values in times.items()
    }
    plain = min(("forward", "forward, channels last"), key=lambda name: -rates[name]["median"])
    against = {
        f"ours / {plain}": common.ratios(times[plain], times["ours"]),
        "ours / forward, prepared as ours": common.ratios(
            times["forward, prepared as ours"], times["ours"]
        ),
    }
    for peer in ("grad-cam", "torchcam", "torchcam, one forward for both"):
        if peer in times:
            against[f"ours / {peer}"] = common.ratios(times[peer], times["ours"])
    shown = {name: mb for name, mb in memory.items() if name in MEASURED_FOR_MEMORY}
    agreement = case.agreement()
    return {"rates": rates, "ratios": against, "agreement": agreement, "memory_mb": shown}


def gpu_memory(calls: dict[str, Callable[[], object]]) -> dict[str, float | None]:
    """MB that each call takes beside what lies there already; None where it does not fit."""
    import_peers()
    found: dict[str, float | None] = {}
    for name, call in calls.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        try:
            call()
            found[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
        except torch.cuda.OutOfMemoryError as error:
            print(f"{name}: {error}", file=sys.stderr)
            found[name] = None
    return found


def measure_memory(options: argparse.Namespace) -> dict:
    case = Case(options.network, options.batch, options.precision, options.device)
    call = case.candidates()[options.candidate]
    import_peers()  # what they import is not what a call costs
    before = common.peak_mb(key="VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # peak starts from here
    call()
    return {"mb": common.peak_mb() - before}


def run_cases(options: argparse.Namespace, earlier: dict) -> dict:
    cases = {}
    for network, batch, precision in wanted_cases(options):
        name = f"{network}, batch {batch}, {precision}"
        if options.only and options.only not in name:
            continue
        common_values = {
            "network": network,
            "batch": batch,
            "precision": precision,
            "device": options.device,
            "threads": options.threads,
        }
        timed = common.child(
            __file__,
            "time",
            **common_values,
            rounds=options.rounds,
            max_seconds=options.max_seconds,
        )
        memory = timed["memory_mb"] or {
            candidate: common.child(__file__, "memory", **common_values, candidate=candidate)["mb"]
            for candidate in MEASURED_FOR_MEMORY
            if candidate in timed["rates"]
        }
        cases[name] = timed | {"memory_mb": memory, "batch": batch, "precision": precision}
        print(f"{name}\n{case_table(cases[name])}\n", flush=True)
        common.write_json(options.output, options.name, {"cases": earlier | cases})
    return cases


def wanted_cases(options: argparse.Namespace) -> list[tuple[str, int, str]]:
    networks = FULL if options.full else TINY if options.tiny else QUICK
    if options.device == "cpu":
        batches = [1, 8, 32] if options.full else [2] if options.tiny else [8]
    else:
        batches = [2] if options.tiny else [256]
    return [
        (network, batch, precision)
        for network in networks
        for batch in options.batches or batches
        for precision in ("fp32", "bf16")
    ]


def case_table(case: dict) -> str:
    rows = []
    for name, rate in case["rates"].items():
        agreement = case["agreement"].get(name, {})
        memory = case["memory_mb"].get(name)
        rows.append(
            {
                "candidate": name,
                "images/s": f"{rate['median']:.1f}",
                "quartiles": f"{rate['q1']:.1f} to {rate['q3']:.1f}",
                "of ours": f"{rate['median'] / case['rates']['ours']['median']:.3f}",
                "peak MB": "" if memory is None else f"{memory:.0f}",
                "off Grad-CAM": f"{agreement['gradcam']:.1e}" if agreement else "",
                "off Grad-CAM++": f"{agreement['gradcam_pp']:.1e}" if agreement else "",
            }
        )
    return common.table(rows)


def checks(cases: dict) -> list[tuple[str, float, str, float]]:
    """The bars, each for the worst case that it speaks of."""
    found = []
    pooled = {n: c for n, c in cases.items() if "cnn-3conv" not in n and "small-cnn" not in n}
    for bar, start, only in (
        (0.9, "ours / forward", [n for n, c in pooled.items() if c["batch"] >= 8]),
        (6.0, "ours / grad-cam", list(pooled)),
        (3.0, "ours / torchcam", list(pooled)),
    ):
        seen = {
            name: next(
                (r["median"] for key, r in pooled[name]["ratios"].items() if key.startswith(start)),
                None,
            )
            for name in only
        }
        found += [
            (f"{start}: {name}", value, ">=", bar)
            for name, value in seen.items()
            if value is not None
        ]
    return found + best_checks(pooled)


def best_checks(cases: dict) -> list[tuple[str, float, str, float]]:
    """Our best setting against grad-cam's default (fp32, as the network comes), per network.

    Both at the batch that suits them best.
    """
    best: dict[str, float] = {}
    default: dict[str, float] = {}
    for name, case in cases.items():
        key = name.partition(",")[0]
        best[key] = max(best.get(key, 0.0), case["rates"]["ours"]["median"])
        if case["precision"] == "fp32" and "grad-cam" in case["rates"]:
            rate = case["rates"]["grad-cam"]["median"]
            default[key] = max(default.get(key, 0.0), rate)
    return [
        (f"ours, best / grad-cam, default: {key}", best[key] / default[key], ">=", 12.0)
        for key in default
    ]


def report(options: argparse.Namespace) -> None:
    known = Path(options.output) / f"{options.name}.json"
    kept = options.append and known.exists()
    earlier = json.loads(known.read_text(encoding="utf-8")) if kept else {"cases": {}}
    cases = earlier["cases"] | run_cases(options, earlier["cases"])
    found = {"machine": common.machine(), "threads": options.threads, "cases": cases}
    found["checks"] = checks(cases)
    shown = ("forward", "forward, channels last", "ours", "torchcam", "grad-cam")
    groups = {
        name: {label: case["rates"][label] for label in shown if label in case["rates"]}
        for name, case in cases.items()
    }
    on = f"{common.cpu_name()}, {options.threads} threads"
    if options.device != "cpu":
        on = torch.cuda.get_device_name(options.device)
        found["machine"]["gpu"] = on
    title = f"Logits, Grad-CAM and Grad-CAM++: {on}"
    common.write_json(options.output, options.name, found)
    common.bars(known.with_suffix(".png"), title, groups, "images/s (median and quartiles)")
    if found["checks"]:
        print(common.checks_table(found["checks"]))
    print(f"\n{found['machine']}\nwritten: {known}, {known.with_suffix('.png')}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="all networks, batches 1, 8 and 32")
    parser.add_argument("--tiny", action="store_true", help="seconds only: does it still run?")
    parser.add_argument("--append", action="store_true", help="keep cases of the file in --output")
    parser.add_argument("--only", help="cases whose name holds this")
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--output", default=common.OUTPUT)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--max-seconds", type=float, default=60, help="per case, after 3 rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--engine", choices=["torch", "openvino", "onnxruntime"], default="torch")
    parser.add_argument("--xai-python", help="interpreter that has openvino-xai, with --engine")
    parser.add_argument("--peers", type=int, nargs="?", const=1, default=0, help="with --engine")
    parser.add_argument("--role", choices=["whole", "time", "memory", "engine"], default="whole")
    parser.add_argument("--network")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--precision")
    parser.add_argument("--candidate")
    options = parser.parse_args()
    options.name = "explain" if options.device == "cpu" else "explain-cuda"
    return options


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    if options.role == "time":
        print(json.dumps(time_case(options)))
    elif options.role == "memory":
        print(json.dumps(measure_memory(options)))
    elif options.engine != "torch":
        from benchmarks import explain_engines

        if options.role == "engine":
            print(json.dumps(explain_engines.time_network(options)))
        else:
            explain_engines.report(options)
    else:
        report(options)


if __name__ == "__main__":
    main()
