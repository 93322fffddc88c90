"""Recipes: what they may say, what fills their gaps, and how they are refused."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from defuse.methods import DPO, METHODS, NPO, RETAIN_LOSSES, RMU, HiddenMSE, LogitMSE, SimNPO
from defuse.methods.dpo import REFUSALS
from defuse.models.decoder import Decoder
from defuse.recipes import shipped_recipes
from defuse.unlearning.config import Topic, Training, Unlearning
from defuse.unlearning.defaults import DEFAULTS, default_retain, markdown_table, strength_field
from defuse.unlearning.noise import GaussianNoise
from defuse.unlearning.recipe import Recipe, load_recipe
from defuse.unlearning.tokenized import encode_topics
from defuse.utils.config import parse
from defuse.utils.errors import UsageError

SHIPPED = list(shipped_recipes().values())
MINIMAL = {
    "model": "some/model",
    "output": "runs/example",
    "method": {"name": "rmu"},
    "noise": {"std": 0.03},
    "topics": [
        {"name": "bio", "forget": "forget.txt", "retain": "retain.txt"},
        {"name": "cyber", "forget": "forget.txt", "retain": "retain.txt"},
    ],
}


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def test_gaps_are_filled_from_the_table_and_the_library(recipe_file):
    recipe = load_recipe(recipe_file)
    assert recipe.training() == Training()
    expected = Unlearning(RMU(), HiddenMSE(), GaussianNoise(std=0.03))
    assert recipe.unlearning() == expected
    assert [topic.settings.coefficient for topic in recipe.topics] == [6.5, 6.5]
    assert [topic.settings.weight for topic in recipe.topics] == [1200, 1200]


@pytest.mark.parametrize("retain", RETAIN_LOSSES)
@pytest.mark.parametrize("method", METHODS)
def test_every_pair_of_method_and_retain_loss_has_its_row(recipe_file, method, retain):
    refusals = ["method.refusals=idk.jsonl"] if method == "dpo" else []
    recipe = load_recipe(recipe_file, [f"method.name={method}", f"retain.loss={retain}", *refusals])
    row = DEFAULTS[method, retain]
    assert (recipe.steps, recipe.learning_rate) == (row.steps, row.learning_rate)
    tokens = 512 if method in ("npo", "dpo") else 1  # their log-probabilities are sums
    weights = [topic.settings.weight for topic in recipe.topics]
    assert weights == [row.weight * tokens, row.cyber_weight * tokens]
    strengths = {"coefficient": None, "scale": None, strength_field(method): row.strength}
    assert recipe.topics[0].settings.coefficient == strengths["coefficient"]
    assert recipe.topics[0].settings.scale == strengths["scale"]


def test_what_a_recipe_says_stands_against_the_table(recipe_file):
    overrides = [
        *("method.name=npo", "method.beta=0.2", "retain.loss=logit_mse", "noise="),
        *("steps=7", "learning_rate=3e-4", "topics.1.weight=9", "batch_size=2", "seed=1"),
        *("layer=3", "train.layers=all", "train.parameters=[mlp.up_proj, self_attn]"),
        *("mask_padding=false", "loss_scale=hidden_variance", "shuffle=true"),
    ]
    recipe = load_recipe(recipe_file, overrides)
    assert recipe.training() == Training(7, 2, 3e-4, 1, shuffle=True)
    assert recipe.unlearning() == Unlearning(
        NPO(beta=0.2),
        LogitMSE(),
        layer=3,
        train_layers="all",
        train_parameters=["mlp.up_proj", "self_attn"],
        loss_scale="hidden_variance",
        mask_padding=False,
    )
    assert [topic.settings.weight for topic in recipe.topics] == [5 * 512, 9]


def test_a_preference_method_alone_keeps_by_kl_and_others_by_hidden_states():
    retains = {name: default_retain(name) for name in METHODS}
    assert {retains[name] for name in ("npo", "dpo", "simnpo")} == {"logit_kl"}
    assert {retains[name] for name in ("rmu", "adaptive_rmu", "rsv")} == {"hidden_mse"}


def test_topics_and_refusals_are_read_from_their_files(tmp_path, recipe_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("forget.txt").write_text("a\nb\n")
    Path("retain.txt").write_text("c\n")
    Path("idk.jsonl").write_text("No idea.\n")
    overrides = ["method={name: dpo, refusals: idk.jsonl}", "topics.0.packed=true"]
    recipe = load_recipe(recipe_file, overrides)
    assert recipe.unlearning().method == DPO(("No idea.",))
    expected = Topic("bio", ["a", "b"], ["c"], weight=30 * 512, packed=True)
    assert recipe.topics[0].build() == expected


def test_a_corpus_is_a_source_or_a_source_with_what_to_take_of_it(tmp_path, recipe_file):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n{"body": "long enough"}\n{"body": "far"}\n')
    wanted = "field: body, min_characters: 3, max_characters: 8, limit: 1"
    corpus = f"{{source: {tmp_path / 'a.jsonl'}, {wanted}}}"
    plain = f"{{source: {tmp_path / 'a.jsonl'}, raw_lines: true}}"
    overrides = [f"topics.0.forget={corpus}", f"topics.0.retain={plain}"]
    topic = load_recipe(recipe_file, overrides).topics[0].build()
    assert topic.forget == ("long eno",)
    assert topic.retain == ('{"body": "x"}\n', '{"body": "long enough"}\n', '{"body": "far"}\n')


def test_dpo_has_refusals_of_its_own(recipe_file):
    assert load_recipe(recipe_file, ["method={name: dpo}"]).unlearning().method == DPO(REFUSALS)
    assert len(set(REFUSALS)) == len(REFUSALS) >= 20


def test_the_methods_own_fields_are_those_of_their_dataclasses(recipe_file):
    overrides = ["method={name: simnpo, beta: 0.5, gamma: 1, reduction: batch}"]
    method = load_recipe(recipe_file, overrides).unlearning().method
    assert method == SimNPO(0.5, 1.0, reduction="batch")


@given(
    st.sampled_from(["rmu", "rsv", "npo", "simnpo", "adaptive_rmu"]),
    st.sampled_from(sorted(RETAIN_LOSSES)),
    st.floats(0, 1e9),
    st.sampled_from([{"std": 0.5}, {"std": "0.1x"}, {"variance": 1e-3}, None]),
    st.integers(1, 10_000),
)
def test_a_recipe_comes_back_from_its_yaml_as_it_was(method, retain, weight, noise, steps):
    given = MINIMAL | {"method": {"name": method}, "retain": {"loss": retain}, "steps": steps}
    given |= {"noise": noise, "topics": [MINIMAL["topics"][0] | {"weight": weight}]}
    recipe = parse(Recipe, given)
    assert parse(Recipe, yaml.safe_load(recipe.to_yaml())) == recipe


REFUSED = [
    ("stepz=1", "has no field 'stepz'; it takes model,"),
    ("topics.0.wieght=3", "topics.0: has no field 'wieght'; it takes name,"),
    ("steps=0", "steps: 0 is refused (input should be greater than 0)"),
    ("steps=true", "steps: True is refused (input should be a valid integer)"),
    ("steps=1.5", "steps: 1.5 is refused (input should be a valid integer)"),
    ("steps=", "steps: None is refused"),
    ("batch_size=0", "batch_size: 0 is refused (input should be greater than 0)"),
    ("learning_rate=-1", "learning_rate: -1 is refused (input should be greater than 0)"),
    ("learning_rate=.nan", "learning_rate: nan is refused (input should be a finite number)"),
    ("learning_rate=.inf", "learning_rate: inf is refused (input should be a finite number)"),
    ("learning_rate=fast", "learning_rate: 'fast' is refused (input should be a valid number)"),
    ("seed=a", "seed: 'a' is refused"),
    ("mask_padding=3", "mask_padding: 3 is refused (input should be a valid boolean)"),
    ("loss_scale=x", "loss_scale: 'x' is refused (input should be 'none' or 'hidden_variance')"),
    ("model=7", "model: 7 is refused (input should be a valid string)"),
    ("model.name=x", "model.name: 'name' is inside a value that has no fields"),
    ("method.name=foo", "method: {'name': 'foo'} names no method; write {name: …} with one of rmu"),
    ("method=rmu", "method: 'rmu' names no method"),
    ("method.beta=0.1", "method: has no field 'beta'; it takes name, vector"),
    ("method.vector=x", "method.vector: 'x' is refused (input should be 'uniform' or 'gaussian')"),
    ("method={name: npo, beta: 0}", "method.beta: 0 is refused (input should be greater than 0)"),
    ("method={name: dpo, refusals: 3}", "method.refusals: 3 is refused (input should be a valid s"),
    ("retain.loss=x", "retain.loss: 'x' is unknown; use one of hidden_mse"),
    ("noise.variance=1", "noise: std=0.03 and variance=1.0; give exactly one of the two"),
    ("noise={}", "noise: std=None and variance=None; give exactly one of the two"),
    ("noise.std=-1", "noise.std: -1.0 must be a finite number that is not negative"),
    ("noise.std=1y", "noise.std: '1y' is neither a number nor a multiple; write 0.03 or 0.1x"),
    ("noise.std=[1]", "noise.std: [1] is refused"),
    ("noise={variance: -1}", "noise.variance: -1 is refused"),
    ("layer=-1", "layer: -1 is refused"),
    ("train.layers=5", "train.layers: 5 is refused (input should be a list)"),
    ("train.layers=[a]", "train.layers.0: 'a' is refused (input should be a valid integer)"),
    ("train.parameters=3", "train.parameters: 3 is refused"),
    (
        f"topics=[{', '.join(f'{{name: t{i}, forget: x, retain: x}}' for i in range(1001))}]",
        "topics: are 1001; give at most 1000",
    ),
    ("topics=[]", "topics: [] must hold at least one topic"),
    ("topics=[1]", "topics.0: 1 is no mapping of fields"),
    ("topics.0.forget=", "topics.0.forget: None is no source of texts; write a file, a hub id or"),
    ("topics.0.forget={field: text}", "topics.0.forget.source: is missing; add it"),
    (
        "topics.0.forget={source: a, limt: 3}",
        "topics.0.forget: has no field 'limt'; it takes sourc",
    ),
    ("topics.0.retain={source: a, limit: 0}", "topics.0.retain.limit: 0 is refused (input should"),
    ("topics.0.weight=-1", "topics.0.weight: -1 is refused"),
    ("topics.0.weight=.inf", "topics.0.weight: inf is refused"),
    ("topics.0.coefficient=4y", "topics.0.coefficient: '4y' is neither a number nor a multiple"),
    ("topics.0.coefficient=.nan", "topics.0.coefficient: nan must be a finite number"),
    ("topics.0.scale=3", "topics.0.scale: 3.0 does not belong to rmu, which has 'coefficient'"),
    ("topics.0.forget_length=1", "topics.0.forget_length: 1 is refused"),
    ("topics.0.name=cyber", "topics: the names cyber, cyber must differ"),
    ("topics.2.weight=1", "topics.2.weight: '2' is no place in a list of 2; count from 0"),
    ("topics.0={}", "topics.0.name: is missing; add it"),
    ("steps", "'steps': is no override; write field=value, such as steps=100"),
    ("steps=[", "steps: is not valid YAML"),
]


@pytest.mark.parametrize(("override", "sentence"), REFUSED)
def test_what_cannot_be_is_one_sentence_with_field_and_value(recipe_file, override, sentence):
    with pytest.raises(UsageError) as refusal:
        load_recipe(recipe_file, [override])
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_preference_method_is_not_steered(recipe_file):
    overrides = ["method.name=npo", "topics.0.coefficient=6.5"]
    with pytest.raises(UsageError, match=r"topics\.0\.coefficient: 6\.5 does not belong to npo"):
        load_recipe(recipe_file, overrides)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("model: [", "is not valid YAML"), ("", "is no recipe"), ("- 1", "is no recipe")],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, sentence):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=f"recipe.yaml: {sentence}"):
        load_recipe(path)


def test_a_recipe_runs_no_code_and_must_exist(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: !!python/object/apply:os.getcwd []")
    with pytest.raises(UsageError, match="is not valid YAML"):
        load_recipe(path)
    with pytest.raises(UsageError, match=r"gone\.yaml: cannot be read"):
        load_recipe(tmp_path / "gone.yaml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_recipe_is_one(path):
    load_recipe(path)


def test_the_documented_table_is_the_one_in_the_code():
    page = Path(__file__).parents[2] / "docs" / "defaults.md"
    assert page.read_text(encoding="utf-8").endswith("\n\n" + markdown_table())


LINES = [json.dumps({"text": f"The virus number {i} is bad."}) for i in range(300)]


def everywhere(corpus: str, kinds: Sequence[str] = ("forget", "retain")) -> list[str]:
    return [f"topics.{place}.{kind}={corpus}" for place in (0, 1) for kind in kinds]


@pytest.mark.parametrize(
    ("overrides", "reach"),
    [
        (["steps=3"], 64),
        (["steps=49"], 100),
        (["steps=37", "method={name: dpo}", "topics.1.triggers=terms.txt"], 76),
    ],
)
def test_texts_are_read_as_far_as_the_steps_reach_and_nothing_changes_by_it(
    tmp_path, recipe_file, tiny_llama, tiny_tokenizer, monkeypatch, overrides, reach
):
    monkeypatch.chdir(tmp_path)
    Path("terms.txt").write_text("cobalt\n")
    Path("long.jsonl").write_text("\n".join(LINES))
    Path("short.jsonl").write_text("\n".join(LINES[:70]))  # comes round again after 18 turns
    corpora = [*everywhere("long.jsonl", ["forget"]), *everywhere("short.jsonl", ["retain"])]
    recipe = load_recipe(recipe_file, [*overrides, *corpora])
    training, how = recipe.training(), (Decoder(tiny_llama), recipe.unlearning(), tiny_tokenizer)
    near, whole = recipe.read_topics(), [topic.build() for topic in recipe.topics]
    assert [len(topic.forget) for topic in (*near, *whole)] == [reach, reach, 300, 300]
    encoded = (encode_topics(*how, topics, training) for topics in (near, whole))
    for one, other in zip(*encoded, strict=True):
        for ours, theirs in [
            (one.forget, other.forget),
            (one.retain, other.retain),
            (one.refusals, other.refusals),
        ]:
            if ours is None or theirs is None:
                assert ours is theirs
                continue
            assert ours.texts == theirs.texts
            for turn in range(math.ceil(recipe.steps / 2)):
                assert ours.rows(turn, training) == theirs.rows(turn, training)


@pytest.mark.parametrize("override", ["shuffle=true", "topics.0.packed=true", "topics.0.mix=0.5"])
def test_where_any_text_may_count_all_are_read(tmp_path, recipe_file, override):
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join([*LINES, '{"text": ']))
    load_recipe(recipe_file, ["steps=3", *everywhere(str(broken))]).read_topics()
    with pytest.raises(UsageError, match=r"broken\.jsonl, line 301: is not valid JSON"):
        load_recipe(recipe_file, ["steps=3", *everywhere(str(broken)), override]).read_topics()
    part = everywhere(f"{{source: {broken}, limit: 10}}")
    topics = load_recipe(recipe_file, ["steps=3", *part, override]).read_topics()
    assert [len(topic.forget) for topic in topics] == [10, 10]
