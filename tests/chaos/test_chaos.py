"""Several nodes, and something killed in every round: every scan has one row in the end."""

import json
import os
import random
import signal
import time
from collections import Counter

import psutil
import pytest

from braintumor_ray.predict.results import read_results, results_folder
from braintumor_ray.scoring.verify import verify
from tests.builders import write_archive
from tests.chaos.cluster import ClusterOfNodes, Spoken
from tests.scoring.test_job import rows_on_disk

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.ray]
ROUNDS = int(os.environ.get("BRAINTUMOR_CHAOS_ROUNDS", "4"))  # 10 by hand: each kind in turn
SCANS = 30
STAGES = ("ReadParquet", "Decode", "PredictStage", "Write", "MapWorker", "Checkpoint")


@pytest.fixture(scope="module")
def nodes():
    cluster = ClusterOfNodes(nodes=4)
    yield cluster
    cluster.close()


class Chaos:
    """Rounds of scoring, each disturbed once."""

    def __init__(self, nodes, bundle, root, seed, engine="torch"):
        self.engine = engine
        self.nodes, self.random = nodes, random.Random(seed)
        self.archive, self.results, self.bundle = root / "archive", root / "results", bundle
        self.driver, self.story = self.start(), []
        self.spread = Counter()

    def start(self):
        return Spoken("tests.chaos.driver", env=self.nodes.env)

    def round(self, number, kind):
        write_archive(self.archive, SCANS, seed=number)
        runs = 1
        self.order()
        rows = self.wait_for_rows(self.random.randint(1, SCANS // 2))
        hit = getattr(self, f"kill_{kind}")()
        while not (answer := self.driver.hear()) or "error" in answer:
            if answer is None:
                self.driver.end()
                self.driver = self.start()
            runs += 1
            assert runs <= 4, (self.story, answer, self.driver.complaints())
            self.order()
        report = verify(str(self.results))
        self.story.append(
            f"round {number}: {kind} {hit} killed at {rows} of {SCANS} rows, {runs} runs, "
            f"{answer['resumed']} rows resumed, {len(report.differences)} differences"
        )
        assert report.differences == [], self.story
        assert report.scans == number * SCANS, self.story

    def order(self):
        order = {"archive": self.archive, "results": self.results, "bundle": self.bundle}
        order["engine"] = self.engine
        self.driver.tell(json.dumps({name: str(path) for name, path in order.items()}))

    def wait_for_rows(self, count):
        deadline = time.monotonic() + 120
        while (rows := rows_on_disk(self.results)) < count:
            assert time.monotonic() < deadline, self.driver.complaints()
            assert self.driver.process.poll() is None, self.driver.complaints()
            if not self.driver._lines.empty():
                break  # it was quicker than we
            time.sleep(0.05)
        self.spread.update(self.nodes.node_of(p) for p in self.nodes.processes(*STAGES))
        return rows

    def kill_driver(self):
        self.driver.process.send_signal(signal.SIGKILL)
        return self.driver.process.pid

    def kill_worker(self):
        return self.kill_one_of("Write", "ReadParquet", "ray::Map", "Checkpoint", "Decode")

    def kill_actor(self):
        return self.kill_one_of("PredictStage")

    def kill_node(self):
        hosts = [self.nodes.node_of(p) for p in self.nodes.processes(*STAGES)]
        index = self.random.choice([i for i in hosts if i is not None] or [0])
        self.nodes.replace(index)
        return index

    def kill_one_of(self, *words):
        found = self.nodes.processes(*words) or self.nodes.processes(*STAGES)
        if not found:
            return None
        victim = self.random.choice(found)
        title = victim.cmdline()[0]
        try:
            victim.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            return None
        return title


def kinds(seed):
    """As many kinds as there are rounds, each before any comes again, in an order of its own."""
    order = random.Random(seed)
    drawn = []
    while len(drawn) < ROUNDS:
        every = ["driver", "worker", "actor", "node"]
        order.shuffle(every)
        drawn += every
    return drawn[:ROUNDS]


@pytest.mark.timeout(900)
def test_rounds_of_kills_lose_nothing_and_double_nothing(nodes, bundle_path, tmp_path, capsys):
    seed = int(os.environ.get("BRAINTUMOR_CHAOS_SEED", "7"))
    chaos = Chaos(nodes, bundle_path, tmp_path, seed)
    try:
        for number, kind in enumerate(kinds(seed), start=1):
            chaos.round(number, kind)
    finally:
        chaos.driver.end()
        with capsys.disabled():
            print("", f"seed {seed}", *chaos.story, sep="\n")
    table = read_results(tmp_path / "results")
    assert len(set(table["uri"].to_pylist())) == table.num_rows == ROUNDS * SCANS
    assert len([node for node in chaos.spread if chaos.spread[node]]) > 1, "on one node only"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_killed_predictor_loses_nothing_with_other_engines(
    engine, nodes, bundle_path, tmp_path, capsys
):
    chaos = Chaos(nodes, bundle_path, tmp_path, 7, engine)
    try:
        chaos.round(1, "actor")
    finally:
        chaos.driver.end()
        with capsys.disabled():
            print("", engine, *chaos.story, sep="\n")
    table = read_results(tmp_path / "results")
    assert len(set(table["uri"].to_pylist())) == table.num_rows == SCANS
    assert results_folder(str(tmp_path / "results")).meta["engine"] == engine
