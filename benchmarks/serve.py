"""Load on the service over loopback, beside the predictor alone on the same bytes, in one run.

    python benchmarks/serve.py [--bundle RUN/bundle] [--scans FOLDER] [--output DIR]

Client and service share the cores: the client's share of the CPU time is printed. Bounded: at most
`--requests` requests and `--max-seconds` seconds under load. Then as many scans by the client's
`predict_many`, `--batch-size` in a request. Limits: throughput at least 0.75 of the predictor's
own, p50 at low load at most twice a lone prediction, no failed request.
Written to DIR: serve.json, serve.png.
"""

import argparse
import http.client
import itertools
import json
import os
import re
import socket
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common

PATH = "/v1/predict?explain=both&heatmap=array"


def main() -> None:
    options = parse()
    if options.role == "alone":
        print(json.dumps(alone(options)))
    elif options.role == "client":
        print(json.dumps(load(options)))
    elif options.role == "batches":
        print(json.dumps(load_by_batches(options)))
    else:
        report(options, whole_run(options))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", help="default: an untrained mobilenetv2_100")
    parser.add_argument(
        "--scans", help="folder of images; default: real scans where there are any, else phantoms"
    )
    parser.add_argument("--distinct", type=int, default=200, help="scans in use")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=16, help="scans in a batch request")
    parser.add_argument("--single", type=int, default=100, help="requests at low load")
    parser.add_argument("--max-seconds", type=float, default=90, help="of each part under load")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--output", default=common.OUTPUT)
    parser.add_argument("--role", choices=["whole", "alone", "client", "batches"], default="whole")
    parser.add_argument("--port", type=int)
    parser.add_argument("--tiny", action="store_true", help="seconds only: does it still run?")
    options = parser.parse_args()
    if options.tiny:
        options.distinct, options.requests, options.clients, options.single = 8, 40, 4, 4
    return options


def whole_run(options: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as work:
        options.bundle = options.bundle or common.untrained_bundle(
            Path(work) / "bundle", tiny=options.tiny
        )
        options.scans = options.scans or some_scans(Path(work))
        # Before and after: what else runs on the machine may slow the one and not the other.
        first = child(options, "alone")
        served = serve_and_load(options)
        return {"alone": [first, child(options, "alone")], **served}


def child(options: argparse.Namespace, role: str, **changes) -> dict:
    """Run a part of this file as a process of its own, with our options but for `changes`."""
    names = ("bundle", "scans", "distinct", "requests", "clients", "single", "precision")
    same = {name: getattr(options, name) for name in (*names, "max_seconds")}
    return common.child(__file__, role, **same | changes)


def some_scans(work: Path) -> str:
    """A folder of real scans, else of phantoms."""
    return str(common.real_scans() or common.phantoms(work, 240))


def read_scans(options: argparse.Namespace) -> list[bytes]:
    folder = Path(options.scans)
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in common.SUFFIXES)
    step = max(1, len(paths) // options.distinct)
    readable = (path for path in paths[::step] if common.is_readable(path))
    return [path.read_bytes() for path in itertools.islice(readable, options.distinct)]


def alone(options: argparse.Namespace) -> dict:
    """The predictor in one process, files in: scans/s of every layout tried, and one at a time."""
    import torch

    from braintumor_ray.decode.decode import decode
    from braintumor_ray.predict.predictor import Predictor

    scans = read_scans(options)
    predictor = Predictor.from_bundle(options.bundle, precision=options.precision)
    rates, singles = {}, {}
    stop = time.perf_counter() + options.max_seconds
    for threads in sorted({1, os.cpu_count()}):
        torch.set_num_threads(threads)
        for size, ahead in itertools.product((16, 32), (False, True)):
            predictor([decode(data).gray for data in scans[:size]])
            name = f"{threads} threads, batches of {size}{', decoding ahead' * ahead}"
            if time.perf_counter() < stop:
                rates[name] = batched_rate(predictor, decode, scans, size, ahead)
        singles[f"{threads} threads"] = single_ms(predictor, decode, scans[: options.single])
    precision = "bf16" if predictor.bf16 else "fp32"
    return {"scans_per_s": rates, "single_p50_ms": singles, "precision": precision}


def batched_rate(predictor, decode, scans: list[bytes], size: int, ahead: bool) -> float:
    """Scans/s; `ahead`: another thread decodes the next batch while this one is predicted."""
    batches = [scans[i : i + size] for i in range(0, len(scans), size)] * 2

    def grays(batch: list[bytes]) -> list:
        return [decode(data).gray for data in batch]

    start = time.perf_counter()
    if ahead:
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(grays, batches[0])
            for following in [*batches[1:], []]:
                ready, coming = coming, thread.submit(grays, following)
                predictor(ready.result())
    else:
        for batch in batches:
            predictor(grays(batch))
    return 2 * len(scans) / (time.perf_counter() - start)


def single_ms(predictor, decode, scans: list[bytes]) -> float:
    """Median milliseconds from a file's bytes to its prediction."""
    times = []
    predictor([decode(scans[0]).gray])
    for data in scans:
        start = time.perf_counter()
        predictor([decode(data).gray])
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def serve_and_load(options: argparse.Namespace) -> dict:
    from braintumor_ray.local_ray import ray_session
    from braintumor_ray.serving import app
    from braintumor_ray.serving.command import serving_settings
    from braintumor_ray.serving.haproxy import haproxy_environment
    from braintumor_ray.serving.settings import ServingSettings

    settings = serving_settings(
        ServingSettings(options.bundle, replicas=options.replicas, precision=options.precision)
    )
    port = free_port()
    with haproxy_environment(), ray_session(options.replicas + 1, metrics_port=free_port()):
        app.start(settings, "127.0.0.1", port)
        warm = min(100, options.requests)
        child(options, "client", port=port, clients=4, requests=warm)
        start = cpu_by_part()
        low = child(options, "client", port=port, clients=1, requests=options.single)
        before = cpu_by_part()
        low_cpu = difference(start, before)
        high = child(options, "client", port=port)
        after = cpu_by_part()
        sizes = batch_sizes(app.metrics_addresses())
        start = cpu_by_part()
        batches = child(options, "batches", port=port)
        end = cpu_by_part()
        app.serve.shutdown()
    return {
        "low": low,
        "low_cpu_s": low_cpu,
        "high": high,
        "cpu_s": difference(before, after),
        "batch_sizes": sizes,
        "batches": batches,
        "batches_cpu_s": difference(start, end),
    }


def difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}


def load_by_batches(options: argparse.Namespace) -> dict:
    """As many scans as `load` sends, by one client that puts several into each request."""
    from braintumor_ray.client import Client

    scans = itertools.cycle(read_scans(options))
    sent = itertools.islice(scans, options.requests)
    start, cpu, answered = time.perf_counter(), time.process_time(), []
    with Client(f"http://127.0.0.1:{options.port}", timeout_s=120) as client:
        entries = client.predict_many(
            sent, options.batch_size, in_flight=4, explain="both", heatmap="array"
        )
        for entry in entries:
            answered.append(entry.get("error"))
            if time.perf_counter() - start > options.max_seconds:
                break
        entries.close()
    return measured(len(answered), [error for error in answered if error], start, cpu)


def measured(requests: int, failures: list, start: float, cpu: float) -> dict:
    """What a client did since `start`, by the clock, and `cpu`, by its processor time."""
    elapsed = time.perf_counter() - start
    return {
        "requests": requests,
        "failed": len(failures),
        "first_failures": failures[:3],
        "seconds": elapsed,
        "per_s": requests / elapsed,
        "cpu_s": time.process_time() - cpu,
    }


def load(options: argparse.Namespace) -> dict:
    """Closed loop: each client sends its next request when it has its answer."""
    scans = read_scans(options)
    numbers = iter(range(options.requests))
    lock = threading.Lock()
    times, failures = [], []
    stop = time.perf_counter() + options.max_seconds

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", options.port, timeout=120)
        while time.perf_counter() < stop:
            with lock:
                number = next(numbers, None)
            if number is None:
                break
            start = time.perf_counter()
            connection.request("POST", PATH, scans[number % len(scans)])
            response = connection.getresponse()
            body = response.read()
            times.append(time.perf_counter() - start)
            if response.status != 200:
                failures.append([response.status, body[:200].decode(errors="replace")])
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(options.clients)]
    start, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = measured(len(times), failures, start, cpu)
    cuts = statistics.quantiles(times, n=100)
    return found | {f"p{p}_ms": 1000 * cuts[p - 1] for p in (50, 95, 99)}


def cpu_by_part() -> dict[str, float]:
    """CPU seconds of this run's processes so far, by what they do."""
    import psutil

    parts: dict[str, float] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
            title = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        parts[part_of(title)] = parts.get(part_of(title), 0.0) + times.user + times.system
    return parts


def part_of(title: str) -> str:
    known = (("sandbox_child", "decoders"), ("Predictor", "predictor"), ("Front", "front"))
    known += (("ProxyActor", "proxy"), ("haproxy", "proxy"), ("ServeController", "controller"))
    return next((part for mark, part in known if mark in title), "rest of Ray")


def batch_sizes(addresses: list[str], wait_s: float = 20) -> dict:
    """Mean batch size and the histogram's counts, once Ray has exported them."""
    deadline = time.monotonic() + wait_s
    found: dict = {}
    while time.monotonic() < deadline:
        time.sleep(2)
        text = "".join(
            urllib.request.urlopen(address, timeout=5).read().decode() for address in addresses
        )
        latest = histogram(text, "braintumor_batch_size")
        if latest and latest == found:
            break
        found = latest
    return found


def histogram(text: str, name: str) -> dict:
    total = {
        kind: sum(float(v) for v in re.findall(rf"{name}_{kind}{{[^}}]*}} (\S+)", text))
        for kind in ("sum", "count")
    }
    if not total["count"]:
        return {}
    buckets: dict[str, float] = {}
    for limit, value in re.findall(rf'{name}_bucket{{[^}}]*le="([^"]+)"[^}}]*}} (\S+)', text):
        buckets[limit] = buckets.get(limit, 0.0) + float(value)
    return {"mean": total["sum"] / total["count"], "batches": total["count"], "up_to": buckets}


def report(options: argparse.Namespace, found: dict) -> None:
    alone_rate, layout = max(
        (rate, name) for run in found["alone"] for name, rate in run["scans_per_s"].items()
    )
    single = min(ms for run in found["alone"] for ms in run["single_p50_ms"].values())
    high, low, cpu = found["high"], found["low"], found["cpu_s"]
    client_share = high["cpu_s"] / (high["cpu_s"] + sum(cpu.values()))
    limit_ms = 2 * single
    batches = found["batches"]
    found |= {
        "alone_scans_per_s": alone_rate,
        "ratio": high["per_s"] / alone_rate,
        "ratio_batches": batches["per_s"] / alone_rate,
        "client_cpu_share": client_share,
        "low_p50_limit_ms": limit_ms,
        "machine": common.machine(),
    }
    latencies = " / ".join(f"{high[f'p{p}_ms']:.0f}" for p in (50, 95, 99)) + " ms"
    lines = [
        ("predictor alone, files in", f"{alone_rate:.1f} scans/s ({layout})"),
        ("the same, the other layouts", "; ".join(other_rates(found["alone"]))),
        ("service, " + f"{options.clients} clients", f"{high['per_s']:.1f} requests/s"),
        ("requests / failed", f"{high['requests']} / {high['failed']}"),
        ("p50 / p95 / p99 under load", latencies),
        ("single prediction alone, p50", f"{single:.1f} ms"),
        (f"one client, p50 (at most {limit_ms:.0f} ms)", f"{low['p50_ms']:.1f} ms"),
        ("CPU ms per request of one client", ", ".join(per_request(found["low_cpu_s"], low))),
        ("client's share of CPU time", f"{client_share:.1%}"),
        ("CPU ms per request", ", ".join(per_request(cpu, high))),
        ("mean batch size", f"{found['batch_sizes'].get('mean', float('nan')):.1f}"),
        (f"service, batches of {options.batch_size}", f"{batches['per_s']:.1f} scans/s"),
        ("CPU ms per scan of those", ", ".join(per_request(found["batches_cpu_s"], batches))),
        ("precision", found["alone"][0]["precision"]),
    ]
    found["checks"] = [
        ("requests/s, service / predictor alone", found["ratio"], ">=", 0.75),
        ("scans/s by batches / predictor alone", found["ratio_batches"], ">=", 0.75),
        ("one client, p50, ms", low["p50_ms"], "<=", limit_ms),
        ("failed requests", float(sum(each["failed"] for each in (high, low, batches))), "<=", 0.0),
    ]
    known = common.write_json(options.output, "serve", found)
    shown = {"ours, served": common.spread([high["per_s"]])}
    for name in found["alone"][0]["scans_per_s"]:
        rates = [run["scans_per_s"].get(name) for run in found["alone"]]
        shown[f"alone, {name}"] = common.spread([rate for rate in rates if rate])
    title = f"Files in, predictions and both maps out: {common.cpu_name()}"
    common.bars(known.with_suffix(".png"), title, {f"{options.clients} clients": shown}, "scans/s")
    for name, value in lines:
        print(f"{name:<36} {value}")
    print(common.checks_table(found["checks"]))
    print(f"{found['machine']}\nwritten: {known}, {known.with_suffix('.png')}")


def other_rates(runs: list[dict]) -> list[str]:
    return [
        f"{name}: " + ", ".join(f"{run['scans_per_s'].get(name, 0):.1f}" for run in runs)
        for name in runs[0]["scans_per_s"]
    ]


def per_request(cpu: dict[str, float], high: dict) -> list[str]:
    parts = sorted((cpu | {"client": high["cpu_s"]}).items(), key=lambda pair: -pair[1])
    return [f"{name} {1000 * seconds / high['requests']:.1f}" for name, seconds in parts]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
