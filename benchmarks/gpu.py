"""What one GPU wants: the whole predictor by batches at a time, and CPUs to decode for it.

    python benchmarks/gpu.py [--bundle DIR] [--batches N ...] [--tiny] [--output DIR]

- network: `Predictor.forward` alone, squares in memory to logits and both maps.
- predictor: all of it (gate, calibration, shares of heat), with 1, 2, ... batches at a time, each
  on a thread of its own, whose CPU work overlaps another's network.
- decode: a file's bytes to square and head, CPU seconds of one core (as in `score.py`).

CPUs per GPU, at least: the fastest predictor's rate, times a scan's CPU seconds in decoder and
predictor. Reading, pipes and Ray come on top.
Runs without Ray, and on a CPU too where there is no GPU.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common, score


def measure(options: argparse.Namespace) -> dict:
    """Rates of the network and of the predictor, for one batch size and number of threads."""
    import numpy as np
    import torch

    from braintumor_ray.predict.predictor import Predictor
    from braintumor_ray.scoring.predict_stage import ParallelPredictor

    predictor = Predictor.from_bundle(
        options.bundle, options.device, batch_size=options.batch or None
    )
    few = score.prepared(predictor, score.files_below(options.scans)[: options.block])
    squares, heads = (np.resize(values, (options.block, *values.shape[1:])) for values in few)
    network = timed(lambda: predictor.forward(squares), options)
    parallel = ParallelPredictor(predictor, options.threads)  # sets torch's threads for good
    whole = timed(lambda: parallel.predict(squares, heads), options)
    on_gpu = predictor.device.type == "cuda"
    return {
        "network_per_s": network["per_s"],
        "predictor_per_s": whole["per_s"],
        "predictor_cpu_s": whole["cpu_s"],
        "precision": "bf16" if predictor.bf16 else "fp32",
        "batch": predictor.batch_size,
        "device": torch.cuda.get_device_name(predictor.device) if on_gpu else "CPU",
        "gpu_mb": torch.cuda.max_memory_allocated(predictor.device) / 2**20 if on_gpu else None,
    }


def timed(call: Callable[[], object], options: argparse.Namespace) -> dict:
    for _ in range(2):
        call()  # not counted: first calls build caches and choose kernels
    rates, costs = [], []
    for _ in range(options.rounds):
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(options.blocks):
            call()
        count = options.blocks * options.block
        rates.append(count / (time.perf_counter() - start))
        costs.append((time.process_time() - cpu) / count)
    return {"per_s": common.spread(rates), "cpu_s": common.spread(costs)["median"]}


def run(options: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as name:
        work = Path(name)
        bundle = options.bundle or common.untrained_bundle(work / "bundle", tiny=options.tiny)
        kind = score.linked_scans(options.count, work / "scans", work)
        values = {"scans": str(work / "scans"), "bundle": bundle}
        decode = common.child(score.__file__, "decode", sample=options.count, **values)
        cases = []
        for batch in options.batches:
            for threads in options.threads_list:
                case = common.child(
                    __file__, "measure", **values, device=options.device, batch=batch,
                    threads=threads, block=options.block, blocks=options.blocks,
                    rounds=options.rounds,
                )  # fmt: skip
                cases.append(case | {"threads": threads})
                print(cases[-1], file=sys.stderr, flush=True)
    best = max(cases, key=lambda case: case["predictor_per_s"]["median"])
    return {
        "kind": kind,
        "decode_cpu_s": decode["cpu_s"],
        "cases": cases,
        "best": best,
        "cpus_per_gpu": best["predictor_per_s"]["median"]
        * (decode["cpu_s"] + best["predictor_cpu_s"]),
    }


def report(options: argparse.Namespace) -> None:
    found = run(options) | {"block": options.block, "machine": common.machine()}
    known = common.write_json(options.output, "gpu", found)
    rows = [
        {
            "batch": case["batch"],
            "batches at a time": case["threads"],
            "network, scans/s": f"{case['network_per_s']['median']:,.0f}",
            "predictor, scans/s": f"{case['predictor_per_s']['median']:,.0f}",
            "CPU ms a scan": f"{1000 * case['predictor_cpu_s']:.3f}",
            "GPU MB": "" if case["gpu_mb"] is None else f"{case['gpu_mb']:.0f}",
        }
        for case in found["cases"]
    ]
    best = found["best"]
    shown = {"network alone": best["network_per_s"]} | {
        f"ours, batch {case['batch']}, {case['threads']} at a time": case["predictor_per_s"]
        for case in found["cases"]
    }
    title = f"From squares to predictions and both maps: {best['device']}"
    common.bars(known.with_suffix(".png"), title, {best["precision"]: shown}, "scans/s")
    print(f"{best['device']}, {best['precision']}, blocks of {options.block} {found['kind']}")
    print(common.table(rows))
    print(
        f"decode: {1000 * found['decode_cpu_s']:.3f} ms CPU a scan, "
        f"{1 / found['decode_cpu_s']:,.0f} scans/s a core; CPUs that keep the fastest predictor "
        f"busy, at least: {found['cpus_per_gpu']:.1f}\n\n{found['machine']}\n"
        f"written: {known}, {known.with_suffix('.png')}"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", help="default: an untrained mobilenetv2_100")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--count", type=int, default=300, help="different scans")
    parser.add_argument("--block", type=int, default=1024, help="scans per call")
    parser.add_argument("--blocks", type=int, default=4, help="calls per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[0], help="0: the default")
    parser.add_argument("--threads-list", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", default=common.OUTPUT)
    parser.add_argument("--role", choices=["whole", "measure"], default="whole")
    parser.add_argument("--scans")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tiny", action="store_true", help="seconds only: does it still run?")
    options = parser.parse_args()
    if options.tiny:
        options.count, options.block, options.blocks, options.rounds = 8, 16, 1, 2
    return options


def main() -> None:
    options = parse()
    if options.role == "measure":
        print(json.dumps(measure(options)))
    else:
        report(options)


if __name__ == "__main__":
    main()
