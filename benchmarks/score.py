"""Files to Parquet, scans/s: ours beside a plain script, Ray's documented pattern, and the limit.

    python benchmarks/score.py [--count N] [--full] [--engine NAME] [--output DIR]

- limit: cores / (decode + model), in core-seconds per scan, measured by running each alone on all
  cores, before and after each round of ours: its share is of the mean of those two. decode:
  `prepare_file` and `head_weights` on bytes in memory, one single-threaded process per core. model:
  the predictor with both maps on what these make, as the job lays it out (a thread per batch).
- ours: `scoring.job.score` on a local Ray. Its files' times give first row and steady state (rows
  after the first commit / time between first and last commit), so that start-up is left out.
- plain: what a user would write: DataLoader, grad-cam twice, 224 x 224 maps; `--plain` scans.
- ray: Ray's documented batch inference, `read_images` and `map_batches`, predictions only.

`--full` adds 1,000, 3,000 and 10,000 scans (the same files under other names). `--engine openvino`
runs each round with torch and with that engine, by turns; the limit is then of that engine.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from braintumor_ray.models.allocator import allocator_environment

CORES = len(os.sched_getaffinity(0))


def linked_scans(count: int, folder: Path, work: Path) -> str:
    """A folder of `count` links to the scans, repeated under other names where there are fewer."""
    files, kind = common.scan_files(count, work)
    for number in range(count):
        source = files[number % len(files)]
        link = folder / f"{number // len(files):03d}" / f"{number:06d}{source.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source)
    return kind


def files_below(folder: str) -> list[Path]:
    return sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in common.SUFFIXES)


# --- the limit -----------------------------------------------------------------------------------


def decode_alone(options: argparse.Namespace) -> dict:
    """CPU seconds per scan to decode, resize and find the head, in one thread."""
    from braintumor_ray.decode.prepare import PrepareOptions, prepare_file
    from braintumor_ray.explain.regions import head_weights
    from braintumor_ray.models.bundle import load_bundle

    bundle = load_bundle(options.bundle)
    settings = PrepareOptions(preprocessing=bundle.preprocessing)
    cam_shape = bundle.cam_shape
    contents = [path.read_bytes() for path in files_below(options.scans)[: options.sample]]

    def one(content: bytes) -> None:
        (scan,) = prepare_file(content, settings)
        if scan.image is not None:
            head_weights([scan.image], cam_shape)

    one(contents[0])
    start, cpu = time.perf_counter(), time.process_time()
    for content in contents:
        one(content)
    return {
        "wall_s": (time.perf_counter() - start) / len(contents),
        "cpu_s": (time.process_time() - cpu) / len(contents),
    }


def prepared(predictor, paths: Sequence[Path]) -> tuple:
    """Squares and head weights of files, as decoders make them."""
    import numpy as np

    from braintumor_ray.decode.decode import decode
    from braintumor_ray.explain.regions import head_weights

    resize = predictor.bundle.preprocessing.resize
    squares = np.stack([resize(decode(path.read_bytes()).gray) for path in paths])
    return squares, head_weights(squares, predictor.cam_shape)


def model_alone(options: argparse.Namespace) -> dict:
    """Core-seconds per scan of the predictor with both maps, on all cores, and in one thread."""
    from braintumor_ray.predict.predictor import Predictor
    from braintumor_ray.scoring.predict_stage import ParallelPredictor

    predictor = Predictor.from_bundle(
        options.bundle, precision=options.precision, engine=options.engine, parallel=CORES
    )
    squares, heads = prepared(predictor, files_below(options.scans)[: options.sample])
    parallel = ParallelPredictor(predictor, CORES)
    parallel.predict(squares, heads)
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(2):
        parallel.predict(squares, heads)
    count = 2 * len(squares)
    return {
        "core_s": CORES * (time.perf_counter() - start) / count,
        "cpu_s": (time.process_time() - cpu) / count,
        "precision": "bf16" if predictor.bf16 else "fp32",
    }


# --- the contenders ------------------------------------------------------------------------------


def ours(options: argparse.Namespace) -> dict:
    import psutil

    from braintumor_ray.catalog.build import load_catalog
    from braintumor_ray.local_ray import ray_session

    begin = psutil.Process().create_time()
    catalog = load_catalog(options.scans)
    catalogued = time.time()
    from braintumor_ray.scoring.job import ScoreOptions, score
    from braintumor_ray.scoring.options import PredictSettings

    job = ScoreOptions(
        PredictSettings(
            options.bundle,
            precision=options.precision,
            batch_size=options.batch,
            engine=options.engine,
        ),
        block_size=options.block,
    )
    with watched() as seen:
        imported = time.time()
        with ray_session(2):
            started = time.time()
            summary = score(catalog, options.results, job)
            done = time.time()
    rows = committed(Path(options.results) / "rows")
    return {
        "scans": catalog.num_rows,
        "catalogue_s": catalogued - begin,
        "cluster_start_s": started - imported,
        "first_row_s": rows[0][0] - started,
        "job_s": done - started,
        "steady_per_s": steady_rate(rows),
        "whole_per_s": catalog.num_rows / (done - imported),
        "predictor_per_s": summary.model_scans_per_s,
        **sizes(Path(options.results) / "rows"),
        **seen,
    }


def committed(folder: Path) -> list[tuple[float, int]]:
    """When each file was there, and its rows; oldest first."""
    import pyarrow.parquet as pq

    return sorted(
        (path.stat().st_mtime, pq.read_metadata(path).num_rows)
        for path in folder.rglob("*.parquet")
    )


def steady_rate(rows: Sequence[tuple[float, int]]) -> float | None:
    if len(rows) < 3:
        return None
    return sum(count for _, count in rows[1:]) / (rows[-1][0] - rows[0][0])


def sizes(folder: Path) -> dict:
    """Bytes per scan of the files, and of the two map columns in them."""
    import pyarrow.parquet as pq

    whole = maps = count = 0
    for path in folder.rglob("*.parquet"):
        metadata = pq.read_metadata(path)
        whole += path.stat().st_size
        count += metadata.num_rows
        for group in range(metadata.num_row_groups):
            columns = [metadata.row_group(group).column(i) for i in range(metadata.num_columns)]
            maps += sum(
                c.total_compressed_size for c in columns if c.path_in_schema.startswith("gradcam")
            )
    return {"bytes_per_scan": whole / count, "heatmap_bytes_per_scan": maps / count}


@contextmanager
def watched(period_s: float = 0.3) -> Iterator[dict]:
    """Peak private memory of this process and its descendants, and CPU seconds by what they do."""
    seen: dict = {"peak_private_mb": 0.0, "cpu_s": {}}
    stop, cpu, peaks = threading.Event(), {}, {}

    def look() -> None:
        import psutil

        while True:
            total: dict[str, float] = {}
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    memory, times = process.memory_info(), process.cpu_times()
                    part = part_of(" ".join(process.cmdline()))
                except psutil.Error:
                    continue
                total[part] = total.get(part, 0.0) + (memory.rss - memory.shared) / 2**20
                cpu[process.pid] = (part, times.user + times.system)
            seen["peak_private_mb"] = max(seen["peak_private_mb"], sum(total.values()))
            for part, mb in total.items():
                peaks[part] = max(peaks.get(part, 0.0), mb)
            if stop.wait(period_s):
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
        for part, seconds in cpu.values():
            seen["cpu_s"][part] = seen["cpu_s"].get(part, 0.0) + seconds
        seen["peak_mb_by_part"] = peaks


def part_of(title: str) -> str:
    known = (("sandbox_child", "decoder child"), ("Decode", "decode actor"))
    known += (("PredictStage", "predict actor"), ("raylet/raylet", "raylet"), ("gcs_server", "gcs"))
    known += (("benchmarks/score.py", "driver"), ("ray::", "other Ray workers"))
    return next((part for mark, part in known if mark in title), "rest of Ray")


def plain_script(options: argparse.Namespace) -> dict:
    """As a user would write it, from the documentation of torch, timm and grad-cam."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    from braintumor_ray.models.vision_libraries import import_grad_cam, import_timm

    timm, library = import_timm(), import_grad_cam()
    from torchvision import transforms

    model = timm.create_model("mobilenetv2_100", num_classes=4).eval()
    prepare = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )

    class Scans(Dataset):
        paths = files_below(options.scans)[: options.sample]

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> tuple:
            return prepare(Image.open(self.paths[index]).convert("RGB")), str(self.paths[index])

    start = time.perf_counter()
    writer = None
    target = [model.bn2]
    for images, paths in DataLoader(Scans(), batch_size=16, num_workers=2):
        with torch.no_grad():
            probabilities = model(images).softmax(1).numpy()
        with library.GradCAM(model=model, target_layers=target) as cam:
            first = cam(input_tensor=images, targets=None)
        with library.GradCAMPlusPlus(model=model, target_layers=target) as cam:
            second = cam(input_tensor=images, targets=None)
        rows = pa.table(
            {
                "path": list(paths),
                "probabilities": list(probabilities),
                "gradcam": list(first.astype(np.float32).reshape(len(first), -1)),
                "gradcam_pp": list(second.astype(np.float32).reshape(len(second), -1)),
            }
        )
        writer = writer or pq.ParquetWriter(options.results, rows.schema)
        writer.write_table(rows)
    writer.close()
    seconds = time.perf_counter() - start
    count = len(Scans.paths)
    return {
        "scans": count,
        "whole_per_s": count / seconds,
        "bytes_per_scan": Path(options.results).stat().st_size / count,
    }


def ray_pattern(options: argparse.Namespace) -> dict:
    """Ray's documented batch inference: images to predictions, no maps."""
    import ray

    from braintumor_ray.local_ray import ray_session

    class Classify:
        def __init__(self) -> None:
            import torch

            from braintumor_ray.models.vision_libraries import import_timm

            timm = import_timm()
            self.torch = torch
            torch.set_num_threads(CORES)
            self.model = timm.create_model("mobilenetv2_100", num_classes=4).eval()
            self.mean = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
            self.std = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)

        def __call__(self, batch: dict) -> dict:
            images = self.torch.from_numpy(batch.pop("image")).permute(0, 3, 1, 2).float() / 255
            with self.torch.no_grad():
                scores = self.model((images - self.mean) / self.std).softmax(1).numpy()
            return batch | {"label": scores.argmax(1), "probability": scores.max(1)}

    begin = time.time()
    with watched() as seen, ray_session(2):
        started = time.time()
        ray.data.DataContext.get_current().enable_progress_bars = False
        data = ray.data.read_images(
            options.scans, mode="RGB", size=(224, 224), include_paths=True
        ).map_batches(
            Classify, batch_size=16, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1
        )
        data.write_parquet(options.results)
        done = time.time()
    rows = committed(Path(options.results))
    return {
        "scans": sum(count for _, count in rows),
        "cluster_start_s": started - begin,
        "first_row_s": rows[0][0] - started,
        "job_s": done - started,
        "steady_per_s": steady_rate(rows),
        "whole_per_s": sum(count for _, count in rows) / (done - begin),
        **seen,
    }


# --- the run -------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory(prefix="bench-score-") as name:
        work = Path(name)
        bundle = options.bundle or common.untrained_bundle(work / "bundle", tiny=options.tiny)
        counts = [n for n in (1000, 3000, 10_000) if options.full and n != options.count]
        found: dict = {"jobs": {}, "rounds": [], "limits": []}
        for count in (options.count, *counts):
            found["kind"] = linked_scans(count, work / str(count), work)
        scans = str(work / str(options.count))
        values = {"scans": scans, "bundle": bundle, "precision": options.precision}
        values["engine"] = options.engine
        settings = {"block": options.block, "batch": options.batch or 0}

        def ours_on(count: int, again: int = 0, engine: str = options.engine) -> dict:
            place = {
                "scans": str(work / str(count)),
                "results": str(work / f"ours-{count}-{again}-{engine}"),
                "engine": engine,
            }
            job = common.child(__file__, "ours", **values | place, **settings)
            print(job, file=sys.stderr, flush=True)
            return job

        found["limits"].append(limit(values, options.sample))
        by_torch = []
        for number in range(options.rounds):
            if options.engine != "torch":
                by_torch.append(ours_on(options.count, number, "torch"))
            found["rounds"].append(ours_on(options.count, number))
            found["limits"].append(limit(values, options.sample))
        for count in counts:
            found["jobs"][f"ours, {count}"] = ours_on(count)
        if not options.only_ours:
            found["jobs"]["ray"] = common.child(
                __file__, "ray", **values, results=str(work / "ray")
            )
            found["jobs"]["plain"] = common.child(
                __file__, "plain", **values, results=str(work / "plain.parquet"),
                sample=options.plain,
            )  # fmt: skip
    found["shares"] = shares(found["rounds"], found["limits"])
    main = f"ours, {options.count}"
    found["jobs"] = {main: median_job(found["rounds"])} | found["jobs"]
    if by_torch:
        found["jobs"][f"{main}, torch"] = median_job(by_torch)
        pairs = zip(found["rounds"], by_torch, strict=True)
        found["gains"] = [gain(one, other) for one, other in pairs]
    found["main"] = main
    return found


def shares(rounds: Sequence[dict], limits: Sequence[dict]) -> list[float]:
    """Each round's steady state as a share of the mean of the limits around it."""
    rates = [one["limit_per_s"] for one in limits]
    around = [(before + after) / 2 for before, after in pairwise(rates)]
    return [
        job["steady_per_s"] / rate
        for job, rate in zip(rounds, around, strict=True)
        if job["steady_per_s"]
    ]


def gain(job: dict, other: dict) -> float:
    """Steady state over another's; start included where jobs are too short for one."""
    key = "steady_per_s" if job["steady_per_s"] and other["steady_per_s"] else "whole_per_s"
    return job[key] / other[key]


def median_job(rounds: Sequence[dict]) -> dict:
    """The round of median speed, start included."""
    return sorted(rounds, key=lambda job: job["whole_per_s"])[len(rounds) // 2]


def limit(values: dict, sample: int) -> dict:
    """Core-seconds per scan of decoding and of the model, each alone on all cores."""
    together: list[dict] = []
    threads = [
        threading.Thread(
            target=lambda: together.append(
                common.child(__file__, "decode", sample=sample, **values)
            )
        )
        for _ in range(CORES)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    decode = sum(one["cpu_s"] for one in together) / len(together)
    # As the job starts its predictors, so that the limit has the same allocator.
    model = common.child(
        __file__, "model", environment=allocator_environment(), sample=sample, **values
    )
    return {
        "decode_s": decode,
        "model_s": model["core_s"],
        "model_cpu_s": model["cpu_s"],
        "precision": model["precision"],
        "decode_per_s": CORES / decode,
        "model_per_s": CORES / model["core_s"],
        "limit_per_s": CORES / (decode + model["core_s"]),
    }


def report(options: argparse.Namespace) -> None:
    found = run(options)
    jobs, main = found["jobs"], found["jobs"][found["main"]]
    found["checks"] = checks(found, main)
    found["machine"] = common.machine()
    name = "score" if options.engine == "torch" else f"score-{options.engine}"
    known = common.write_json(options.output, name, found)
    draw(known.with_suffix(".png"), found, main)
    print(common.table([job_row(name, job) for name, job in jobs.items()]))
    print("steady state / limit, by round:", [round(share, 3) for share in found["shares"]])
    for number, one in enumerate(found["limits"]):
        print(
            f"limit {number}: decode {1000 * one['decode_s']:.2f} ms + model "
            f"{1000 * one['model_s']:.2f} ms a scan and core: {one['limit_per_s']:.0f}/s "
            f"(decode alone {one['decode_per_s']:.0f}/s, model alone {one['model_per_s']:.0f}/s)"
        )
    print("CPU ms per scan of ours:", per_scan(main))
    print("peak private MB of each part, at whatever moment:")
    print(
        common.table([part_row(name, job) for name, job in jobs.items() if name.startswith("ours")])
    )
    print(common.checks_table(found["checks"]))
    print(f"{found['kind']}, {found['machine']}\nwritten: {known}, {known.with_suffix('.png')}")


def per_scan(job: dict) -> dict:
    parts = sorted(job["cpu_s"].items(), key=lambda pair: -pair[1])
    return {part: round(1000 * seconds / job["scans"], 2) for part, seconds in parts}


def part_row(name: str, job: dict) -> dict:
    parts = sorted(job["peak_mb_by_part"].items(), key=lambda pair: -pair[1])
    return {"job": name} | {part: f"{mb:.0f}" for part, mb in parts}


def job_row(name: str, job: dict) -> dict:
    def shown(key: str, digits: int = 1) -> str:
        value = job.get(key)
        return "" if value is None else f"{value:.{digits}f}"

    return {
        "job": name,
        "scans": job["scans"],
        "steady /s": shown("steady_per_s"),
        "with start /s": shown("whole_per_s"),
        "cluster s": shown("cluster_start_s"),
        "first row s": shown("first_row_s"),
        "bytes/scan": shown("bytes_per_scan", 0),
        "of them maps": shown("heatmap_bytes_per_scan", 0),
        "peak MB": shown("peak_private_mb", 0),
    }


def checks(found: dict, main: dict) -> list[tuple[str, float, str, float]]:
    jobs = found["jobs"]
    list_ = [
        ("heatmap bytes per scan", main["heatmap_bytes_per_scan"], "<=", 1024.0),
        ("cluster start + first row, s", main["cluster_start_s"] + main["first_row_s"], "<=", 15.0),
    ]
    if found["shares"]:
        share = common.spread(found["shares"])["median"]
        list_.append(("steady state / limit, median", share, ">=", 0.85))
    if found.get("gains"):
        middle = common.spread(found["gains"])["median"]
        list_.append(("this engine / torch, steady state, median", middle, ">=", 1.4))
    if "plain" in jobs:
        plain, ray_job = jobs["plain"], jobs["ray"]
        list_ += [
            ("with start / Ray pattern", main["whole_per_s"] / ray_job["whole_per_s"], ">=", 1.0),
        ]
        # The plain script's clock starts after its imports: so does the steady state's.
        rate = main["steady_per_s"] or main["whole_per_s"]
        list_.append(("without start / plain script", rate / plain["whole_per_s"], ">=", 20.0))
    small, large = jobs.get("ours, 1000"), jobs.get("ours, 10000")
    if small and large:
        growth = large["peak_private_mb"] / small["peak_private_mb"]
        list_.append(("peak memory, 10,000 / 1,000 scans", growth, "<=", 1.1))
    return list_


def draw(path: Path, found: dict, main: dict) -> None:
    limits = [one["limit_per_s"] for one in found["limits"]]
    steady = [job["steady_per_s"] or 0.0 for job in found["rounds"]]
    rates = {
        "limit: decode + model alone": common.spread(limits),
        "ours, steady state": common.spread(steady),
        "ours, start included": common.spread([job["whole_per_s"] for job in found["rounds"]]),
    }
    if "ray" in found["jobs"]:
        rates["Ray's pattern, predictions only"] = common.spread(
            [found["jobs"]["ray"]["whole_per_s"]]
        )
        rates["plain script"] = common.spread([found["jobs"]["plain"]["whole_per_s"]])
    cpu = {
        ("ours: " if part in ("predict actor", "decoder child") else "") + part: common.spread(
            [value]
        )
        for part, value in per_scan(main).items()
    }
    title = f"Files to Parquet with both maps: {common.cpu_name()}, {CORES} cores"
    groups = {"scans/s": rates, "where ours spends CPU time, ms per scan": cpu}
    common.bars(path, title, groups, "")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="scans of the main job")
    parser.add_argument("--plain", type=int, default=200, help="scans of the plain script")
    parser.add_argument("--sample", type=int, default=400, help="scans for the limit")
    parser.add_argument("--rounds", type=int, default=3, help="of the main job")
    parser.add_argument("--full", action="store_true", help="1,000, 3,000 and 10,000 scans too")
    parser.add_argument("--tiny", action="store_true", help="seconds only: does it still run?")
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--output", default=common.OUTPUT)
    parser.add_argument("--bundle", help="default: an untrained mobilenetv2_100")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--engine", default="torch", help="also 'openvino' or 'onnxruntime'")
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--batch", type=lambda text: int(text) or None, default=None)
    parser.add_argument("--role", default="whole", choices=["whole", *ROLES])
    parser.add_argument("--scans")
    parser.add_argument("--results")
    options = parser.parse_args()
    if options.tiny:
        options.count, options.plain, options.sample, options.rounds = 24, 8, 8, 1
    return options


ROLES = {
    "decode": decode_alone,
    "model": model_alone,
    "ours": ours,
    "plain": plain_script,
    "ray": ray_pattern,
}


def main() -> None:
    options = parse()
    if options.role == "whole":
        report(options)
    else:
        found = ROLES[options.role](options)
        print(json.dumps(found))


if __name__ == "__main__":
    main()
