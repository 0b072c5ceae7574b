import pytest

from braintumor_ray.errors import UsageError
from braintumor_ray.recipes.loader import load_recipe, recipe_names, recipe_text, with_backbone


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_is_called_as_its_file(name):
    assert load_recipe(name).name == name


def test_fields_can_be_set_by_their_dotted_names():
    recipe = load_recipe(
        "mobilenetv2-finetune",
        ["optimizer.lr=3e-4", "stages.frozen.epochs=2", "stages.1.lr_scale=0.5", "seed=7"],
    )
    assert recipe.optimizer.lr == 3e-4
    assert recipe.stages[0].epochs == 2
    assert recipe.stages[1].lr_scale == 0.5
    assert recipe.seed == 7


def test_a_bare_word_is_taken_as_text():
    assert load_recipe("demo", ["model.backbone=resnet18"]).model.backbone == "resnet18"


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ("optimizer.clip_norm=1.0", "optimizer.clip_norm"),
        ("optimizer.average=0.99", "optimizer.average"),
        ("schedule.early_stopping=3", "schedule.early_stopping"),
        ("stages.1.image_size=64", "stages.1.image_size"),
        ("data.classes='tumor=a+b,no'", "data.classes"),
    ],
)
def test_none_takes_an_optional_value_away(given, key):
    without = load_recipe("mobilenetv2-finetune", [f"{key}=none"])
    assert load_recipe("mobilenetv2-finetune", [given]) != without
    assert load_recipe("mobilenetv2-finetune", [given, f"{key}=none"]) == without


def test_none_is_a_word_where_it_is_a_choice_and_no_value_where_one_is_needed():
    assert load_recipe("demo", ["class_weights=none"]).class_weights == "none"
    with pytest.raises(UsageError, match=r"optimizer\.lr"):
        load_recipe("demo", ["optimizer.lr=none"])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("optimizer.learning_rate=1", "optimizer.learning_rate"),
        ("optimizer.lr=-1", "optimizer.lr"),
        ("data.fractions={train=0.7,val=0.1,test=0.1}", "sum to 1"),
        ("optimizer.lr", "KEY=VALUE"),
        ("stages.nowhere.epochs=2", "nowhere"),
        ("monitor=epoch", "leave early_stopping out"),
        ("stages.1.name=frozen", "have the name 'frozen'"),
        ("model.backbone.layers.1=2", "'model.backbone.layers' has no fields"),
        ("threshold_by=sensitivity >= 1.", "threshold_by"),  # not at the end of training
    ],
)
def test_a_wrong_setting_is_refused_and_named(setting, words):
    with pytest.raises(UsageError, match=words) as caught:
        load_recipe("mobilenetv2-finetune", [setting])
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(UsageError, match="mobilenetv2-finetune"):
        load_recipe("no-such-recipe")


def test_a_users_own_file_works_the_same(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(recipe_text("demo").replace('name = "demo"', 'name = "mine"'))
    assert load_recipe(str(path)).name == "mine"


@pytest.mark.parametrize("rule", ["0.5", "'0.5'", "sensitivity >= 1.0"])
def test_a_threshold_is_stated_with_and_without_quotes(rule):
    assert load_recipe("demo", [f"threshold_by={rule}"]).threshold_by == rule.strip("'")


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(recipe_text("demo"), encoding="utf-8-sig")
    assert load_recipe(str(path)) == load_recipe("demo")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name = ", "not TOML"),
        (recipe_text("demo").encode("utf-16"), "not UTF-8"),  # PowerShell's redirection
        ("# größer".encode("latin-1"), "not UTF-8"),
    ],
    ids=["cut off", "UTF-16", "Latin-1"],
)
def test_a_damaged_file_is_one_line(tmp_path, content, words):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        load_recipe(str(path))


def test_another_backbone_brings_its_size_and_trains_whole_where_layers_were_named():
    recipe = with_backbone(load_recipe("mobilenetv2-finetune"), "convnext_tiny", 288)
    assert recipe.model.backbone == "convnext_tiny"
    assert recipe.data.image_size == 288
    assert [stage.train for stage in recipe.stages] == ["head", "all"]
    assert recipe.published == ()


@pytest.mark.parametrize("train", ["all", "head", 12, ["blocks.6", "*.bn3"]])
def test_what_learns_can_be_said_in_four_ways(train):
    stages = f"stages=[{{name='a',epochs=1,train={train!r}}}]"
    found = load_recipe("demo", [stages]).stages[0].train
    assert (list(found) if isinstance(found, tuple) else found) == train


def test_the_reference_systems_carry_their_published_figures():
    named = {name: load_recipe(name).published for name in recipe_names()}
    for name in ("densenet121-attention", "mobilenetv2-finetune", "cnn-3conv"):
        assert named[name], name
    assert [entry.accuracy for entry in named["mobilenetv2-finetune"]] == [0.85, 0.88, 0.91]
