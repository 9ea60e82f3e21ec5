"""Recipes: read, changed, checked; every mistake names its key."""

from __future__ import annotations

import pytest
from rtseg.errors import RecipeError
from rtseg.models import VARIANTS
from rtseg.train.recipe import RECIPES, load_recipe

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml"))
MINIMAL = """
model: csfcn_nano
data: {name: camvid}
augment: {crop: [64, 64]}
schedule: {iterations: 10}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="recipe.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_valid(name):
    assert load_recipe(name).model in VARIANTS


def test_defaults_and_changes(write):
    path = write(MINIMAL)
    assert load_recipe(path).optimizer.learning_rate == 0.01
    recipe = load_recipe(path, ["optimizer.learning_rate=0.5", "data.root=/x", "seed=3"])
    assert (recipe.optimizer.learning_rate, str(recipe.data.root), recipe.seed) == (0.5, "/x", 3)


def test_a_schedule_can_change_its_unit(write):
    recipe = load_recipe(write(MINIMAL), ["schedule.iterations=null", "schedule.epochs=2"])
    assert (recipe.schedule.iterations, recipe.schedule.epochs) == (None, 2)


def test_base_is_laid_under(write):
    write(MINIMAL, "basis.yaml")
    recipe = load_recipe(write("base: basis.yaml\naugment: {flip: 0.5}\n"))
    assert recipe.augment.flip == 0.5
    assert recipe.augment.crop == (64, 64)


def test_a_base_has_no_base(write):
    write(MINIMAL, "a.yaml")
    write("base: a.yaml", "b.yaml")
    with pytest.raises(RecipeError, match="base of its own"):
        load_recipe(write("base: b.yaml"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("modle=csfcn", "unknown key 'modle': did you mean 'model'"),
        ("augment.flp=1", "unknown key 'augment.flp': did you mean 'flip'"),
        ("optimizer.lr=1", "unknown key 'optimizer.lr': known are kind, learning_rate"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate: input should be a valid number"),
        ("batch=0", "batch: input should be greater than or equal to 1"),
        ("precision=int8", "precision: input should be 'fp32', 'bf16' or 'fp16'"),
        ("data=null", "data: input should be a valid"),
        ("schedule.epochs=3", "schedule: give either epochs or iterations"),
        ("schedule.iterations=null", "schedule: give either epochs or iterations"),
        ("augment.scale=[2, 1]", "augment: scale is"),
        ("batch", "'batch' is no change"),
        ("batch=[", "not valid YAML"),
    ],
)
def test_mistakes_name_the_key(write, change, message):
    with pytest.raises(RecipeError, match=message.replace("[", r"\[")):
        load_recipe(write(MINIMAL), [change])


def test_a_missing_key_is_named(write):
    with pytest.raises(RecipeError, match="key 'schedule' is missing"):
        load_recipe(write(MINIMAL.replace("schedule: {iterations: 10}", "")))


def test_files_that_are_no_recipe(write):
    with pytest.raises(RecipeError, match="did you mean 'csfcn_nano_camvid'"):
        load_recipe("csfcn_nano_camvit")
    with pytest.raises(RecipeError, match="no `key: value` lines"):
        load_recipe(write("- a list"))
    with pytest.raises(RecipeError, match="is not valid YAML"):
        load_recipe(write("{"))
