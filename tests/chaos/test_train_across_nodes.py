"""Training over several nodes goes on from its checkpoint when one of them dies."""

import pytest

from tests.builders import write_archive
from tests.chaos.cluster import ClusterOfNodes, Spoken

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.ray]
EPOCHS = 6


@pytest.mark.timeout(600)
def test_a_node_dies_and_training_resumes_from_its_checkpoint(tmp_path):
    write_archive(tmp_path / "archive", 60)
    cluster = ClusterOfNodes(nodes=4)
    try:
        trainer = Spoken(
            "tests.chaos.trainer", tmp_path / "archive", tmp_path / "run", EPOCHS, env=cluster.env
        )
        spread, killed, epochs = set(), None, []
        while (heard := trainer.hear(timeout=300)) is not None:
            if "history" in heard:
                break
            epochs.append(heard["line"])
            workers = cluster.processes("RayTrainWorker")
            spread |= {cluster.node_of(worker) for worker in workers}
            hosts = [n for w in workers if (n := cluster.node_of(w)) is not None]
            if heard["line"].startswith("epoch  2") and killed is None:
                killed = hosts[0]
                cluster.replace(killed)
        assert heard is not None, trainer.complaints()
        trainer.end()
        assert killed is not None
        assert len(spread) > 1, "both workers were on one node"
        assert [entry["epoch"] for entry in heard["history"]] == [*range(1, EPOCHS + 1)]
        first = [line for line in epochs if line.startswith("epoch  1")]
        assert len(first) == 1, "it began anew instead of resuming"
    finally:
        cluster.close()
