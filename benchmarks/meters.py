"""What metrics cost: microseconds of CPU a scan that the meters add to stages with a mock model.

    python benchmarks/meters.py [--blocks 400] [--rounds 5]

In one actor of Ray, rounds with and without meters in turn. CPU time is of the whole process, with
the thread that exports. The mock stages cost microseconds and are no yardstick: compare with the
CPU a scan of a job with a mock predictor, `benchmarks/feed.py`.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.scale import MockDecode, MockPredict
from benchmarks.written_archive import catalog_part


def measure(bundle, blocks, rounds, size):
    """CPU seconds for a scan, [without, with meters] in each round; inside an actor."""
    from braintumor_ray.models.bundle import load_bundle
    from braintumor_ray.scoring.options import DecodeSettings, PredictSettings
    from braintumor_ray.scoring.pipeline import measured

    loaded = load_bundle(bundle)
    decoding = (loaded.preprocessing, DecodeSettings(), loaded.cam_shape)
    predicting = (PredictSettings(bundle), loaded.fingerprint)
    pairs = []
    for meter in (lambda stage, name: stage, lambda stage, name: measured(stage, name, "/results")):
        decode, predict = meter(MockDecode, "decode"), meter(MockPredict, "predict")
        pairs.append((decode(*decoding), predict(*predicting)))
    rows = catalog_table(size)
    return [[cpu_per_scan(*pair, rows, blocks) for pair in pairs] for _ in range(rounds)]


def catalog_table(size):
    """One block of a catalog."""
    return catalog_part(np.arange(size))


def cpu_per_scan(decode, predict, rows, blocks):
    """CPU seconds of this process for one scan."""
    started = time.process_time()
    for _ in range(blocks):
        predict(decode(rows))
    return (time.process_time() - started) / (blocks * rows.num_rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256, help="scans of a block")
    options = parser.parse_args()

    import ray

    from braintumor_ray.local_ray import ray_session
    from tests.builders import make_bundle

    with tempfile.TemporaryDirectory() as work, ray_session():
        make_bundle(f"{work}/bundle")
        task = ray.remote(measure).options(num_cpus=1)
        found = ray.get(task.remote(f"{work}/bundle", options.blocks, options.rounds, options.size))
    without, metered = (statistics.median(column) for column in zip(*found, strict=True))
    figures = {
        "cpu_us_per_scan_without": 1e6 * without,
        "cpu_us_per_scan_with": 1e6 * metered,
        "meters_us_per_scan": statistics.median(1e6 * (w - o) for o, w in found),
        "rounds": [[1e6 * value for value in pair] for pair in found],
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
