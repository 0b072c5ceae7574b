"""As many epochs as fit before a deadline, and a schedule that ends with them."""

from itertools import pairwise

import pytest

from braintumor_ray.recipes.loader import load_recipe
from braintumor_ray.training.pace import CLOSING_S, Deadline, Pace
from braintumor_ray.training.stages import RunState, step_factors

STEPS = 10  # of an epoch
PREDICT_S, PREDICTIONS = 0.01, 500


class Run:
    """A run's epochs by a clock that only they move."""

    def __init__(self, recipe, seconds, epoch_s):
        self.now = 1e9
        self.recipe, self.epoch_s = recipe, epoch_s
        self.pace = Pace(Deadline(self.now + seconds, PREDICTIONS), lambda: self.now)
        self.state, self.rates, self.trained = RunState(), [], []

    def epoch(self):
        factors = step_factors(self.recipe, self.state, STEPS)
        self.rates += [next(factors) for _ in range(STEPS)] if factors else []
        self.now += self.epoch_s(len(self.rates) // STEPS)
        self.state.stage_epoch += 1
        self.state.settle(self.recipe, self.pace.epochs_left(PREDICT_S))

    def all(self):
        for _ in self.recipe.stages:
            while not self.state.stage_is_over(self.recipe):
                self.epoch()
            self.trained.append(self.state.stage_epoch)
            if len(self.trained) < len(self.recipe.stages):
                self.state.next_stage()
                self.pace.start_stage()
        return self


AFTER = CLOSING_S + PREDICT_S * PREDICTIONS
COSINE = load_recipe("demo", ["stages.scratch.epochs=30"])


def no_jumps(rates):
    return all(abs(a - b) < 0.15 for a, b in pairwise(rates))


def test_with_time_enough_nothing_changes():
    run = Run(COSINE, 3600, lambda epoch: 10.0).all()
    unhurried = step_factors(COSINE, RunState(), STEPS)
    assert run.trained == [30]
    assert run.rates == [next(unhurried) for _ in range(300)]


def test_as_many_epochs_as_fit_and_the_schedule_ends_with_the_last():
    run = Run(COSINE, 200 + AFTER, lambda epoch: 20.0).all()
    assert run.trained == [10]
    assert run.rates[-1] < 0.01
    assert no_jumps(run.rates)
    assert run.rates[10:] == sorted(run.rates[10:], reverse=True)


def test_the_first_epoch_which_starts_the_readers_is_no_measure_of_the_others():
    run = Run(COSINE, 240 + AFTER, lambda epoch: 60.0 if epoch == 1 else 20.0).all()
    assert run.trained == [10]


@pytest.mark.parametrize(
    "epoch_s",
    [lambda epoch: 10.0 if epoch < 5 else 25.0, lambda epoch: 25.0 if epoch < 5 else 10.0],
    ids=["slower", "faster"],
)
def test_a_machine_that_changes_its_pace_is_followed(epoch_s):
    start = Run(COSINE, 200 + AFTER, epoch_s)
    begun, run = start.now, start.all()
    spent = run.now - begun
    assert 200 - 25 <= spent <= 200 + 25
    assert run.rates[-1] < 0.03
    assert no_jumps(run.rates)


def test_what_is_predicted_after_the_last_epoch_has_its_time():
    hurried = Run(COSINE, 200 + CLOSING_S, lambda epoch: 20.0).all()
    assert hurried.trained == [9]


def test_without_time_the_schedule_is_brought_to_its_end_in_one_more_epoch():
    run = Run(COSINE, 1, lambda epoch: 20.0).all()
    assert run.trained == [2]
    assert run.rates[-1] < 0.03


def test_all_stages_have_their_share():
    stages = ["stages.frozen.epochs=10", "stages.finetune.epochs=20"]
    recipe = load_recipe("mobilenetv2-finetune", stages)
    run = Run(recipe, 300 + AFTER, lambda epoch: 20.0).all()
    assert run.trained == [5, 10]


def test_a_resumed_run_goes_on_with_its_schedule():
    run = Run(COSINE, 200 + AFTER, lambda epoch: 20.0)
    for _ in range(4):
        run.epoch()
    again = step_factors(COSINE, RunState(**vars(run.state)), STEPS)
    run.epoch()
    assert run.rates[-STEPS:] == [next(again) for _ in range(STEPS)]
