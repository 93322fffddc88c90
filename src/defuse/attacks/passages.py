"""Running text about what was forgotten or kept, drawn and batched for what measures on it."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from defuse.attacks.material import FORGET, Material
from defuse.batches import TextBatch, collate
from defuse.decoder import Decoder
from defuse.evaluate.scorer import max_length
from defuse.questions import ask, continuations
from defuse.schedule import generator
from defuse.texts import QuestionAnswer, Text, encode


def passages(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    name: str,
    *,
    count: int,
    length: int,
    batch_size: int,
    seed: int,
) -> list[TextBatch]:
    """At most `count` texts of the set `name`, each cut after `length` tokens, by falling length.

    Raises UsageError for a text without a token to predict.
    """
    texts = texts_of(material, name)
    drawn = torch.randperm(len(texts), generator=generator(seed, "passages", name)).tolist()[:count]
    length = min(length, max_length(decoder.model, tokenizer))
    encoded = encode([texts[row] for row in drawn], tokenizer, length)
    order = sorted(range(len(drawn)), key=lambda place: -len(encoded[place].ids))
    groups = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    return [
        collate(
            [encoded[place] for place in group],
            [(name, drawn[place]) for place in group],
            pad_token_id=0,  # hidden from all real tokens, and counted nowhere
            device=decoder.device,
        )
        for group in groups
    ]


def texts_of(material: Material, name: str) -> Sequence[Text]:
    """The texts of a set, else its questions, of which the right answer alone is predicted."""
    given = material.forget_texts if name == FORGET else material.retain_texts
    score = material.settings.score
    return given or [
        QuestionAnswer(q.stem, continuations(q, score)[q.answer], asked=ask(q, score))
        for q in material.sets[name]
    ]
