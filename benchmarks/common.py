"""What the benchmarks share: the machine in words, paired timing, children, tables, pictures."""

import atexit
import json
import multiprocessing
import os
import platform
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
OUTPUT = "bench-output"
PACKAGES = ("torch", "timm", "grad-cam", "torchcam", "torchvision", "ray", "pyarrow", "numpy")
PACKAGES += ("opencv-python-headless", "pillow", "openvino", "onnxruntime")
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"}


def machine() -> dict:
    """What the figures were measured on."""
    import psutil

    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in PACKAGES},
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "load_before": round(os.getloadavg()[0], 2),
    }


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    max_seconds: float = 120,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Seconds of each call, one of each per round, so that slow minutes hit all alike.

    Every round starts with another one. At least three rounds, whatever they cost.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for call in calls.values() if warm_up else ():
        call()  # not counted: first calls build caches
    begin = time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - begin > max_seconds:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - start)
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, first and third quartile, and how many."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive")
        if len(values) > 1
        else (values[0],) * 3
    )
    return {"median": middle, "q1": low, "q3": high, "n": len(values)}


def ratios(slower: Sequence[float], faster: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the paired quotients of two lists of seconds."""
    return spread([a / b for a, b in zip(slower, faster, strict=True)])


def child(
    file: str,
    role: str,
    timeout_s: float = 1800,
    environment: dict[str, str] | None = None,
    **values: object,
) -> dict:
    """Run a part of a benchmark as a process of its own; its last line is its result.

    Where BENCH_PRELOAD names a module, as the tests do, the process is forked from one that has
    imported it. To import the libraries takes most of the seconds of a part that measures nothing.
    """
    words = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    arguments = [f"--role={role}", *words]
    if module := os.environ.get("BENCH_PRELOAD"):
        return _forked(module, [file, *arguments], timeout_s, environment or {})
    found_by = {"PYTHONPATH": os.pathsep.join([str(PROJECT), *sys.path[1:]])}
    done = subprocess.run(
        [sys.executable, file, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | found_by | (environment or {}),
        timeout=timeout_s,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _forked(module: str, command: list[str], timeout_s: float, environment: dict[str, str]) -> dict:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as out:
        process = context.Process(target=_run_script, args=(command, environment, out.name))
        process.start()
        process.join(timeout_s)
        if process.exitcode != 0:
            process.kill()
            raise subprocess.CalledProcessError(process.exitcode or -1, command)
        return json.loads(out.read().splitlines()[-1])


def _run_script(command: list[str], environment: dict[str, str], out: str) -> None:
    os.environ.update(environment)
    with open(out, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
    sys.argv = command
    multiprocessing.set_start_method("fork", force=True)  # as in a process started by hand
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # not run in processes of multiprocessing; Ray's are among them


def peak_mb(pid: int | str = "self", key: str = "VmHWM") -> float:
    """Highest (VmHWM) or present (VmRSS) resident memory of a process, MB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    return float("nan")


def real_scans() -> Path | None:
    """The folder of real scans, where there is one."""
    place = os.environ.get("BRAINTUMOR_DATA")
    folder = Path(place) if place else PROJECT.parent / "shared" / "data"
    return next((f for f in (folder / "mri4", folder) if f.is_dir()), None)


def scan_files(count: int, work: Path) -> tuple[list[Path], str]:
    """`count` files spread over the real scans, else phantoms written below `work`."""
    folder, kind = real_scans(), "real scans"
    if folder is None:
        folder, kind = phantoms(work, count), "phantoms"
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise SystemExit(f"no images below {folder}; set BRAINTUMOR_DATA to a folder of scans")
    step = max(1, len(paths) // count)
    # The contenders would stop at a damaged file, of which phantoms have some on purpose.
    readable = (path for path in paths[::step] if is_readable(path))
    return list(islice(readable, count)), kind


def is_readable(path: Path) -> bool:
    from braintumor_ray.decode.decode import decode

    return decode(path.read_bytes()).gray is not None


def phantoms(work: Path, count: int) -> Path:
    from braintumor_ray.phantom.dataset import write_phantoms

    write_phantoms(work / "phantoms", patients=max(4, count // 4))
    return work / "phantoms" / "scans"


def untrained_bundle(
    path: Path, backbone: str = "mobilenetv2_100", size: int = 224, tiny: bool = False
) -> str:
    """A bundle of a network without training; speed does not depend on what it has learnt.

    Tiny: of one that needs no timm, which costs each process that loads it seconds.
    """
    from braintumor_ray.models.bundle import save_bundle
    from tests.builders import make_fields, make_model

    if tiny:
        backbone, size = "small-cnn", 64
    model = make_model(backbone, size=size)
    save_bundle(path, make_fields(model.architecture), model, None, "# untrained\n")
    return str(path)


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as a Markdown table, which reads well on a terminal too."""
    names = list(rows[0])
    cells = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
             for line in cells]  # fmt: skip
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def checks_table(checks: Sequence[tuple[str, float, str, float]]) -> str:
    """What must hold: (what, seen, '>=' or '<=', bar)."""
    rows = []
    for what, seen, relation, bar in checks:
        met = seen >= bar if relation == ">=" else seen <= bar
        rows.append(
            {
                "what must hold": what,
                "seen": f"{seen:.3g}",
                "bar": f"{relation} {bar:g}",
                "": "met" if met else "MISSED",
            }
        )
    return table(rows)


def write_json(folder: str, name: str, found: dict) -> Path:
    target = Path(folder) / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return target


def bars(
    path: Path, title: str, groups: Mapping[str, Mapping[str, dict[str, float]]], unit: str
) -> None:
    """Horizontal bars with quartiles: one panel per group, one bar per candidate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = sum(len(group) for group in groups.values())
    figure, panels = pyplot.subplots(
        len(groups),
        1,
        figsize=(9, 0.9 * len(groups) + 0.32 * count),
        squeeze=False,
        gridspec_kw={"height_ratios": [len(group) for group in groups.values()]},
        layout="constrained",
    )
    for panel, (name, group) in zip(panels[:, 0], groups.items(), strict=True):
        middles = [one["median"] for one in group.values()]
        errors = [
            [max(0.0, one["median"] - one["q1"]) for one in group.values()],
            [max(0.0, one["q3"] - one["median"]) for one in group.values()],
        ]
        colors = ["#1f6f8b" if "ours" in label else "#b8c4cc" for label in group]
        drawn = panel.barh(list(group), middles, xerr=errors, color=colors, ecolor="#555555")
        labels = [f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for value in middles]
        panel.bar_label(drawn, labels=labels, padding=6, fontsize=8)
        panel.invert_yaxis()
        panel.margins(x=0.12)
        panel.set_title(name, loc="left", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel(unit)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
