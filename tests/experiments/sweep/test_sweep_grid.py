"""From `field=value,value` to recipes, and what is refused on the way."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from defuse.experiments.sweep.grid import make_grid
from defuse.utils.errors import UsageError

RECIPE = {
    "model": "m",
    "output": "out",
    "method": {"name": "rmu"},
    "topics": [{"name": "bio", "forget": "f.txt", "retain": "r.txt"}],
}


TEXTS = st.text(st.characters(exclude_categories=["C"])).filter(lambda text: ".." not in text)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-(10**9), 10**9), min_size=1, unique=True))
def test_numbers_come_as_they_were_written(recipe, seeds):
    points = make_grid(recipe, ["seed=" + ",".join(map(str, seeds))])
    assert [point.recipe.seed for point in points] == seeds


@settings(max_examples=30, deadline=None)
@given(st.lists(TEXTS, min_size=1, unique=True))
def test_quoted_texts_may_hold_anything_but_a_range(recipe, names):
    quoted = ",".join(json.dumps(name, ensure_ascii=False) for name in names)
    points = make_grid(recipe, [f"topics.0.forget={quoted}"])
    assert [point.recipe.topics[0].forget.source for point in points] == names


@settings(max_examples=30, deadline=None)
@given(st.integers(-100, 100), st.integers(0, 50))
def test_a_range_holds_both_its_ends(recipe, first, more):
    points = make_grid(recipe, [f"seed={first}..{first + more}"])
    assert [point.recipe.seed for point in points] == list(range(first, first + more + 1))


def test_every_combination_is_a_point_and_the_last_field_is_the_fastest(recipe):
    given = ["layer=5,7", "steps=100", "train.layers=[4, 5],[5]", "seed=0..1"]
    points = make_grid(recipe, given)
    found = [(p.recipe.layer, p.recipe.train.layers, p.recipe.seed) for p in points]
    assert found == [(x, y, z) for x in (5, 7) for y in ([4, 5], [5]) for z in (0, 1)]
    assert {point.recipe.steps for point in points} == {100}
    assert points[0].label == "layer=5 train.layers=[4, 5] seed=0"
    assert points[0].setting == points[1].setting == "layer=5 train.layers=[4, 5]"
    assert points[0].values == {"layer": 5, "train.layers": [4, 5], "seed": 0}


def test_a_field_with_one_value_is_a_plain_override(recipe):
    (point,) = make_grid(recipe, ["steps=3", "noise.std=0.1x", "train.layers=[7]"])
    assert (point.fields, point.label, point.recipe.steps) == ({}, "", 3)
    (bare,) = make_grid(recipe, [])
    assert bare.recipe.seed == 42


def test_without_noise_and_fields_left_out(recipe):
    points = make_grid(recipe, ["noise.std=none,0,0.3x", "train.parameters=null,mlp.up_proj"])
    noises = [point.recipe.noise and point.recipe.noise.std for point in points]
    assert noises == [None, None, 0, 0, "0.3x", "0.3x"]
    assert [p.recipe.train.parameters for p in points] == [None, "mlp.up_proj"] * 3
    assert points[0].label == "noise.std=none train.parameters=null"
    assert points[0].values == {"noise.std": None, "train.parameters": None}
    bare, noisy = make_grid(recipe, ["noise=none,{variance: 0.1}"])
    assert bare.recipe.noise is None
    assert noisy.values["noise"]["variance"] == 0.1


def test_none_is_a_value_where_it_is_one(recipe):
    points = make_grid(recipe, ["loss_scale=none,hidden_variance"])
    assert [point.recipe.loss_scale for point in points] == ["none", "hidden_variance"]


def test_numbers_that_yaml_takes_for_texts_are_numbers(recipe):
    points = make_grid(recipe, ["learning_rate=5e-5,1.0e-3", "method={name: rmu}"])
    assert [point.values for point in points] == [{"learning_rate": 5e-5}, {"learning_rate": 1e-3}]
    assert points[0].label == "learning_rate=5e-5"


def test_a_grid_may_run_over_methods_whose_defaults_differ(recipe):
    points = make_grid(recipe, ["method={name: rmu},{name: npo}"])
    assert [point.recipe.steps for point in points] == [500, 150]
    assert [point.recipe.retain.loss for point in points] == ["hidden_mse", "logit_kl"]


REFUSED = {
    "no field": (["0.3x"], "'0.3x': is no part of a grid"),
    "no value": (["seed="], "seed: has no value"),
    "gap": (["seed=1,,2"], "seed: '1,,2' is no list of values"),
    "bracket": (["seed=1],[2"], "seed: '1],[2' is no list"),
    "twice": (["seed=1", "seed=2,3"], "seed: is given twice"),
    "unknown": (["seed=0,1", "layr=1,2"], r"seed=0 layr=1: the recipe has no field 'layr'"),
    "value": (["seed=0", "steps=5,0"], "steps=0: steps: 0 is refused"),
    "noise": (["noise.std=0.3,-1"], "noise.std=-1: noise.std: -1"),
    "backwards": (["seed=4..0"], "seed: 4..0 is no range"),
    "endless": (["seed=0..99999999999999999999"], "is no range"),
    "many": (["seed=0..999", "steps=1..11"], "seed, steps: make 11000 runs"),
    "models": (["model=a,b"], "model: cannot vary within a sweep"),
    "outputs": (["output=a,b"], "output: cannot vary within a sweep"),
    "nothing to leave out": (["layer=null,3"], "layer=null: layer: None is refused"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_grid_is_refused_naming_field_or_point(recipe, case):
    texts, sentence = REFUSED[case]
    with pytest.raises(UsageError) as refusal:
        make_grid(recipe, texts)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)
