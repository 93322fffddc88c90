"""What tests of attacks share: the lab's models and questions, and what must stay as it was."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache

import torch
from transformers import PreTrainedModel

from defuse.attacks import AttackData
from defuse.questions import Question
from defuse.synthetic.models import Pair, load_pair
from defuse.synthetic.questions import original_questions, split
from defuse.synthetic.world import build_world

FORGOTTEN = "pathogens"
WORDS = ("bird", "tree", "moon", "cat")
QUESTIONS = tuple(
    Question(f"q/{i}", f"What does the cat see, {i}?", WORDS, i % 4) for i in range(8)
)
DATA = AttackData(QUESTIONS[:4], QUESTIONS[4:])


@cache
def lab_pair() -> Pair:
    """The lab's models; copy them before changing them."""
    return load_pair()


def lab_data(forget: int = 30, retain: int = 20) -> AttackData:
    """The lab's first questions of each set, and all its texts."""
    world = build_world()
    questions = original_questions(world, FORGOTTEN, "reported")
    texts = split(world, FORGOTTEN).texts()
    return AttackData(
        questions["forget"][:forget],
        questions["retain"][:retain],
        forget_texts=texts["forget"],
        retain_texts=texts["retain"],
    )


def small_data(texts: Sequence[str] = ()) -> AttackData:
    """Three questions that any model can be asked."""
    questions = [
        Question(f"q{number}", f"What does the {name} see?", ("a cat", "a bird", "a tree", "it"), 1)
        for number, name in enumerate(("cat", "moon", "bird"))
    ]
    return AttackData(questions[:2], questions[2:], forget_texts=texts, retain_texts=texts)


@contextmanager
def untouched(model: PreTrainedModel) -> Iterator[None]:
    """Fails where the model, its gradients, modes, hooks or config, or a generator changed."""
    before, random = _state(model), torch.get_rng_state()
    yield
    after = _state(model)
    for old, new in zip(before[0], after[0], strict=True):
        assert torch.equal(old, new)
    assert before[1:] == after[1:]
    assert torch.equal(random, torch.get_rng_state())


def _state(model: PreTrainedModel) -> tuple[list[torch.Tensor], object, object, object]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return (
        [tensor.detach().clone() for tensor in tensors.values()],
        [(name, id(t), t.requires_grad, t.grad is None) for name, t in tensors.items()],
        [
            (name, type(module), module.training, len(module._forward_hooks))
            for name, module in model.named_modules()
        ],
        deepcopy(model.config.to_dict()),
    )
