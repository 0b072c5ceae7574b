"""What the service does under overload, killed processes and hostile bodies, on loopback.

    python benchmarks/serve_faults.py [--bundle RUN/bundle] [--scans FOLDER] [--output DIR]

Must hold: of ten times the queue at once each request is answered or refused with 503; a killed
predictor or front fails at most the requests in flight on it; 300 hostile bodies get a status each,
none a 5xx, and a good scan is answered afterwards; memory stays bounded.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from benchmarks.serve import PATH, cpu_by_part, free_port, read_scans, some_scans

ERRORS = (OSError, EOFError, ValueError)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", help="default: an untrained mobilenetv2_100")
    parser.add_argument(
        "--scans", help="folder of images; default: real scans where there are any, else phantoms"
    )
    parser.add_argument("--distinct", type=int, default=64, help="scans in use")
    parser.add_argument("--burst", type=int, default=1280, help="requests at once")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=15, help="of load around each kill")
    parser.add_argument("--output", default=common.OUTPUT)
    parser.add_argument("--only", choices=["overload", "kills", "hostile"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        options.bundle = options.bundle or common.untrained_bundle(Path(work) / "bundle")
        options.scans = options.scans or some_scans(Path(work))
        found = serve_and_attack(options)
    for part, figures in found.items():
        for name, value in figures.items():
            print(f"{part + ': ' + name:<44} {value}")
    common.write_json(options.output, "serve_faults", found)


def serve_and_attack(options: argparse.Namespace) -> dict:
    from braintumor_ray.local_ray import ray_session
    from braintumor_ray.serving import app
    from braintumor_ray.serving.command import serving_settings
    from braintumor_ray.serving.haproxy import haproxy_environment
    from braintumor_ray.serving.settings import ServingSettings

    settings, port, scans = (
        serving_settings(ServingSettings(options.bundle)),
        free_port(),
        read_scans(options),
    )
    parts = {
        "overload": lambda: overload(port, scans, options.burst),
        "kills": lambda: kills(port, scans, options),
        "hostile": lambda: hostile(port, scans[0]),
    }
    with haproxy_environment(), ray_session(2):
        app.start(settings, "127.0.0.1", port)
        asyncio.run(warm_up(port, scans))
        found = {name: run() for name, run in parts.items() if options.only in (None, name)}
        app.serve.shutdown()
    return found


async def ask(port: int, body: bytes, path: str = PATH) -> tuple[int, float, float]:
    """Status, seconds to connect, seconds from the request to the whole answer."""
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    connected = time.perf_counter()
    try:
        head = f"POST {path} HTTP/1.1\r\nHost: loopback\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        status = await read_answer(reader)
        return status, connected - start, time.perf_counter() - connected
    finally:
        writer.close()


async def read_answer(reader: asyncio.StreamReader) -> int:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-len")
    )
    await reader.readexactly(length)
    return int(head.split()[1])


async def warm_up(port: int, scans: list[bytes]) -> None:
    for _ in range(4):
        await asyncio.gather(*(ask(port, scan) for scan in scans[:16]))


# Overload


def overload(port: int, scans: list[bytes], burst: int) -> dict:
    """All requests at once, each on its own connection."""
    before = cpu_by_part()
    own = time.process_time()
    with PeakMemory("Front") as memory:
        answers = asyncio.run(all_at_once(port, scans, burst))
    own = time.process_time() - own
    after = cpu_by_part()
    cpu = {part: after[part] - before.get(part, 0.0) for part in after} | {"client": own}
    full = asyncio.run(full_queue(port, scans))
    taken = [seconds for status, _, seconds in answers if status == 200]
    refused = [seconds for status, _, seconds in answers if status == 503]
    alone = [asyncio.run(ask(port, scans[0]))[2] for _ in range(10)]
    return {
        "requests": burst,
        "statuses": dict(Counter(status for status, _, _ in answers)),
        "connect, p50 / p95": spread([connect for _, connect, _ in answers]),
        "503 after the request was sent, p50 / p95": spread(refused),
        "200 after the request was sent, p50 / p95": spread(taken),
        "503 while the queue is full, p50 / p95": spread(full),
        "CPU seconds": ", ".join(f"{part} {s:.2f}" for part, s in cpu.items()),
        "one request afterwards, p50": f"{1000 * statistics.median(alone):.0f} ms",
        "fronts' memory": memory.text(),
    }


async def all_at_once(port: int, scans: list[bytes], burst: int) -> list:
    jobs = (ask(port, scans[i % len(scans)]) for i in range(burst))
    return [
        (0, 0.0, 0.0) if isinstance(answer, BaseException) else answer
        for answer in await asyncio.gather(*jobs, return_exceptions=True)
    ]


async def full_queue(port: int, scans: list[bytes], clients: int = 160, seconds: float = 6) -> list:
    """Seconds that each refusal took while more clients ask than may; the refused wait a little."""
    stop, refused = time.perf_counter() + seconds, []

    async def client(scan: bytes) -> None:
        while time.perf_counter() < stop:
            status, _, took = await ask(port, scan)
            if status == 503:
                refused.append(took)
                await asyncio.sleep(0.5)

    await asyncio.gather(*(client(scans[i % len(scans)]) for i in range(clients)))
    return refused


def spread(seconds: list[float]) -> str:
    if len(seconds) < 2:
        return "none"
    cuts = statistics.quantiles(seconds, n=20)
    return f"{1000 * cuts[9]:.0f} / {1000 * cuts[18]:.0f} ms"


# Killed processes


def kills(port: int, scans: list[bytes], options: argparse.Namespace) -> dict:
    return {part: killed(port, scans, options, part) for part in ("Predictor", "Front")}


def killed(port: int, scans: list[bytes], options: argparse.Namespace, part: str) -> dict:
    """Closed-loop load; a third into it one process of the part is killed."""
    answers: list[tuple[float, int, float]] = []

    async def client() -> None:
        while time.perf_counter() < stop:
            begun = time.perf_counter()
            try:
                status = (await ask(port, scans[len(answers) % len(scans)]))[0]
            except ERRORS:
                status = 0  # the connection was closed
            answers.append((begun, status, time.perf_counter() - begun))

    async def scene() -> float:
        clients = [asyncio.create_task(client()) for _ in range(options.clients)]
        await asyncio.sleep(options.seconds / 3)
        at = time.perf_counter()
        processes(part)[0].kill()
        await asyncio.gather(*clients)
        return at

    stop = time.perf_counter() + options.seconds
    at = asyncio.run(scene())
    failed = [(begun - at, status) for begun, status, _ in answers if status != 200]
    after = [begun + took for begun, status, took in answers if status == 200 and begun + took > at]
    return {
        "requests": len(answers),
        "failed": len(failed),
        "failed_statuses": dict(Counter(status for _, status in failed)),
        "first_answer_after_s": round(min(after) - at, 2) if after else None,
        "slowest_s": round(max(took for _, _, took in answers), 2),
        "back_in_full_after_s": round(wait_for_processes(part) - at, 1),
    }


def processes(part: str) -> list[psutil.Process]:
    mark = f"ServeReplica:braintumor:{part}"
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if mark in " ".join(cmdline(child))
    ]


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has ended meanwhile
        return []


def wait_for_processes(part: str, timeout_s: float = 120) -> float:
    wanted = {"Predictor": 1, "Front": 2}[part]
    stop = time.monotonic() + timeout_s
    while len(processes(part)) < wanted and time.monotonic() < stop:
        time.sleep(0.2)
    return time.perf_counter()


class PeakMemory:
    """The largest resident memory of a part's processes meanwhile, together."""

    def __init__(self, part: str) -> None:
        self._processes, self._done = processes(part), threading.Event()
        self._before = self._peak = self._now()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def text(self) -> str:
        """Before and at most."""
        return f"{self._before:.0f} MiB before, {self._peak:.0f} MiB at most"

    def _now(self) -> float:
        return sum(p.memory_info().rss for p in self._processes if p.is_running()) / 2**20

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self._peak = max(self._peak, self._now())


# Hostile bodies


def hostile(port: int, good: bytes) -> dict:
    with PeakMemory("Front") as memory:
        statuses = {"good": [], **asyncio.run(send_all(port, good))}
    statuses["good"].append(asyncio.run(ask(port, good))[0])
    shown = {kind: dict(Counter(found)) for kind, found in statuses.items()}
    return shown | {"bodies": sum(map(len, statuses.values())), "fronts' memory": memory.text()}


async def send_all(port: int, good: bytes) -> dict[str, list[int]]:
    statuses: dict[str, list[int]] = {}
    for kind, body in bodies(good):
        status, *_ = await ask(port, body, "/v1/predict")
        statuses.setdefault(kind, []).append(status)
    for kind, status in (
        ("headers of 64 KiB", await raw(port, head(b"X-Large: " + b"a" * 65_536, 0), [])),
        ("headers of 300 KiB", await raw(port, head(b"X-Large: " + b"a" * 300_000, 0), [])),
        ("no HTTP", await raw(port, b"\x00\xff hello\r\n\r\n", [])),
        ("length that is no number", await raw(port, head(b"Content-Length: ten"), [])),
        ("1 GB declared", await raw(port, head(b"", 10**9), [b"\0" * 65_536] * 15_259)),
        ("1 GB in chunks", await raw(port, head(b"Transfer-Encoding: chunked"), chunks())),
    ):
        statuses[kind] = [status]
    return statuses


def bodies(good: bytes) -> list[tuple[str, bytes]]:
    from tests.decode.mutations import bomb_png, mutated_images

    mutated = [(kind, body) for _, body, kind in mutated_images(seed=11, n=270)]
    wrong = [b"", b"hello", b'{"a": 1}', b"%PDF-1.7\n", b"PK\x03\x04" + bytes(60), b"\x7fELF" * 20]
    wrong += [b"GIF89a" + bytes(40), b"<svg xmlns='http://www.w3.org/2000/svg'/>", bytes(10_000)]
    cut = [("cut", good[: len(good) * i // 16]) for i in range(1, 15)]
    return mutated + [("wrong type", body) for body in wrong] + cut + [("bomb", bomb_png())]


def head(line: bytes, length: int | None = None) -> bytes:
    lines = [b"POST /v1/predict HTTP/1.1", b"Host: loopback", line]
    lines += [] if length is None else [b"Content-Length: %d" % length]
    return b"\r\n".join(filter(None, lines)) + b"\r\n\r\n"


def chunks() -> list[bytes]:
    return [b"10000\r\n" + b"\0" * 65_536 + b"\r\n"] * 15_259


async def raw(port: int, first: bytes, rest: list[bytes]) -> int:
    """The status for bytes sent as they are, until all are sent or an answer comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.create_task(reader.read(200))
    try:
        for piece in (first, *rest):
            if answer.done():
                break
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
    except ConnectionError:
        pass  # it was refused: the answer, if any, is in the socket
    try:
        found = await asyncio.wait_for(answer, 60)
        return int(found.split()[1]) if found else 0
    except ERRORS:
        return 0
    finally:
        writer.close()


if __name__ == "__main__":
    main()
