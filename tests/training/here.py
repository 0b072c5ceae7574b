"""Ray Train's local mode: the worker of a run is this process.

A run on Ray Train starts ten processes, whatever its size. What is said here of stages, folds and
weights does not depend on them; `trained` and others in `test_run.py` are runs on Ray Train.
"""

import shutil
from contextlib import contextmanager

import pytest
import torch
from ray.train import Checkpoint, ScalingConfig
from ray.train.v2._internal.execution.train_fn_utils import LocalTrainFnUtils, set_train_fn_utils

from braintumor_ray.training import trainer


@contextmanager
def in_this_process(folder):
    """Runs that begin meanwhile, one after the other; their checkpoints are kept in `folder`."""
    report, threads = LocalTrainFnUtils.report, torch.get_num_threads()
    folder.mkdir(parents=True, exist_ok=True)

    def kept(utils, *, metrics, checkpoint, **options):
        """Local mode itself keeps none, and a worker deletes its own."""
        target = folder / f"{len(list(folder.iterdir())):06}"
        shutil.copytree(checkpoint.path, target)
        checkpoint = Checkpoint.from_directory(target)
        report(utils, metrics=metrics, checkpoint=checkpoint, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "scaling", lambda _: ScalingConfig(num_workers=0))
        patch.setattr(LocalTrainFnUtils, "report", kept)
        try:
            yield
        finally:
            set_train_fn_utils(None)
            torch.set_num_threads(threads)
