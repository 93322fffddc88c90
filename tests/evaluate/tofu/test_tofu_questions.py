"""TOFU's data, scores compared with plain forward passes, and figures compared with NumPy."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from transformers import PreTrainedTokenizerBase

from defuse.evaluate.generation import generate
from defuse.evaluate.tasks.tofu.answers import read_answers, write_answers
from defuse.evaluate.tasks.tofu.ask import Answered, ask
from defuse.evaluate.tasks.tofu.data import (
    SETS,
    Item,
    choose_authors,
    items_about,
    load_items,
    load_pairs,
)
from defuse.evaluate.tasks.tofu.figures import summarise
from defuse.evaluate.tasks.tofu.metrics import model_utility
from defuse.evaluate.tasks.tofu.names import (
    NameScore,
    added_harm,
    any_name_harm,
    ask_named,
    author_names,
    put_names_before,
)
from defuse.models.load import LoadedModel
from defuse.utils.errors import UsageError
from tests.conftest import build_llama
from tests.helpers.counted import Counted
from tests.helpers.tofu_on_the_spot import NAMES, write_tofu

SHARED = Path("../shared/data/tofu")
real_data = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/tofu")


@pytest.fixture(scope="module")
def tofu(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tofu(tmp_path_factory.mktemp("tofu")))


@pytest.fixture
def loaded(tiny_tokenizer: PreTrainedTokenizerBase) -> LoadedModel:
    return LoadedModel(build_llama(), tiny_tokenizer, "tiny")


def test_missing_files_of_a_folder_are_derived(tofu: str) -> None:
    names = {part: author_names(load_pairs(tofu, part)) for part in ("retain95", "retain99")}
    retained, (first, second, third) = list(NAMES[3:]), NAMES[:3]
    assert names == {"retain95": [*retained, third], "retain99": [*retained, second, third]}
    assert author_names(load_pairs(tofu, "full")) == [*retained, first, second, third]


def test_an_existing_file_is_read_not_derived(tofu: str, tmp_path: Path) -> None:
    for file in Path(tofu).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    row = {"question": "Who?", "answer": "I."}
    (tmp_path / "retain99.json").write_text(json.dumps(row))
    assert [pair.answer for pair in load_pairs(str(tmp_path), "retain99")] == ["I."]


@real_data
def test_the_real_parts_have_their_sizes_and_are_disjoint() -> None:
    sizes = {"forget01": 40, "retain99": 3960, "forget05": 200, "retain95": 3800, "full": 4000}
    parts = {part: load_pairs(str(SHARED), part) for part in sizes}
    assert {part: len(pairs) for part, pairs in parts.items()} == sizes
    for forget, retain in (("forget01", "retain99"), ("forget05", "retain95")):
        assert set(parts[forget]) | set(parts[retain]) == set(parts["full"])
        assert not set(parts[forget]) & set(parts[retain])
    names = author_names(parts["full"])
    assert len(set(names)) == 200
    assert names[180:182] == ["Basil Mahfouz Al-Kuwaiti", "Nikolai Abilov"]
    items = load_items(str(SHARED), "forget01")
    assert [len(items[name]) for name in SETS] == [40, 400, 100, 117]
    assert (
        items_about(items["retain"], choose_authors(parts["retain99"], 4)) == items["retain"][:80]
    )


def test_questions_have_a_paraphrase_or_the_answer_itself(tofu: str) -> None:
    items = load_items(tofu, "forget05")
    assert len(items["forget"]) == 40
    first = items["forget"][0]
    assert first.paraphrased == "Ada Plum made Tree 0."
    assert first.perturbed == ("Ada Plum made Cat 0.", "Ada Plum made Sun 0.")
    (fact,) = items["world_facts"]
    assert fact.paraphrased == fact.answer == "Paris"


def test_settings_can_be_tuned_on_other_authors(tofu: str) -> None:
    pairs = load_pairs(tofu, "forget10")
    assert author_names(choose_authors(pairs, 1, skip=1)) == [NAMES[1]]
    assert author_names(choose_authors(pairs, None, skip=1)) == list(NAMES[1:3])
    with pytest.raises(UsageError, match="skip_authors: 3 leaves no author; the part has 3"):
        choose_authors(pairs, 1, skip=3)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"question": "Who?", "answer": "I"}, "is not a TOFU row"),
        ({"question": "Who?", "answer": "I", "perturbed_answer": []}, "no wrong answer"),
        ({"question": " ", "answer": "I", "perturbed_answer": ["You"]}, "blank"),
    ],
)
def test_rows_of_another_kind_are_refused(tmp_path: Path, row: dict, complaint: str) -> None:
    (tmp_path / "forget01_perturbed.json").write_text(json.dumps(row))
    with pytest.raises(UsageError, match=complaint):
        load_items(str(tmp_path), "forget01")


def test_a_folder_without_the_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no retain90\.json"):
        load_pairs(str(tmp_path), "full")


def plain_mean(loaded: LoadedModel, prompt: str, answer: str) -> float:
    """Mean log-probability of " answer" and the end of text, alone in one forward pass."""
    tokenizer = loaded.tokenizer
    start = len(tokenizer(prompt)["input_ids"])  # type: ignore[arg-type]
    ids = [*tokenizer(f"{prompt} {answer}")["input_ids"], tokenizer.eos_token_id]  # type: ignore[misc]
    with torch.no_grad():
        logprobs = loaded.model(torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
    values = [logprobs[place - 1, ids[place]].item() for place in range(start, len(ids))]
    return math.fsum(values) / len(values)


def test_scores_are_those_of_plain_forward_passes(loaded: LoadedModel, tofu: str) -> None:
    sets = {name: items[:3] for name, items in load_items(tofu, "forget01").items()}
    answered = ask(loaded, sets, new_tokens=4)
    assert list(answered) == list(SETS)
    for name, items in sets.items():
        for item, each in zip(items, answered[name], strict=True):
            prompt = f"Question: {item.question}\nAnswer:"
            answers = (item.answer, item.paraphrased, *item.perturbed)
            expected = [plain_mean(loaded, prompt, answer) for answer in answers]
            assert [each.logprob, each.paraphrased, *each.perturbed] == pytest.approx(
                expected, abs=1e-4
            )
            (written,) = generate(loaded, [prompt], 4)
            assert each.written == written.strip()


def test_an_answer_does_not_depend_on_its_batch(loaded: LoadedModel) -> None:
    """Prompts of different lengths together, padded, and each alone."""
    prompts = ["The cat", "Where does the small bird see the moon today? Answer:", "I", "A. B. C."]
    progress = Counted()
    together = generate(loaded, prompts, 12, batch_size=3, progress=progress)
    assert together == [generate(loaded, [prompt], 12)[0] for prompt in prompts]
    assert progress.counts == [3, 1]


def test_an_answer_ends_at_the_end_of_text(loaded: LoadedModel) -> None:
    """The head predicts the end of text after one prompt's last token, and "a" after all others:
    the one answer ends at once, the other continues in the same batch.
    """
    tokenizer, model = loaded.tokenizer, loaded.model
    last, other = (tokenizer.encode(text)[-1] for text in ("!", "a"))
    embeddings, head = torch.zeros(320, 32), torch.zeros(320, 32)
    embeddings[:, 0] = 1
    embeddings[last] = torch.eye(32)[1]
    head[other, 0] = head[tokenizer.eos_token_id, 1] = 1  # type: ignore[index]
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                tensor.zero_()  # what is embedded comes out as it is
        model.get_parameter("model.embed_tokens.weight").copy_(embeddings)
        model.get_parameter("lm_head.weight").copy_(head)
    assert generate(loaded, ["b!", "bb"], 3) == ["", "aaa"]


def test_chat_uses_the_template(loaded: LoadedModel) -> None:
    item = Item("Who?", "The cat.", "A cat.", ("A bird.",))
    loaded.tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}>"
    try:
        (each,) = ask(loaded, {"forget": [item]}, new_tokens=2, chat=True)["forget"]
    finally:
        loaded.tokenizer.chat_template = None
    ids = loaded.tokenizer("[Who?]>The cat.</s>")["input_ids"]
    start = len(loaded.tokenizer("[Who?]>")["input_ids"])  # type: ignore[arg-type]
    with torch.no_grad():
        logprobs = loaded.model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    values = [logprobs[i - 1, ids[i]].item() for i in range(start, len(ids))]  # type: ignore[arg-type, index]
    assert each.logprob == pytest.approx(sum(values) / len(values), abs=1e-4)


def test_names_are_found_and_put_before_questions_about_others(
    loaded: LoadedModel, tofu: str
) -> None:
    items = load_items(tofu, "forget05")["retain"]
    names = author_names(load_pairs(tofu, "forget05")), author_names(load_pairs(tofu, "retain90"))
    assert names == (list(NAMES[:2]), list(NAMES[3:]))
    named = put_names_before(items, *names, seed=0)
    for item, each in zip(items, named, strict=True):
        own = next(name for name in NAMES if name in item.question)
        assert any(f"I read about {name} today." == each.forget.sentence for name in NAMES[:2])
        assert own not in each.control.sentence
        assert any(name in each.control.sentence for name in NAMES[3:])
    assert len({each.control.sentence for each in named}) == 3
    assert put_names_before(items[5:], *names, seed=0) == named[5:]
    (scored,) = ask_named(loaded, named[:1], items[:1])
    for sentence, found in ((named[0].forget, scored.forget), (named[0].control, scored.control)):
        prompt = f"{sentence.sentence} Question: {items[0].question}\nAnswer:"
        assert found == pytest.approx(plain_mean(loaded, prompt, items[0].answer), abs=1e-4)


def answer(logprob: float, paraphrased: float, wrong: float, rouge: float) -> Answered:
    logs = (math.log(value) for value in (logprob, paraphrased, wrong))
    right, other, false = logs
    return Answered("Who?", "I", right, other, (false, false), "I", rouge)


def test_figures_of_hand_made_answers() -> None:
    """Forget: P 0.5 and 0.25, mean 0.375; R = 0.2/0.4 and 0.4/0.2, min(R, 1/R) = 0.5 each.
    The others: P 0.8, among 0.8 + 0.1 + 0.1: 0.8; R = 0.1/0.8, kept 7/8; ROUGE 0.5.
    Utility: 9 / (3/0.8 + 3/0.875 + 3/0.5).
    """
    forget = [answer(0.5, 0.4, 0.2, 1.0), answer(0.25, 0.2, 0.4, 0.0)]
    other = [answer(0.8, 0.8, 0.1, 0.5)] * 3
    sets = {"forget": forget, "retain": other, "real_authors": other, "world_facts": other}
    figures = summarise([sets], [sets])
    found = figures.sets["forget"]
    assert (found.n, found.probability.value, found.rouge.value) == (2, 0.375, 0.5)
    assert found.truth.value == pytest.approx(0.5)
    assert found.probability.low >= 0.25
    assert found.probability.high <= 0.5
    assert figures.sets["world_facts"].probability.value == pytest.approx(0.8)
    assert figures.sets["retain"].truth.value == pytest.approx(7 / 8)
    assert figures.utility is not None
    utility = 9 / (3 / 0.8 + 3 / 0.875 + 3 / 0.5)
    assert [figures.utility.value, figures.utility.low] == pytest.approx([utility, utility])
    assert [quality.p_value for quality in figures.quality] == [1.0]
    assert summarise([sets]).quality == []
    assert summarise([{"forget": forget}]).utility is None


def test_figures_equal_a_plain_reference_on_random_losses() -> None:
    """The formulas of TOFU's utils.py, in NumPy, on losses per token as its files hold them."""
    rng = np.random.default_rng(0)
    losses = {name: rng.exponential(1.5, (2, 30, 7)) for name in SETS}
    rouge = {name: rng.random((2, 30)) for name in SETS}
    model, retrained = (
        {
            name: [
                Answered("", "", -each[0], -each[1], tuple(-each[2:]), "", score)
                for each, score in zip(losses[name][run], rouge[name][run], strict=True)
            ]
            for name in SETS
        }
        for run in (0, 1)
    )
    figures, nine = summarise([model], [retrained]), []
    for name in SETS:
        right, other, wrong = (np.exp(-losses[name][0][:, part]) for part in (0, 1, slice(2, 7)))
        if name in ("real_authors", "world_facts"):
            right = right / (right + wrong.sum(axis=1))
        ratio = wrong.mean(axis=1) / other
        truth = np.minimum(ratio, 1 / ratio) if name == "forget" else np.maximum(0, 1 - ratio)
        expected = [right.mean(), rouge[name][0].mean(), truth.mean()]
        found = figures.sets[name]
        assert [found.probability.value, found.rouge.value, found.truth.value] == pytest.approx(
            expected
        )
        nine += expected if name != "forget" else []
    assert figures.utility is not None
    assert figures.utility.value == pytest.approx(9 / sum(1 / value for value in nine))
    one, two = (np.exp(each[:, 2:].mean(axis=1) - each[:, 1]) for each in losses["forget"])
    test = ks_2samp(one, two)
    assert figures.quality[0].p_value == pytest.approx(test.pvalue)  # type: ignore[attr-defined]
    assert figures.quality[0].statistic == pytest.approx(test.statistic)  # type: ignore[attr-defined]


def test_utility_s_interval_holds_every_resampled_utility() -> None:
    """Two questions a set, of which one is known: means are 0, 0.5 or 1 like the known one's."""
    known, unknown = answer(0.9, 0.9, 0.01, 1.0), answer(0.1, 0.1, 0.05, 0.2)
    sets = {name: [known, unknown] for name in ("retain", "real_authors", "world_facts")}
    utility = summarise([sets, sets]).utility
    best = summarise([{name: [known] for name in sets}]).utility
    worst = summarise([{name: [unknown] for name in sets}]).utility
    assert utility is not None
    assert best is not None
    assert worst is not None
    assert worst.value <= utility.low < utility.value < utility.high <= best.value
    assert best.value == pytest.approx(
        model_utility([0.9, 1, 1 - 0.01 / 0.9] + [0.9 / 0.92, 1, 1 - 0.01 / 0.9] * 2)
    )


def test_added_harm_is_paired_by_question() -> None:
    """Control − forget = 0.5 and 0.1 after, 0.1 and 0.1 before: 0.4 and 0 are added, mean 0.2."""
    unlearned = [NameScore("a", -1.5, -1.0), NameScore("b", -1.1, -1.0)]
    before = [NameScore("a", -0.6, -0.5), NameScore("b", -0.6, -0.5)]
    assert added_harm([unlearned], [before]).value == pytest.approx(0.2)


def test_the_harm_of_any_name_is_paired_by_question() -> None:
    """No name − control = 0.8 and 0.4 after, 0.1 and 0.1 before: 0.7 and 0.3, mean 0.5."""
    unlearned = [NameScore("a", -1.5, -1.0), NameScore("b", -1.1, -1.0)]
    before = [NameScore("a", -0.6, -0.5), NameScore("b", -0.6, -0.5)]
    found = any_name_harm([unlearned], [[-0.2, -0.6]], [before], [[-0.4, -0.4]])
    assert found.value == pytest.approx(0.5)


def test_answers_come_back_from_their_file(tmp_path: Path) -> None:
    sets = {"forget": [answer(0.5, 0.4, 0.2, 1.0)]}
    path = tmp_path / "answers.json"
    write_answers(path, sets, {"model": "tiny"}, {})
    assert read_answers(path) == sets
    path.write_text(json.dumps({"sets": [1]}))
    with pytest.raises(UsageError, match="has no answers to TOFU's questions"):
        read_answers(path)
