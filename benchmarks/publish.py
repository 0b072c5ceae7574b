"""Scans/s of `publish` by the round trip to the server: both maps, report and capture of each scan.

    python benchmarks/publish.py [--count N] [--whole] [--delays MS ..] [--senders N ..] [--url URL]

Prints a table in Markdown. With one sender, and to a folder, an eighth of the scans is measured;
`--whole` measures all. The server is a process of its own on loopback that waits for the delay
before it answers, and keeps nothing. `--url` is a server to measure in addition, such as an Orthanc
without these objects; each measurement with it sends other objects, which stay there.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import sys  # isort: skip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np

from benchmarks import common

SIDE = 256
_SERVER = """
import sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    def do_POST(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                self.rfile.read(size + 2)
            self.rfile.readline()
        else:
            self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(float(sys.argv[1]))
        self.send_response(200)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    def log_message(self, *args):
        pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def write_scans(folder, count):
    """DICOM of phantom slices, a series of 20 each."""
    from braintumor_ray.phantom.dataset import patient_slices
    from tests.publishing.scans import ORIENTATIONS, scan_dataset, uid, write

    slices = [each for number in range(8) for each in patient_slices(number)]
    orientations = list(ORIENTATIONS.values())
    for number in range(count):
        picture = cv2.resize(slices[number % len(slices)].image, (SIDE, SIDE))
        dataset = scan_dataset(number, orientations[number // 20 % len(orientations)])
        dataset.PixelData = np.asarray(picture ^ (number % 4), np.uint8).tobytes()
        dataset.Rows = dataset.Columns = SIDE
        dataset.StudyInstanceUID = uid("study", number // 20)
        dataset.SeriesInstanceUID = uid("series", number // 20)
        write(folder / f"series{number // 20}", f"{number}.dcm", dataset)


def measured(results, archive, **options):
    """Seconds and CPU seconds of publishing all scans."""
    from braintumor_ray.publishing.options import PublishOptions
    from braintumor_ray.publishing.publish import publish

    shutil.rmtree(results / "published", ignore_errors=True)
    started, cpu = time.perf_counter(), time.process_time()
    found = publish(str(results), archive, PublishOptions(**options))
    return {
        "scans": found["scans"],
        "objects": found["objects"],
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }


def with_delay(delay, **given):
    """`measured` against a server that waits so many milliseconds."""
    command = [sys.executable, "-c", _SERVER, str(delay / 1000)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            return measured(to=url, **given)
        finally:
            server.terminate()


def table(rows):
    """The rows in Markdown."""
    head = "| destination | senders | scans | seconds | scans/s | CPU ms a scan |"
    lines = [head, "|---|---|---|---|---|---|"]
    for (place, senders), row in rows.items():
        rate, cpu = row["scans"] / row["seconds"], 1000 * row["cpu_seconds"] / row["scans"]
        figures = f"{row['scans']} | {row['seconds']:.1f} | {rate:.1f} | {cpu:.0f}"
        lines.append(f"| {place} | {senders or '-'} | {figures} |")
    return "\n".join(lines)


def scans_of(senders, given):
    """How many scans a row is measured with: an eighth of them where one is sent at a time."""
    return given.count if senders > 1 or given.whole else max(1, given.count // 8)


def measure(folder, archive, given):
    """All rows of the table, by destination and number of senders."""
    from tests.evaluation.make_results import make_results

    results = make_results(folder / "results", archive)
    both = {"results": results, "archive": archive}
    found = {}
    measured(output=str(folder / "warm"), limit=2, **both)  # imports and tables of the libraries
    limit = scans_of(1, given)
    found["a folder", 0] = measured(output=str(folder / "out"), limit=limit, **both)
    shutil.rmtree(folder / "out")
    for delay in given.delays:
        for senders in given.senders:
            limit = scans_of(senders, given)
            row = with_delay(delay, senders=senders, limit=limit, **both)
            found[f"a server that answers after {delay:g} ms", senders] = row
    for number, senders in enumerate(given.senders if given.url else []):
        both["results"] = make_results(folder / f"results{number}", archive, seed=7 + number)
        limit = scans_of(senders, given)
        found[given.url, senders] = measured(to=given.url, senders=senders, limit=limit, **both)
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--delays", type=float, nargs="+", default=[0, 20, 100], help="ms")
    parser.add_argument("--senders", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--whole", action="store_true", help="all scans for each row")
    parser.add_argument("--url", help="of a DICOMweb server, in addition")
    given = parser.parse_args()

    from braintumor_ray.catalog.build import load_catalog
    from braintumor_ray.catalog.identity import IdentityHash
    from braintumor_ray.catalog.options import CatalogOptions

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_scans(folder / "archive", given.count)
        archive = load_catalog(folder / "archive", CatalogOptions(identity=IdentityHash(b"key")))
        rows = measure(folder, archive, given)
    print(table(rows))
    named = [{"destination": place, "senders": n, **row} for (place, n), row in rows.items()]
    print(json.dumps({"machine": common.machine(), "rows": named}))


if __name__ == "__main__":
    main()
