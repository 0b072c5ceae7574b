"""A worker's epochs, without Ray around it."""

import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from braintumor_ray.errors import TrainingError
from braintumor_ray.recipes.loader import load_recipe
from braintumor_ray.training import worker
from braintumor_ray.training.pace import CLOSING_S, Deadline
from braintumor_ray.training.recipe_network import architecture_of, network_of, preprocessing_of

SMALL = ["data.image_size=32", "data.batch_size=8"]
RECIPE = load_recipe("demo", SMALL)
SCANS = 16


class Shard:
    """Sixteen scans of two classes, in batches."""

    def iter_torch_batches(self, batch_size, **_):
        images = torch.randint(0, 256, (SCANS, 32, 32), dtype=torch.uint8)
        labels = torch.arange(SCANS) % 2
        yield from zip(images.split(batch_size), labels.split(batch_size), strict=True)


@pytest.fixture
def trained(monkeypatch):
    """Trains with a deadline; returns the entries of the epochs."""
    entries = []
    train = SimpleNamespace(
        get_context=lambda: SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1),
        torch=SimpleNamespace(get_device=lambda: torch.device("cpu")),
        get_checkpoint=lambda: None,
        get_dataset_shard=lambda name: Shard(),
        report=lambda entry, checkpoint=None: entries.append(entry),
    )
    monkeypatch.setattr(worker, "ray", SimpleNamespace(train=train, get=lambda value: value))
    monkeypatch.setattr(worker, "Checkpoint", SimpleNamespace(from_directory=lambda folder: folder))
    threads = torch.get_num_threads()

    def run(deadline, recipe=RECIPE, **changes):
        model = network_of(architecture_of(recipe, 2), recipe)
        weights, pixels = np.ones(2, np.float32), preprocessing_of(model, recipe)
        task = worker.TrainingTask(
            recipe,
            model.architecture,
            pixels,
            model.state_dict(),
            weights,
            SCANS,
            deadline=deadline,
            **changes,
        )
        epoch_log = SimpleNamespace(append=SimpleNamespace(remote=lambda entry: None))
        worker.train_worker({"epoch_log": epoch_log, "task": task, "threads": 1})
        return entries

    yield run
    torch.set_num_threads(threads)


def test_without_a_deadline_a_worker_trains_all_epochs(trained):
    assert len(trained(None)) == RECIPE.stages[0].epochs


@pytest.mark.parametrize("head", ["linear", "flatten"])
def test_without_guidance_drawn_lesions_are_learnt_by_their_label_alone(trained, head):
    """No loss on cells, so that any head will do."""
    recipe = load_recipe("demo", [f"model.head={head}", "guidance.weight=0", *SMALL])
    assert len(trained(None, recipe, guided_classes=(1,))) == recipe.stages[0].epochs


def test_a_gpu_without_room_for_a_batch_is_one_line_with_a_field_that_there_is(
    trained, monkeypatch
):
    def full(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nSee ...")

    monkeypatch.setattr(worker._Worker, "run_stage", full)
    with pytest.raises(TrainingError, match="a batch of 8 scans does not fit") as refused:
        trained(None)
    (field,) = re.findall(r"--set (\S+)=N", str(refused.value))
    assert load_recipe("demo", [f"{field}=4"]).data.batch_size == 4
    assert "\n" not in str(refused.value)


def test_a_worker_without_time_ends_its_schedule_in_the_second_epoch(trained):
    entries = trained(Deadline(time.time() + CLOSING_S, predictions=0))
    assert len(entries) == 2
    assert entries[-1]["lr"] < 0.6 * RECIPE.optimizer.lr
