"""A request for attacks: its check without weights, what is in memory when, and what resumes."""

import json
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from defuse.attacks import Result
from defuse.attacks.registry import ATTACKS, make_configs
from defuse.attacks.run import BEFORE, Request, check, read_results, run
from defuse.models.load import LoadedModel, load_model
from defuse.utils.errors import UsageError
from tests.conftest import build_llama
from tests.helpers.attacked import DATA, lab_data, lab_pair
from tests.helpers.planted import KilledError, Stopping, names_in, without_seconds

QUICKLY = (
    *("quantise.bits=[4]", "lens.folds=0", "triggers.top=2", "triggers.mined=2"),
    *("gcg.length=1", "gcg.init=''", "gcg.steps=1", "gcg.search_width=4"),
    *("relearn.texts=[2]", "relearn.steps=1", "relearn.lora=null"),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random models with the lab's tokenizer."""
    tokenizer, given = lab_pair().reference.tokenizer, {}
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("model", "reference", "retrained")):
        model = build_llama(vocab_size=len(tokenizer), layers=2, seed=seed)
        for each in (model, tokenizer):
            each.save_pretrained(folder / name)
        given[name] = str(folder / name)
    return given


@pytest.fixture
def whole(models: dict[str, str], tmp_path: Path) -> Request:
    """Every attack on a random model, with everything that one of them looks at."""
    data = lab_data(4, 4)
    texts = {f"{name}_texts": data.given_texts(name)[:20] for name in data.sets}
    return Request(
        models["model"],
        tmp_path / "out",
        configs=make_configs(list(ATTACKS), QUICKLY),
        data=replace(data, **texts),
        reference=models["reference"],
        retrained=models["retrained"],
        device="cpu",
    )


def only(request: Request, attacks: Sequence[str]) -> Request:
    return replace(request, configs={attack: request.configs[attack] for attack in attacks})


def done(request: Request) -> list[Result]:
    return list(run(check(request)))


def logged(request: Request, attack: str) -> list[str]:
    return names_in(request.out / "findings" / f"{attack}.jsonl")


class Memory:
    """Which of the loaded models are in memory, they or one of their parameters.

    The garbage collector is not waited for: it counts objects, and a model is few of them.
    """

    def __init__(self) -> None:
        self._held: list[tuple[str, list[weakref.ref]]] = []
        self.at_loading: list[tuple[str, list[str]]] = []
        self.running: dict[str, list[str]] = {}
        self._attack = ""

    def load(self, name: str, **given: str) -> LoadedModel:
        self.at_loading.append((Path(name).name, self.names))
        loaded = load_model(name, **given)
        parts = [loaded.model, *loaded.model.parameters()]
        self._held.append((Path(name).name, [weakref.ref(part) for part in parts]))
        return loaded

    @property
    def names(self) -> list[str]:
        return [name for name, parts in self._held if any(part() is not None for part in parts)]

    def start(self, name: str, total: int) -> None:  # noqa: ARG002
        self._attack = name

    def advance(self, count: int = 1, note: str = "") -> None:  # noqa: ARG002
        self.running.setdefault(self._attack, self.names)


def test_beside_the_attacked_model_only_what_an_attack_looks_at_is_in_memory(
    whole: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory()
    monkeypatch.setattr("defuse.attacks.run.load_model", memory.load)
    plan = check(only(whole, ("lens", "quantise", "orthogonalise", "relearn")))
    for _ in run(plan, memory):
        assert memory.names == ["model"]
    assert memory.running == {
        "loading models": ["model"],
        "lens": ["model", "reference"],
        "quantise": ["model"],
        "orthogonalise": ["model", "reference"],
        "relearn": ["model", "retrained"],
    }
    first = [("model", []), ("reference", ["model"]), ("retrained", ["model"])]
    assert memory.at_loading[:3] == first
    assert all(there == ["model"] for _, there in memory.at_loading[3:])
    assert not memory.names
    # What is finished needs the others' fingerprints, and nothing else of them.
    (whole.out / "relearn.json").unlink()
    for more in (["retrained"], []):
        memory.at_loading.clear()
        list(run(plan))
        loaded = [name for name, _ in memory.at_loading]
        assert loaded == ["model", "reference", "retrained", *more]


def test_results_of_another_reference_are_refused_before_anything_runs(whole: Request) -> None:
    done(only(whole, ["lens"]))
    request = replace(only(whole, ["quantise", "lens"]), reference=whole.retrained)
    with pytest.raises(UsageError, match=r"lens\.json belongs to other reference; name"):
        done(request)
    assert not (whole.out / "findings" / "quantise.jsonl").exists()


class Counted:
    """Progress that adds up."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int]] = {}
        self._stage: list[int] = []

    def start(self, name: str, total: int) -> None:
        self._stage = self.stages[name] = [0, total]

    def advance(self, count: int = 1, note: str = "") -> None:  # noqa: ARG002
        self._stage[0] += count


def test_the_attacked_model_is_asked_once_for_all_attacks_and_progress_ends_at_its_total(
    whole: Request, tmp_path: Path
) -> None:
    """And every attack finds and costs what it does alone."""
    progress = Counted()
    together = {each.attack: each for each in run(check(whole), progress)}
    assert list(progress.stages) == ["loading models", *ATTACKS]
    for name, (count, total) in progress.stages.items():
        # How many words a trigger search asks is known for sure only when they are found.
        assert count == total or name == "triggers", name
    computed = [name for attack in ATTACKS for name in logged(whole, attack)[:2]]
    assert computed == [*BEFORE] * len(ATTACKS)
    for attack in ("lens", "relearn", "gcg"):
        (alone,) = done(replace(only(whole, [attack]), out=tmp_path / attack))
        assert without_seconds(alone) == without_seconds(together[attack])


def test_what_was_asked_before_a_kill_or_for_another_attack_is_not_asked_again(
    whole: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KilledError):
        list(run(check(only(whole, ["quantise"])), Stopping("before/forget")))
    assert logged(whole, "quantise") == ["before/forget"]
    done(only(whole, ["prune"]))
    assert logged(whole, "prune")[:2] == [*BEFORE]
    asked: list[str] = []
    original = LoadedModel

    def recorded(model: object, tokenizer: object, name: str) -> LoadedModel:
        asked.append(name)
        return original(model, tokenizer, name)  # type: ignore[arg-type]

    monkeypatch.setattr("defuse.attacks.data.LoadedModel", recorded)
    done(only(whole, ["quantise", "prune"]))
    assert asked == ["4 bits/forget", "4 bits/retain"]


def test_a_killed_attack_resumes(whole: Request, tmp_path: Path) -> None:
    request = only(whole, ["quantise"])
    (expected,) = done(replace(request, out=tmp_path / "whole"))
    with pytest.raises(KilledError):
        list(run(check(request), Stopping("4 bits/numbers")))
    assert not (whole.out / "quantise.json").exists()
    (result,) = done(request)
    assert result.conditions == expected.conditions


def test_results_and_findings_of_something_else_are_refused_whatever_attack_is_next(
    whole: Request,
) -> None:
    """Otherwise answers of another model, or to other questions, would pass for this one's."""
    done(only(whole, ["quantise"]))
    fewer = replace(whole.data, forget=whole.data.forget[:3])
    assert whole.retrained is not None
    others = (
        (replace(whole, model=whole.retrained), "weights"),
        (replace(whole, dtype="bfloat16"), "weights.* precision"),
        (replace(whole, data=fewer), "questions"),
    )
    for changed, said in others:
        with pytest.raises(UsageError, match=rf"quantise\.json belongs to other {said}"):
            done(only(changed, ["rephrase"]))
    (whole.out / "quantise.json").unlink()
    for changed, said in others:
        said = rf"quantise\.jsonl holds unfinished work for other {said}; finish it"
        with pytest.raises(UsageError, match=said):
            done(only(changed, ["rephrase"]))


def test_a_damaged_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "quantise.json").write_text("{}")
    with pytest.raises(UsageError, match=r"quantise\.json: is damaged, or not a result"):
        read_results(tmp_path)


def test_an_attack_that_lacks_something_asks_for_it_first(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    for name, spec in ATTACKS.items():
        request = Request(str(tiny_model_folder), tmp_path / "out", make_configs([name]), DATA)
        if spec.needs:
            with pytest.raises(UsageError, match=f"{spec.needs[0]}: missing; the attack {name}"):
                check(request)
        elif spec.texts(request.configs[name]):
            with pytest.raises(UsageError, match="--forget-texts FILE"):
                check(request)
    assert not (tmp_path / "out").exists()


def test_texts_may_be_added_for_attacks_that_read_them(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    configs, model = make_configs(["quantise"]), str(tiny_model_folder)
    done(Request(model, tmp_path / "out", configs, DATA, device="cpu"))
    more = replace(DATA, forget_texts=("The cat sees a bird.",))
    check(Request(model, tmp_path / "out", configs, more, device="cpu"))


def few_retain(request: Request) -> Request:
    return replace(request, data=replace(request.data, retain=request.data.retain[:3]))


def other_reference(request: Request, folder: Path, **sizes: int) -> Request:
    for each in (build_llama(**sizes), lab_pair().reference.tokenizer):
        each.save_pretrained(str(folder / "other"))
    return replace(request, reference=str(folder / "other"))


def with_config(name: str | None, folder: Path, **changed: object) -> str:
    """A copy of a model with another config."""
    loaded = load_model(str(name), device="cpu")
    for each in (loaded.model, loaded.tokenizer):
        each.save_pretrained(folder / "changed")
    config = folder / "changed" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changed}))
    return str(folder / "changed")


Spoil = Callable[[Request, Path], Request]
REFUSED: dict[str, tuple[Spoil, dict[str, object], str]] = {
    "rephrase-reference": (
        lambda asked, folder: other_reference(asked, folder, layers=2, vocab_size=20),
        {},
        "reference: has 20 embeddings, and the tokenizer",
    ),
    "relearn-retrained": (
        lambda asked, folder: replace(
            asked, retrained=with_config(asked.retrained, folder, max_position_embeddings=64)
        ),
        {},
        "retrained: reads 64 tokens, and the attacked model 512",
    ),
    "prune": (
        lambda asked, folder: replace(
            asked, model=with_config(asked.model, folder, quantization_config={})
        ),
        {},
        "model: the model's weights are quantised already",
    ),
    "triggers": (
        lambda asked, _: few_retain(asked),
        {},
        "retain: 3 questions cannot be halved well",
    ),
    "orthogonalise": (
        lambda asked, folder: other_reference(asked, folder, layers=1, vocab_size=431),
        {},
        "reference: is llama with 1 layers",
    ),
    "rephrase": (
        lambda asked, _: asked,
        {"ways": ("letters",)},
        "rephrase.ways: 'letters' has no",
    ),
    "gcg": (
        lambda asked, _: asked,
        {"length": 10_000},
        "gcg.length: question .* is longer than",
    ),
    "relearn": (
        lambda asked, _: replace(asked, dtype="float16"),
        {},
        "dtype: 'float16' lets small",
    ),
    "lens": (
        lambda asked, _: asked,
        {"folds": 2},
        "forget: a letter is right in . of 4 questions",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_attack_refuses_is_said_before_any_weights_are_read(
    whole: Request, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what only a model's sizes and its tokenizer tell, and if other attacks come first."""
    spoil, settings, said = REFUSED[name]
    attack = name.partition("-")[0]
    chosen = {each: whole.configs[each] for each in ("quantise", attack)}
    chosen[attack] = replace(chosen[attack], **settings)
    request = spoil(replace(whole, configs=chosen), tmp_path)
    monkeypatch.setattr("defuse.models.load._load_weights", None)
    with pytest.raises(UsageError, match=said):
        check(request)
    assert not request.out.exists()


def test_refused_attacks_may_be_left_out_with_their_reasons(whole: Request) -> None:
    request = replace(few_retain(whole), skip_refused=True)
    plan = check(request)
    assert plan.left_out == {
        "triggers": "retain: 3 questions cannot be halved well; give four or more"
    }
    assert [*plan.request.configs] == [attack for attack in ATTACKS if attack != "triggers"]
    with pytest.raises(UsageError, match="retain: 3 questions"):
        check(only(request, ["triggers"]))


def test_a_request_that_can_be_run_passes_its_check_and_leaves_nothing(
    whole: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defuse.models.load._load_weights", None)
    assert not check(whole).left_out
    assert not whole.out.exists()


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_every_attack_runs_in_half_precision_on_any_device(whole: Request, device: str) -> None:
    results = done(replace(whole, device=device, dtype="bfloat16"))
    assert [result.attack for result in results] == list(ATTACKS)
    assert all(result.conditions for result in results)
