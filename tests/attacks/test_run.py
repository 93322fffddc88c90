"""`defuse attack` from end to end: what is in memory when, and what is asked once for all kinds."""

import json
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from defuse.attacks.registry import KINDS, configs
from defuse.attacks.results import Result
from defuse.attacks.run import BEFORE, Order, check, run, without_refused
from defuse.models.load import LoadedModel, load_model
from defuse.utils.errors import UsageError
from tests.conftest import build_llama
from tests.helpers.attacked import lab_material, lab_pair

QUICKLY = (
    *("quantise.bits=[4]", "lens.folds=0", "triggers.top=2", "triggers.mined=2"),
    *("gcg.length=1", "gcg.init=''", "gcg.steps=1", "gcg.search_width=4"),
    *("relearn.texts=[2]", "relearn.steps=1", "relearn.lora=null"),
)


@pytest.fixture
def whole(tmp_path: Path) -> Order:
    """Every kind of attack on a random model, with all that any of them looks at."""
    tokenizer, given = lab_pair().base.tokenizer, {}
    for seed, name in enumerate(("model", "reference", "gold")):
        model = build_llama(vocab_size=len(tokenizer), layers=2, seed=seed)
        for each in (model, tokenizer):
            each.save_pretrained(tmp_path / name)
        given[name] = str(tmp_path / name)
    material = lab_material(4, 4)
    texts = {f"{name}_texts": material.given_texts(name)[:20] for name in material.sets}
    chosen = configs(list(KINDS), QUICKLY)
    return Order(
        **given,
        out=tmp_path / "out",
        configs=chosen,
        material=replace(material, **texts),
        device="cpu",
    )


def only(asked: Order, kinds: Sequence[str]) -> Order:
    return replace(asked, configs={kind: asked.configs[kind] for kind in kinds})


class Memory:
    """Which of the loaded models are there, they or any of their parameters.

    The garbage collector is not waited for: it counts objects, and a model is few of them.
    """

    def __init__(self) -> None:
        self._held: list[tuple[str, list[weakref.ref]]] = []
        self.at_loading: list[tuple[str, list[str]]] = []

    def load(self, name: str, **given: str) -> LoadedModel:
        self.at_loading.append((Path(name).name, self.names))
        loaded = load_model(name, **given)
        parts = [loaded.model, *loaded.model.parameters()]
        self._held.append((Path(name).name, [weakref.ref(part) for part in parts]))
        return loaded

    @property
    def names(self) -> list[str]:
        return [name for name, parts in self._held if any(part() is not None for part in parts)]


def test_beside_the_attacked_model_only_what_a_kind_looks_at_is_in_memory(whole, monkeypatch):
    memory, running = Memory(), {}
    monkeypatch.setattr("defuse.attacks.run.load_model", memory.load)
    asked = only(whole, ("lens", "quantise", "orthogonalise", "relearn"))
    found = run(asked, lambda kind, _: running.setdefault(kind, memory.names))
    for _ in found:
        assert memory.names == ["model"]
    assert running == {
        "lens": ["model", "reference"],
        "quantise": ["model"],
        "orthogonalise": ["model", "reference"],
        "relearn": ["model", "gold"],
    }
    first = [("model", []), ("reference", ["model"]), ("gold", ["model"])]
    assert memory.at_loading[:3] == first
    assert all(there == ["model"] for _, there in memory.at_loading[3:])
    assert not memory.names
    # What is finished needs the others' fingerprints, and nothing else of them.
    (whole.out / "relearn.json").unlink()
    for more in (["gold"], []):
        memory.at_loading.clear()
        list(run(asked))
        assert [name for name, _ in memory.at_loading] == ["model", "reference", "gold", *more]


def test_results_of_another_reference_are_refused_before_anything_runs(whole):
    list(run(only(whole, ["lens"])))
    heard: list[str] = []
    asked = replace(only(whole, ["quantise", "lens"]), reference=whole.gold)
    with pytest.raises(UsageError, match=r"lens\.json is of an attack with other reference; name"):
        list(run(asked, lambda _, found: heard.append(found)))
    assert not heard


def test_the_attacked_model_answers_as_it_is_once_for_all_kinds(whole, tmp_path):
    """And every kind finds and costs what it does alone."""
    alone = {}
    for kind in KINDS:
        (alone[kind],) = run(replace(only(whole, [kind]), out=tmp_path / kind))
    heard: list[str] = []
    together = {each.kind: each for each in run(whole, lambda _, found: heard.append(found))}
    assert [name for name in heard if name.startswith("before/")] == list(BEFORE)
    assert {kind: timeless(each) for kind, each in together.items()} == {
        kind: timeless(each) for kind, each in alone.items()
    }


def timeless(result: Result) -> Result:
    return replace(result, cost=replace(result.cost, seconds=0.0))


def test_what_was_asked_before_a_kill_or_for_another_kind_is_not_asked_again(whole):
    heard: list[str] = []

    def killed(_: str, found: str) -> None:
        if found.endswith("before/forget"):
            raise KeyboardInterrupt

    def listen(kind: str, found: str) -> None:
        heard.append(f"{kind}: {found}")

    with pytest.raises(KeyboardInterrupt):
        list(run(only(whole, ["quantise"]), killed))
    list(run(only(whole, ["prune"]), listen))
    assert heard[0] == "prune: before/retain"
    heard.clear()
    list(run(only(whole, ["quantise", "prune"]), listen))
    assert heard == [f"quantise: 4 bits/{each}" for each in ("numbers", "forget", "retain")]


def test_notes_about_something_else_are_refused_whatever_kind_is_next(whole):
    """Else the answers of another model, or to other questions, would pass for this one's."""
    list(run(only(whole, ["quantise"])))
    (whole.out / "quantise.json").unlink()
    other = replace(whole.material, forget=whole.material.forget[:3])
    for changed, said in (
        (replace(whole, model=whole.gold), "weights"),
        (replace(whole, dtype="bfloat16"), "weights and precision"),
        (replace(whole, material=other), "questions"),
    ):
        said = rf"quantise\.jsonl has notes of an attack with other {said}; finish it"
        with pytest.raises(UsageError, match=said):
            list(run(only(changed, ["rephrase"])))


def few_retain(asked: Order) -> Order:
    return replace(asked, material=replace(asked.material, retain=asked.material.retain[:3]))


def smaller_reference(asked: Order) -> Order:
    build_llama(layers=1, vocab_size=431).save_pretrained(str(asked.reference))
    return asked


def other_vocabulary(asked: Order) -> Order:
    build_llama(layers=2, vocab_size=20).save_pretrained(str(asked.reference))
    return asked


def with_config(folder: str | None, **changed: object) -> None:
    config = Path(str(folder)) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changed}))


def shorter_gold(asked: Order) -> Order:
    with_config(asked.gold, max_position_embeddings=64)
    return asked


def quantised_weights(asked: Order) -> Order:
    with_config(asked.model, quantization_config={})
    return asked


REFUSED = {
    "rephrase-reference": (other_vocabulary, {}, "reference: has 20 embeddings, and the tokenizer"),
    "relearn-gold": (shorter_gold, {}, "gold: reads 64 tokens, and the attacked model 512"),
    "prune": (quantised_weights, {}, "model: the model's weights are quantised already"),
    "triggers": (few_retain, {}, "retain: 3 questions cannot be halved well"),
    "orthogonalise": (smaller_reference, {}, "reference: is llama with 1 layers"),
    "rephrase": (lambda asked: asked, {"ways": ("letters",)}, "rephrase.ways: 'letters' has no"),
    "gcg": (lambda asked: asked, {"length": 10_000}, "gcg.length: question .* is longer than"),
    "relearn": (lambda asked: replace(asked, dtype="float16"), {}, "dtype: 'float16' lets small"),
    "lens": (lambda asked: asked, {"folds": 2}, "forget: a letter is right in . of 4 questions"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_an_attack_refuses_is_told_before_any_weights_are_read(whole, kind, monkeypatch):
    """Also what only a model's sizes and its tokenizer tell, and though other kinds come first."""
    spoil, settings, said = REFUSED[kind]
    kind = kind.partition("-")[0]
    chosen = {name: whole.configs[name] for name in ("quantise", kind)}
    chosen[kind] = replace(chosen[kind], **settings)
    order = spoil(replace(whole, configs=chosen))
    monkeypatch.setattr("defuse.models.load._load_weights", None)
    with pytest.raises(UsageError, match=said):
        check(order)
    assert not order.out.exists()


def test_refused_attacks_are_left_out_of_an_order_and_say_why(whole):
    left, reasons = without_refused(few_retain(whole))
    assert reasons == {"triggers": "retain: 3 questions cannot be halved well; give four or more"}
    assert [*left.configs] == [kind for kind in whole.configs if kind != "triggers"]
    with pytest.raises(UsageError, match="retain: 3 questions"):
        without_refused(few_retain(only(whole, ["triggers"])))


def test_an_order_that_can_be_run_passes_its_check_and_leaves_nothing(whole, monkeypatch):
    monkeypatch.setattr("defuse.models.load._load_weights", None)
    check(whole)
    assert not whole.out.exists()


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_every_kind_runs_in_half_precision_on_any_device(whole, device):
    order = replace(whole, device=device, dtype="bfloat16")
    check(order)
    results = list(run(order))
    assert [result.kind for result in results] == list(KINDS)
    assert all(result.conditions for result in results)
