"""The front's side of a call and the predictor's, joined without Serve between them."""

import asyncio
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import RayActorError

from braintumor_ray.serving.app import CALLS_PER_REPLICA, PredictorReplica, RemoteModel, calls_of
from braintumor_ray.serving.problems import ProblemError
from braintumor_ray.serving.settings import ServingSettings
from tests.builders import disc_scan

SQUARES = [disc_scan(seed, (64, 64)) for seed in range(6)]


class Handle:
    """As Serve's: arguments and results are pickled; the first `deaths` calls lose their actor."""

    def __init__(self, replica, deaths=0):
        self.calls, self._replica, self._deaths = [], replica, deaths
        self.predict = SimpleNamespace(remote=self._remote)

    async def _remote(self, *args):
        self.calls.append(len(args) - 1)
        if len(self.calls) <= self._deaths:
            raise RayActorError
        found = await self._replica.predict(*pickle.loads(pickle.dumps(args)))
        return pickle.loads(pickle.dumps(found))


@pytest.fixture(scope="module")
def settings(bundle_path):
    return ServingSettings(
        str(bundle_path),
        precision="fp32",
        device="cpu",
        torch_threads=2,
        max_batch_size=4,
    )


@pytest.fixture(scope="module")
def replica(settings):
    return PredictorReplica.func_or_class(vars(settings))


def asked(handle, settings, explain):
    async def scene():
        model = RemoteModel(handle, settings)
        wanted = zip(SQUARES, explain, strict=True)
        return await asyncio.gather(*(model.predict(*each) for each in wanted))

    return asyncio.run(scene())


def test_scans_that_wait_go_in_one_call_and_each_gets_its_own_row(replica, settings):
    explain = [True, False, True, "no_tumor", True, True]
    handle = Handle(replica)
    rows = asked(handle, settings, explain)
    assert handle.calls == [4, 2]
    alone = [asked_alone(replica, settings, *each) for each in zip(SQUARES, explain, strict=True)]
    for row, expected, wanted in zip(rows, alone, explain, strict=True):
        np.testing.assert_allclose(row["probabilities"], expected["probabilities"], atol=1e-5)
        assert ("gradcam" in row) == bool(wanted)
    assert rows[3]["cam_class"] == "no_tumor"


def asked_alone(replica, settings, square, explain):
    return asyncio.run(RemoteModel(Handle(replica), settings).predict(square, explain))


def test_a_call_that_loses_its_predictor_is_made_again(replica, settings):
    handle = Handle(replica, deaths=1)
    rows = asked(handle, settings, [True] * 6)
    assert len(rows) == 6
    assert len(handle.calls) == 3
    with pytest.raises(ProblemError, match="no predictor answers"):
        asked(Handle(replica, deaths=99), settings, [True] * 6)


@pytest.mark.parametrize(
    ("fronts", "replicas", "most"), [(1, 1, 1), (2, 1, 1), (2, 1, 4), (8, 1, 1)]
)
def test_all_fronts_together_can_keep_every_predictor_busy(fronts, replicas, most):
    settings = ServingSettings("b", front_replicas=fronts, replicas=replicas, max_replicas=most)
    assert fronts * calls_of(settings) >= CALLS_PER_REPLICA * max(replicas, most)
