"""Recipes: what they refuse, and that every built-in one can be read."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ppfr.methods import method_names
from ppfr.recipes.recipe import PROFILES, built_in_names, deep_merge, load_recipe, parse_overrides, recipe_names
from ppfr.util.errors import MethodError, RecipeError


def test_every_method_has_a_recipe() -> None:
    assert built_in_names("ppfr.recipes") == recipe_names() == method_names()


@pytest.mark.parametrize("taught", [True, False])
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", recipe_names())
def test_built_in_recipes_are_whole(name: str, profile: str, taught: bool) -> None:
    recipe = load_recipe(name, profile=profile, taught=taught)
    assert recipe.method == name
    assert recipe.profile == profile
    if not taught:
        assert recipe.training.losses.margin > 0


def test_the_papers_schedule_is_the_references() -> None:
    training = load_recipe("partialface", profile="paper").training
    assert (training.epochs, training.repeats, training.batch_size) == (24, 3, 64)
    assert training.schedule.milestones == [10, 18, 22]
    assert (training.optimizer.name, training.optimizer.lr, training.optimizer.momentum) == ("sgd", 0.1, 0.9)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.epoks=3"], r"training\.epoks: unknown key; expected one of epochs, .*, freeze_norm \(got 3\)"),
        (["training.optimizer.learning_rate=1"], r"learning_rate: unknown key; expected one of name, lr, "),
        (["data=[{folder: x}]"], r"data\.0\.folder: unknown key; expected one of source, share, weight"),
        (["epochs=3"], r"epochs: unknown key; expected one of .*, training, "),
        (["training.optimizer.lr=-1"], r"training\.optimizer\.lr: .* greater than 0 \(got -1\)"),
        (["training.epochs=many"], r"training\.epochs: .* \(got 'many'\)"),
        (["stages.server.epocs=1"], r"stages\.server\.epocs: unknown key"),
        (["training.epochs"], "is not KEY=VALUE"),
        (["training.epochs=[1"], r"the value '\[1' is not valid YAML"),
    ],
)
def test_a_wrong_setting_is_named_by_its_path(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("partialface", overrides=overrides)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(RecipeError, match=r"(?s)training\.clip.*sede") as caught:
        load_recipe("partialface", overrides=["training.clip=-1", "sede=3"])
    assert ";" in str(caught.value)


def test_a_method_option_is_checked_before_training() -> None:
    with pytest.raises(MethodError, match=r"options|stem"):
        load_recipe("partialface", overrides=["options.stem=thick"])


def test_unknown_recipes_and_profiles_are_refused(tmp_path) -> None:
    with pytest.raises(RecipeError, match="no recipe 'nofacenet'; built in: arcface"):
        load_recipe("nofacenet")
    with pytest.raises(RecipeError, match="has no profile 'slow'; it has quick, standard, paper"):
        load_recipe("partialface", profile="slow")
    with pytest.raises(RecipeError, match="does not exist"):
        load_recipe(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text("- a\n- list\n")
    with pytest.raises(RecipeError, match="expected a mapping"):
        load_recipe(tmp_path / "mine.yaml")


def test_a_printed_recipe_can_be_read_again(tmp_path) -> None:
    recipe = load_recipe("duetface", overrides=["training.epochs=5", "seed=3"], taught=True)
    (tmp_path / "mine.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "mine.yaml", taught=True) == recipe


def test_a_recipe_extends_another(tmp_path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: partialface\nprofiles: {quick: {training: {epochs: 5}}}\n")
    recipe, original = (load_recipe(name, profile="quick", taught=True) for name in (mine, "partialface"))
    assert recipe.training == original.training.model_copy(update={"epochs": 5})
    assert recipe.options == original.options
    mine.write_text("extends: nofacenet\n")
    with pytest.raises(RecipeError, match="no recipe 'nofacenet'; built in: arcface"):
        load_recipe(mine)
    mine.write_text(f"extends: {mine}\n")
    with pytest.raises(RecipeError, match="extends itself"):
        load_recipe(mine)


def test_a_stored_recipe_gives_no_secret_away() -> None:
    recipe = load_recipe("partialface", overrides=["options.table=random", "options.table_seed=4711"])
    assert "4711" not in recipe.to_yaml()
    assert "4711" in recipe.to_yaml(with_secrets=True)


def test_a_stage_inherits_and_changes() -> None:
    recipe = load_recipe("duetface", profile="quick", taught=True)
    assert recipe.stage("client").epochs == 0
    assert recipe.stage("client").optimizer == recipe.training.optimizer
    assert recipe.stage("server").epochs == recipe.training.epochs


keys = st.text("abc", min_size=1, max_size=2)
trees = st.recursive(st.integers(), lambda leaf: st.dictionaries(keys, leaf, max_size=3), max_leaves=8)
mappings = st.dictionaries(keys, trees, max_size=3)


@given(base=mappings, change=mappings)
def test_merging_keeps_the_change_and_alters_neither(base: dict, change: dict) -> None:
    before = yaml.safe_dump([base, change])
    merged = deep_merge(base, change)
    assert yaml.safe_dump([base, change]) == before
    assert deep_merge(merged, change) == merged
    assert set(merged) == set(base) | set(change)


def test_overrides_nest() -> None:
    assert parse_overrides(["a.b=1", "a.c=[x, y]", "d=null"]) == {"a": {"b": 1, "c": ["x", "y"]}, "d": None}
