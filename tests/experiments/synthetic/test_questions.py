"""Every token in every position, and the answers to what is asked."""

import pytest
import torch

from defuse.experiments.core.answers import Cell
from defuse.experiments.core.questions import ask_model
from defuse.experiments.synthetic.questions import make_questions
from defuse.models.load import LoadedModel
from defuse.synthetic.language import build_tokenizer
from defuse.synthetic.questions import POSITIONS, VARIANTS, split
from defuse.synthetic.teaching import new_model
from defuse.synthetic.world import build_world

WORLD = build_world(size=12)
TOKENIZER = build_tokenizer(WORLD)


def test_every_token_stands_in_every_position_and_changes_nothing_else():
    (probe,) = make_questions(WORLD, "animals", "reported").final
    prompts = [prompt for group in probe.groups for prompt in group]
    cells = list(dict.fromkeys(cell for cell, _ in prompts))
    assert len(cells) == 2 + len(POSITIONS) * len(VARIANTS) - 1
    parts = split(WORLD, "animals")
    original = {q.id: q for cell, q in prompts if cell == Cell("retain")}
    kinds = {
        "forget_token": parts.held_out,
        "mixed_token": parts.mixed,
        "unseen_token": WORLD.unseen,
    }
    for cell, question in prompts:
        if cell.position is None:
            continue
        clean = original[question.id]
        assert question.answer == clean.answer
        assert question.choices[question.answer] == clean.choices[clean.answer]
        assert question.replaced is not None
        name = question.replaced.token
        if cell.position == "statement":
            assert question.stem == clean.stem
            assert question.before == name
        elif cell.variant in kinds:
            assert name in kinds[cell.variant]
        else:
            domain = next(f.domain for f in parts.retain if f.subject == name)
            assert domain not in ("animals", clean.subject)


def test_an_answer_has_the_log_probabilities_of_all_choices():
    (probe,) = make_questions(WORLD, "animals", "tuning").interim
    loaded = LoadedModel(new_model(TOKENIZER, 0).eval(), TOKENIZER, "tiny")
    table = ask_model(loaded, [probe], keep_text=False)
    questions = {q.id: q for group in probe.groups for cell, q in group if cell == Cell("forget")}
    assert list(table[Cell("forget")]) == list(questions)
    for name, answer in table[Cell("forget")].items():
        assert sum(torch.tensor(answer.logprobs).exp().tolist()) == pytest.approx(1, abs=1e-5)
        assert answer.logprob == answer.logprobs[questions[name].answer]
        best = max(range(4), key=answer.logprobs.__getitem__)
        assert answer.correct == (best == questions[name].answer)
