"""Steps of one worker, and of two processes that average their gradients."""

import math
import os
import socket
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing, nn

from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.models.freezing import set_trainable, train_mode
from braintumor_ray.recipes.loader import load_recipe
from braintumor_ray.training.loop import (
    Averaged,
    StepSettings,
    Totals,
    TrainableNetwork,
    balanced_class_weights,
    has_idle_parameters,
    steps_per_epoch,
    train_epoch,
    validate,
    weighted_loss,
    without_lone_scans,
)
from braintumor_ray.training.stages import (
    RunState,
    build_optimizer,
    from_checkpoint,
    step_factors,
    to_checkpoint,
)
from braintumor_ray.training.worker import _Worker
from tests.builders import make_model

PREPROCESSING = Preprocessing(64, "area", (0.5,) * 3, (0.25,) * 3)
WEIGHTS = (0.5, 1.0, 2.0, 1.5)


def settings(**changes):
    return StepSettings(PREPROCESSING, torch.tensor(changes.pop("weights", WEIGHTS)), **changes)


def batch(count=32, seed=0):
    random = np.random.default_rng(seed)
    images = torch.from_numpy(random.integers(0, 256, (count, 64, 64), dtype=np.uint8))
    return images, torch.from_numpy(random.integers(0, 4, count))


def learner(train="all"):
    model = make_model("small-cnn", "mlp", 64)
    set_trainable(model, train)
    model.eval()  # BatchNorm in eval mode: batches of 16 and 32 then see the same function
    return model


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


class _Keep(torch.optim.SGD):
    """Remembers the gradients instead of using them."""

    def step(self, closure=None):
        self.kept = [p.grad.clone() for group in self.param_groups for p in group["params"]]


def keep(model):
    return _Keep([p for p in model.parameters() if p.requires_grad], lr=1.0)


def test_the_loss_is_kerass_weighted_mean():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    plain = nn.functional.cross_entropy(logits, labels, reduction="none")
    expected = plain * torch.tensor(WEIGHTS)[labels]
    torch.testing.assert_close(weighted_loss(logits, labels, settings()), expected)


def test_accumulated_steps_equal_one_large_step():
    images, labels = batch()
    model = learner()
    whole = keep(model)
    train_epoch(TrainableNetwork(model), whole, [(images, labels)], settings())
    parts = keep(model)
    halves = [(images[:16], labels[:16]), (images[16:], labels[16:])]
    train_epoch(TrainableNetwork(model), parts, halves, settings(accumulate=2))
    for a, b in zip(whole.kept, parts.kept, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("counts", "accumulate"), [((16, 8), 4), ((16, 16), 4), ((16, 8), 2)])
def test_a_partial_accumulation_is_the_mean_over_its_scans(counts, accumulate):
    images, labels = batch(sum(counts))
    model = learner()
    whole = keep(model)
    train_epoch(TrainableNetwork(model), whole, [(images, labels)], settings())
    parts = keep(model)
    pieces = list(zip(images.split(counts), labels.split(counts), strict=True))
    train_epoch(TrainableNetwork(model), parts, pieces, settings(accumulate=accumulate))
    for a, b in zip(whole.kept, parts.kept, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_partial_accumulation_is_clipped_after_it_is_weighed():
    images, labels = batch(16)
    optimizer = keep(model := learner())
    pieces = [(images, labels)]
    train_epoch(TrainableNetwork(model), optimizer, pieces, settings(accumulate=8, clip_norm=1e-3))
    norm = math.sqrt(sum(float((g**2).sum()) for g in optimizer.kept))
    assert norm == pytest.approx(1e-3, rel=0.01)


def test_a_schedule_has_one_factor_per_step_of_an_epoch():
    images, labels = batch(40)
    pieces = list(zip(images.split(8), labels.split(8), strict=True))
    model, taken = learner(), []
    schedule = (taken.append(1.0) or 1.0 for _ in range(100))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train_epoch(TrainableNetwork(model), optimizer, pieces, settings(accumulate=2), schedule)
    assert len(taken) == steps_per_epoch(40, 8, 2) == 3
    assert steps_per_epoch(33, 8, 1) == 5


def test_the_average_of_weights_is_the_hand_worked_one():
    model = make_model("small-cnn", "mlp", 64)
    average = Averaged(model, 0.15)
    expected = model.head[0].weight.clone()
    for step in (1, 2, 3):
        model.head[0].weight.data.add_(1.0)
        model.backbone.layers[1].num_batches_tracked.add_(1)
        average.update(model)
        decay = min(0.15, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.head[0].weight
    torch.testing.assert_close(average.model.head[0].weight, expected)
    assert average.model.backbone.layers[1].num_batches_tracked == 3
    assert not any(p.requires_grad for p in average.model.parameters())


def test_a_last_batch_of_one_scan_does_not_stop_a_head_with_batchnorm():
    model = make_model("small-cnn", "attention", 64)
    set_trainable(model, "all")
    train_mode(model)
    images, labels = batch(33)
    parts = [(images[:32], labels[:32]), (images[32:], labels[32:])]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    totals = train_epoch(TrainableNetwork(model), optimizer, without_lone_scans(parts), settings())
    assert totals.scans == 32
    with pytest.raises(ValueError, match="more than 1 value"):
        train_epoch(TrainableNetwork(model), optimizer, parts, settings())


def test_gradients_are_clipped_on_request():
    model = learner()
    optimizer = keep(model)
    train_epoch(TrainableNetwork(model), optimizer, [batch()], settings(clip_norm=1e-3))
    norm = math.sqrt(sum(float((g**2).sum()) for g in optimizer.kept))
    assert norm <= 1.01e-3


def test_a_frozen_backbone_gets_no_gradients_and_runs_without_a_graph():
    model = learner("head")
    network = TrainableNetwork(model)
    assert network.frozen
    train_epoch(network, keep(model), [batch()], settings())
    assert {n.split(".")[0] for n in gradients(model)} <= {"head"}
    features = []
    model.head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    network(torch.randn(2, 3, 64, 64))
    assert not features[0].requires_grad


WITH_NECK = {"neck": "topdown", "neck_channels": 8, "gate": True, "pooling": "lse"}


@pytest.mark.parametrize("backbone", ["small-cnn", "mobilenetv2_100"])
@pytest.mark.parametrize("train", ["all", "head"])
def test_all_that_should_learn_is_stepped_and_nothing_else(backbone, train):
    """A neck without an optimizer stays random, and its old gradients fill the clipped norm."""
    options = {} if backbone == "small-cnn" else WITH_NECK
    model = make_model(backbone, "linear", 64, **options)
    recipe = load_recipe("best", [f"stages.finetune.train={train}"])
    set_trainable(model, train)
    train_mode(model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, recipe, recipe.stages[0])
    network = TrainableNetwork(model, guided=True)
    made = settings()
    for _ in range(2):  # the gate's weights get no gradient where nothing but its bias is seen
        train_epoch(network, optimizer, [batch(8), batch(8, 1)], made)
    same = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    frozen = {name for name in before if name.startswith("backbone.")} if train == "head" else set()
    assert same == frozen
    assert not gradients(model)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _join(rank, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)


def _half(rank, port, results):
    _join(rank, port)
    images, labels = batch()
    mine = slice(16 * rank, 16 * (rank + 1))
    model = learner()
    network = nn.parallel.DistributedDataParallel(TrainableNetwork(model))
    optimizer = keep(model)
    totals = train_epoch(network, optimizer, [(images[mine], labels[mine])], settings())
    whole = optimizer.kept
    pieces = list(zip(images[mine].split((10, 6)), labels[mine].split((10, 6)), strict=True))
    train_epoch(network, optimizer, pieces, settings(accumulate=4))  # the last is partial
    for ours, theirs in zip(optimizer.kept, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    uneven = slice(0, 5) if rank == 0 else slice(5, 32)
    validated = validate(model, [(images[uneven], labels[uneven])], settings())
    results[rank] = (optimizer.kept, totals.loss, validated.confusion.tolist(), validated.loss)
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_workers_of_16_equal_one_of_32():
    model = learner()
    optimizer = keep(model)
    totals = train_epoch(TrainableNetwork(model), optimizer, [batch()], settings())
    validated = validate(model, [batch()], settings())
    results = multiprocessing.get_context("spawn").Manager().dict()
    multiprocessing.spawn(_half, args=(_free_port(), results), nprocs=2)
    for rank in (0, 1):
        kept, loss, confusion, val_loss = results[rank]
        for ours, theirs in zip(optimizer.kept, kept, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        assert loss == pytest.approx(totals.loss, rel=1e-5)
        assert confusion == validated.confusion.tolist()
        assert val_loss == pytest.approx(validated.loss, rel=1e-5)


# Their backbones end in layers behind the last map, which the second one uses.
BEHIND_THE_MAP = {"backbone": "convnext_atto", "size": 64}


@pytest.mark.parametrize(
    ("network", "idle"),
    [
        (BEHIND_THE_MAP | {"pooling": "lse"}, True),
        (BEHIND_THE_MAP, False),
        ({"backbone": "mobilenetv2_100", "size": 64, **WITH_NECK}, False),
    ],
)
@pytest.mark.parametrize("train", ["all", "head"])
def test_layers_that_no_logit_depends_on_are_found(network, idle, train):
    model = make_model(**network)
    set_trainable(model, train)
    network = TrainableNetwork(model, guided=True)
    assert has_idle_parameters(network, 64) == (idle and train == "all")
    assert not gradients(model)


def _two_steps(rank, port):
    _join(rank, port)
    model = make_model(**BEHIND_THE_MAP, pooling="lse")
    set_trainable(model, "all")
    joined = SimpleNamespace(
        world=2,
        device=torch.device("cpu"),
        preprocessing=PREPROCESSING,
        recipe=load_recipe("best"),
    )
    network = _Worker._distributed(joined, TrainableNetwork(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    train_epoch(network, optimizer, [batch(4, rank), batch(4, 2 + rank)], settings())
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_workers_train_a_network_whose_last_layers_are_not_used():
    multiprocessing.spawn(_two_steps, args=(_free_port(),), nprocs=2)


def test_metrics_of_a_hand_worked_table():
    totals = Totals(6.0, np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))
    found = totals.metrics("val")
    assert found["val_loss"] == 1.0
    assert found["val_accuracy"] == pytest.approx(5 / 6)
    assert found["val_balanced_accuracy"] == pytest.approx((3 / 4 + 1) / 2)
    assert found["val_precision"] == pytest.approx((1 + 2 / 3) / 2)


def test_balanced_weights_are_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0] * 10 + [1] * 5 + [2] * 1)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(balanced_class_weights(labels, 3), expected)


def test_validation_leaves_no_trace():
    model = learner()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train_mode(model)
    validate(model, [batch()], settings())
    assert not model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


class TestRunState:
    recipe = load_recipe(
        "mobilenetv2-finetune",
        ["schedule.patience=2", "schedule.early_stopping=3", "stages.frozen.epochs=9"],
    )

    def run(self, losses):
        state, model = RunState(), make_model()
        for loss in losses:
            state.note({"val_loss": loss}, model, self.recipe)
        return state

    def test_the_rate_falls_after_two_epochs_without_improvement(self):
        assert self.run([1.0, 0.9]).lr_factor == 1.0
        assert self.run([1.0, 1.1]).lr_factor == 1.0
        assert self.run([1.0, 1.1, 1.1]).lr_factor == 0.5

    @pytest.mark.parametrize(
        ("settings", "losses"),
        [
            (["patience=0"], [1.0, 0.9, 0.9, 0.8, 0.7, 0.7, 0.7]),
            (["patience=2"], [0.1 - 0.00006 * epoch for epoch in range(9)]),
            (["patience=1", "min_lr=3e-5"], [1.0, 1.1, 1.1, 1.1]),
            (["patience=1", "min_lr=1e-2"], [1.0, 1.1, 1.1]),
        ],
        ids=["patience 0", "slow improvement", "least rate", "least rate above the rate"],
    )
    def test_the_rate_falls_as_keras_lets_it(self, settings, losses):
        """ReduceLROnPlateau, which the recipes' sources train with."""
        recipe = load_recipe("mobilenetv2-finetune", [f"schedule.{text}" for text in settings])
        schedule, rate = recipe.schedule, recipe.optimizer.lr * recipe.stages[0].lr_scale
        state, model, best, waited = RunState(), make_model(), math.inf, 0
        first = rate
        for loss in losses:
            state.note({"val_loss": loss}, model, recipe)
            if loss < best - 1e-4:
                best, waited = loss, 0
            else:
                waited += 1
                if waited >= schedule.patience and rate > schedule.min_lr:
                    rate, waited = max(rate * schedule.factor, schedule.min_lr), 0
            assert first * state.lr_factor == pytest.approx(rate)

    def test_a_stage_ends_when_patience_runs_out(self):
        assert not self.run([1.0, 1.1, 1.2]).stage_is_over(self.recipe)
        assert self.run([1.0, 1.1, 1.2, 1.3]).stage_is_over(self.recipe)

    def test_the_best_weights_are_kept(self):
        state, model = RunState(), make_model()
        state.note({"val_loss": 0.5}, model, self.recipe)
        best = model.head.weight.clone()
        model.head.weight.data.add_(1)
        state.note({"val_loss": 0.9}, model, self.recipe)
        assert torch.equal(state.best_state["head.weight"], best)

    def test_without_a_choice_the_last_weights_are_kept(self):
        recipe = load_recipe("demo", ["monitor=epoch"])
        state, model = RunState(), make_model()
        for epoch, loss in enumerate((0.5, 0.9), start=1):
            model.head.weight.data.add_(1)
            state.note({"epoch": epoch, "val_loss": loss}, model, recipe)
        assert torch.equal(state.best_state["head.weight"], model.head.weight)

    @pytest.mark.parametrize("monitor", ["val_loss", "val_balanced_accuracy", "epoch"])
    @pytest.mark.parametrize("loss", [math.nan, math.inf])
    def test_weights_that_are_no_numbers_are_never_kept(self, monitor, loss):
        recipe, state, model = load_recipe("demo", [f"monitor={monitor}"]), RunState(), make_model()
        diverged = {"epoch": 1, "val_loss": loss, "val_balanced_accuracy": 0.5}
        state.note(diverged, model, recipe)
        assert state.best_state is None
        state.note(diverged | {"epoch": 2, "val_loss": 1.0}, model, recipe)
        kept = state.best_state
        state.note(diverged | {"epoch": 3, "val_balanced_accuracy": 0.9}, model, recipe)
        assert state.best_state is kept is not None

    def test_a_checkpoint_brings_the_course_back(self, tmp_path):
        state = self.run([1.0, 1.1, 1.1])
        model = make_model().requires_grad_(True)
        optimizer = build_optimizer(model, self.recipe, self.recipe.stages[0])
        torch.save(to_checkpoint(state, model, optimizer, model), tmp_path / "c.pt")
        again = from_checkpoint(torch.load(tmp_path / "c.pt", weights_only=True))
        assert vars(again) | {"best_state": None} == vars(state) | {"best_state": None}
        assert torch.equal(again.best_state["head.weight"], state.best_state["head.weight"])

    def test_cosine_warms_up_and_ends_near_zero(self):
        recipe = load_recipe("demo", ["stages.scratch.epochs=10"])
        factors = list(step_factors(recipe, RunState(), 5))
        assert factors[0] < factors[4] <= 1.0
        assert max(factors) == pytest.approx(1.0, abs=0.02)
        assert factors[49] < 0.01
        assert factors == sorted(factors[:6]) + sorted(factors[6:], reverse=True)
