"""The attack finds a planted trigger, finds nothing where nothing is, and leaves no trace."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks import AttackData, Findings, Result, gcg
from defuse.attacks.data import ask_questions
from defuse.attacks.gcg.candidates import allowed_tokens
from defuse.attacks.gcg.config import Where
from defuse.attacks.gcg.places import question_place, with_suffix
from defuse.attacks.gcg.score import Budget, Scorer
from defuse.attacks.gcg.search import Found, kept
from defuse.attacks.gcg.tasks import prepare
from defuse.evaluate import Settings
from defuse.models.decoder import Decoder
from defuse.questions import Question, Score, ask
from defuse.utils.errors import UsageError
from tests.conftest import CORPUS, build_llama
from tests.helpers.planted import check_resumes, names_in, outline
from tests.helpers.tokenizers_on_the_spot import byte_bpe, bytes_only

SUBJECTS = ("cat", "bird", "moon", "tree", "college", "question", "biology", "answer")
TRIGGER = " about"
# A taught model says B, and C once it has seen the trigger: it breaks the answers of retain
# questions, and recovers those of forget questions.
B, C = 1, 2
QUICK = gcg.GCG(
    steps=6, search_width=48, topk=60, length=2, init="cat", questions=3, place="question"
)


def questions(answer: int) -> list[Question]:
    return [
        Question(f"{answer}/{name}", f"What is a {name}?", ("one", "two", "three", "four"), answer)
        for name in SUBJECTS
    ]


MATERIAL = AttackData(forget=questions(C), retain=questions(B))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return byte_bpe([*CORPUS, "Answer: A Answer: B Answer: C Answer: D"])


@pytest.fixture(scope="module")
def planted(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Taught for some steps to answer B, but C where the trigger stands behind the question."""
    model = build_llama(layers=2, vocab_size=len(tokenizer))
    allowed = allowed_tokens(tokenizer, Decoder(model), allow_non_ascii=False)
    probes = allowed[::5].tolist()
    place = question_place(MATERIAL.retain[0], Settings(), "question", tokenizer, probes)
    (trigger,) = tokenizer(TRIGGER, add_special_tokens=False).input_ids
    letters = tokenizer(" B C", add_special_tokens=False).input_ids
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rng = torch.Generator().manual_seed(0)
    before, after = (torch.tensor(ids).expand(32, -1) for ids in (place.before, place.after))
    loss = torch.tensor(torch.inf)
    for _ in range(120):
        suffix = allowed[torch.randint(len(allowed), (32, 2), generator=rng)]
        suffix[suffix == trigger] = int(allowed[0])
        suffix[torch.arange(16), torch.randint(2, (16,), generator=rng)] = trigger
        logits = model(torch.cat([before, suffix, after], dim=1)).logits[:, -1, letters]
        aims = torch.tensor([1] * 16 + [0] * 16)
        loss = torch.nn.functional.cross_entropy(logits, aims)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1
    return model.eval()


def accuracies(result: Result) -> dict[str, dict[str, tuple[float, float]]]:
    return {
        condition.name: {
            each: (effect.before.accuracy.value, effect.after.accuracy.value)
            for each, effect in condition.effects.items()
        }
        for condition in result.conditions
    }


@pytest.mark.parametrize("width", [{}, {"n_replace": 2, "buffer_size": 4, "search_width": 200}])
def test_a_planted_trigger_is_found_by_both_aims_in_both_modes(
    planted: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, width: dict[str, int]
) -> None:
    result = gcg.run(planted, tokenizer, MATERIAL, replace(QUICK, **width))
    assert accuracies(result) == {
        "random suffix": {"forget": (0, 0), "retain": (1, 1)},
        "break, universal, searched": {"retain": (1, 0)},
        "break, universal, held out": {"forget": (0, 1), "retain": (1, 0)},
        "recover, universal, searched": {"forget": (0, 1)},
        "recover, universal, held out": {"forget": (0, 1), "retain": (1, 0)},
        "break, each question": {"retain": (1, 0)},
        "recover, each question": {"forget": (0, 1)},
    }
    (table,), (curves,) = result.tables, result.curves
    assert len(table.rows) == 2 + 2 * QUICK.questions
    assert all(TRIGGER in suffix for _, suffix, *_ in table.rows)
    assert [line.name for line in curves.lines] == ["break", "recover"]
    shown = next(each for each in result.examples if each.condition.startswith("break, each"))
    assert TRIGGER in shown.asked_after
    assert TRIGGER not in shown.asked_before
    assert (shown.right, shown.before, shown.after) == ("two", "two", "three")


def test_reported_figures_are_those_of_the_search(
    planted: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """What the search has seen in tokens, the evaluation sees in the text it encodes anew."""
    result = gcg.run(planted, tokenizer, MATERIAL, replace(QUICK, modes=("universal",)))
    named = {condition.name: condition for condition in result.conditions}
    for aim, each, sign in (("break", "retain", 1), ("recover", "forget", -1)):
        condition = named[f"{aim}, universal, searched"]
        after = condition.effects[each].after
        assert after.n == QUICK.questions
        assert condition.numbers["loss"] == pytest.approx(sign * after.logprob.value, abs=1e-5)
        assert named[f"{aim}, universal, held out"].effects[each].after.n == len(SUBJECTS) - after.n


def test_where_all_answers_are_one_no_suffix_changes_any(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    model = build_llama(layers=2, vocab_size=len(tokenizer))
    with torch.no_grad():
        model.model.norm.weight.zero_()  # all logits are 0
    config = replace(QUICK, steps=2)
    data = AttackData(questions(C), [*questions(0), *questions(B)])
    result = gcg.run(model, tokenizer, data, config)
    for condition in result.conditions:
        for effect in condition.effects.values():
            assert effect.before == effect.after
    assert not result.examples
    broken = next(each for each in result.conditions if each.name == "break, each question")
    assert broken.numbers["searched"] < QUICK.questions  # what is wrong already is left alone


def test_a_search_goes_on_without_a_margin(
    planted: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = replace(QUICK, aims=("break",), modes=("universal",), margin=None, init="")
    (row,) = gcg.run(planted, tokenizer, MATERIAL, config).tables[0].rows
    assert row[2] == str(config.steps)
    assert TRIGGER in row[1]


class KilledError(Exception):
    pass


def test_a_killed_attack_resumes(
    planted: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    check_resumes(partial(gcg.run, planted, tokenizer, MATERIAL, QUICK), tmp_path)
    names = names_in(tmp_path / "whole")
    assert len(names) > 12
    assert "break, universal/step 1" in names


def test_what_the_caller_gave_stays_as_it_was(tokenizer: PreTrainedTokenizerBase) -> None:
    model = build_llama(layers=2, vocab_size=len(tokenizer)).train()
    model.lm_head.requires_grad_(False)
    before, tensors = _state(model), [each.clone() for each in _tensors(model)]
    gcg.run(model, tokenizer, MATERIAL, replace(QUICK, steps=1))
    assert _state(model) == before
    for one, other in zip(_tensors(model), tensors, strict=True):
        assert torch.equal(one, other)


def _tensors(model: PreTrainedModel) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(parameter.detach() for parameter in model.parameters())]


def _state(model: PreTrainedModel) -> list[Any]:
    parameters = list(model.parameters())
    return [
        [parameter.requires_grad for parameter in parameters],
        [parameter.grad for parameter in parameters],
        [module.training for module in model.modules()],
        [len(module._forward_hooks) for module in model.modules()],
        model.config.to_dict(),
    ]


def test_the_buffer_keeps_the_best_suffixes() -> None:
    a, b, c, d = (Found((token,), (loss,), 0.0) for token, loss in enumerate((2.0, 3.0, 1.0, 4.0)))
    assert kept((a,), b, 0) == (b,)
    buffer: tuple[Found, ...] = (a,)
    for found, expected in ((b, (a, b)), (c, (c, a)), (d, (c, a)), (a, (c, a))):
        buffer = kept(buffer, found, 2)
        assert buffer == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("aims", ()),
        ("aims", ("harm",)),
        ("modes", ("all",)),
        ("steps", 0),
        ("search_width", 0),
        ("topk", 0),
        ("n_replace", 21),
        ("buffer_size", -1),
        ("length", 0),
        ("questions", -1),
        ("train_share", 1.0),
        ("margin", 0.0),
    ],
)
def test_settings_that_cannot_be_are_refused(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=rf"gcg\.{field}(\.0)?: "):
        replace(gcg.GCG(), **{field: value})


PLACES = [("letters", "question"), ("letters", "end"), ("cloze", "question"), ("cloze", "end")]


def check_losses(tokenizer: PreTrainedTokenizerBase, data: AttackData, place: Where) -> None:
    """The loss of the suffix a search begins with is the figure that an evaluation finds."""
    model = build_llama(layers=2, vocab_size=len(tokenizer)).double()
    config = replace(QUICK, place=place, aims=("break",), modes=("universal",))
    (task,) = prepare(model, tokenizer, data, config).universal
    scorer = Scorer(Decoder(model), task.problems, Budget(64))
    with torch.no_grad():
        losses, _ = scorer.judge(task.start, torch.tensor([task.start]))
    (text,) = task.spelling.texts([task.start])
    asked, settings = data.retain, data.settings
    attacked = [with_suffix(asked[row], text, settings, place) for row in task.rows]
    outcomes = ask_questions(model, tokenizer, attacked, settings, Findings(), "x")
    for problem, outcome, loss in zip(task.problems, outcomes, losses[:, 0], strict=True):
        figure = outcome.answer_logprob
        if settings.score == "cloze":
            tokens = len(problem.target.read) + 1
            figure = outcome.logprobs[outcome.question.answer] / tokens
        assert math.isclose(float(loss), figure, rel_tol=1e-6)


@pytest.mark.parametrize(("score", "place"), PLACES)
@pytest.mark.parametrize("prompt", [None, "The cat sees a"])
def test_a_search_s_loss_is_the_evaluation_s_figure(
    tokenizer: PreTrainedTokenizerBase, score: Score, place: Where, prompt: str | None
) -> None:
    """Wherever the suffix stands, and however the questions are asked."""
    asked = [replace(each, prompt=prompt) for each in MATERIAL.retain]
    check_losses(tokenizer, replace(MATERIAL, retain=asked, settings=Settings(score)), place)


def test_a_prompt_of_its_own_takes_the_suffix_at_its_end() -> None:
    question = replace(MATERIAL.retain[0], prompt="The cat sees a")
    attacked = with_suffix(question, " moon", Settings(score="cloze"), "question")
    assert ask(attacked, "cloze") == "The cat sees a moon"
    assert with_suffix(question, " moon", Settings(), "end").choices[3].endswith(" moon")


def refused(tokenizer: PreTrainedTokenizerBase, data: AttackData, config: gcg.GCG) -> str:
    """The sentence that the check, which reads no weights, refuses with."""
    model = outline(build_llama(vocab_size=len(tokenizer)))
    with pytest.raises(UsageError) as error:
        gcg.check(model, tokenizer, data, config)
    return str(error.value)


def test_questions_that_cannot_be_attacked_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    assert "letters A to D" in refused(bytes_only(CORPUS), MATERIAL, replace(QUICK, init="c"))
    single = replace(MATERIAL, retain=MATERIAL.retain[:1])
    assert "retain: " in refused(tokenizer, single, QUICK)
    bare = replace(MATERIAL, forget=[replace(each, stem=" ") for each in MATERIAL.forget])
    assert "question '2/" in refused(tokenizer, bare, QUICK)


@pytest.mark.parametrize("init", ["biology cat", "unseen", "</s>"])
def test_a_suffix_that_cannot_begin_is_refused(
    tokenizer: PreTrainedTokenizerBase, init: str
) -> None:
    said = refused(tokenizer, MATERIAL, replace(QUICK, init=init))
    assert said.startswith(f"gcg.init: {init!r}")


@pytest.mark.parametrize("score", get_args(Score))
def test_a_prompt_too_long_is_cut_as_in_evaluation(
    tokenizer: PreTrainedTokenizerBase, score: Score
) -> None:
    """Where answers are many tokens, these are run, too."""
    long = "two small birds " * 3
    asked = [replace(each, choices=("one", long, "three", "four")) for each in MATERIAL.retain]
    settings = Settings(score, few_shot=tuple(questions(C) * 8))
    check_losses(tokenizer, replace(MATERIAL, retain=asked, settings=settings), "end")


def test_a_suffix_that_leaves_no_room_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    said = refused(tokenizer, MATERIAL, replace(QUICK, length=512))
    assert said.startswith("gcg.length: ")


@pytest.mark.parametrize(("score", "place"), PLACES)
def test_no_text_leaves_a_question_as_it_is(score: Score, place: Where) -> None:
    question = replace(MATERIAL.retain[0], stem=" What? ", choices=("a ", "b", "c", "d  "))
    assert with_suffix(question, "", Settings(score), place) == question


def test_one_set_of_one_question_may_be_attacked_by_itself(
    planted: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    single = AttackData(MATERIAL.forget[:1], MATERIAL.retain[:1])
    result = gcg.run(planted, tokenizer, single, replace(QUICK, modes=("question",)))
    assert accuracies(result)["break, each question"] == {"retain": (1, 0)}
    assert not result.curves
