"""Running text about what was forgotten or kept, drawn and batched for what measures on it."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from defuse.attacks.material import Material
from defuse.batches import TextBatch, collate
from defuse.decoder import Decoder
from defuse.errors import UsageError
from defuse.evaluate.scorer import max_length
from defuse.questions import ask, continuations
from defuse.schedule import generator
from defuse.texts import Encoded, QuestionAnswer, encode

WHOLE = 10**9  # tokens: longer than any text


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
    """At most `count` texts of the set `name`, each of at most `length` tokens, longest first.

    Texts are cut. Where there are none, questions stand in, of which the right answer alone is
    predicted; those that do not fit are left out. Raises UsageError for a text without a token to
    predict, and where no question fits.
    """
    length = min(length, max_length(decoder.model, tokenizer))
    given = material.given_texts(name)
    order = _order(len(given or material.sets[name]), seed, name)
    if given:
        order = order[:count]
        encoded = _encode([given[row] for row in order], tokenizer, length, name)
    else:
        asked = _encode([_answered(material, name, row) for row in order], tokenizer, WHOLE, name)
        fitting = [place for place, text in enumerate(asked) if len(text.ids) <= length][:count]
        if not fitting:
            raise UsageError(
                f"{name}: no question with its answer fits into {length} tokens; raise the length, "
                "or give texts"
            )
        order, encoded = [order[place] for place in fitting], [asked[place] for place in fitting]
    by_length = sorted(range(len(order)), key=lambda place: -len(encoded[place].ids))
    groups = [by_length[at : at + batch_size] for at in range(0, len(order), batch_size)]
    return [
        collate(
            [encoded[place] for place in group],
            [(name, order[place]) for place in group],
            pad_token_id=0,  # hidden from all real tokens, and counted nowhere
            device=decoder.device,
        )
        for group in groups
    ]


def _order(count: int, seed: int, name: str) -> list[int]:
    return torch.randperm(count, generator=generator(seed, "passages", name)).tolist()


def _answered(material: Material, name: str, row: int) -> QuestionAnswer:
    question, score = material.sets[name][row], material.settings.score
    answer = continuations(question, score)[question.answer]
    return QuestionAnswer(question.stem, answer, asked=ask(question, score))


def _encode(
    texts: Sequence[str | QuestionAnswer],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    name: str,
) -> list[Encoded]:
    try:
        return encode(texts, tokenizer, length)
    except UsageError as error:
        raise UsageError(f"{name} texts: {error}") from error
