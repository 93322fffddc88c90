"""Texts, and their token ids."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from defuse.data.token_ids import front_tokens, tokenise
from defuse.utils.config import check_fields
from defuse.utils.errors import UsageError


@dataclass(frozen=True)
class QuestionAnswer:
    """A question and its answer; preference losses count the answer's tokens only.

    `asked`: the prompt before the answer, if it is not "Question: …\\nAnswer: ".
    """

    question: str
    answer: str
    asked: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def prompt(self) -> str:
        return f"Question: {self.question}\nAnswer:" if self.asked is None else self.asked

    def __str__(self) -> str:
        return f"{self.prompt} {self.answer}" if self.asked is None else self.asked + self.answer


Plain = str | QuestionAnswer


@dataclass(frozen=True)
class Triggered:
    """A text behind a sentence that counts in no loss (`data.trigger_mixing`)."""

    sentence: str
    text: Plain

    def __post_init__(self) -> None:
        check_fields(self)

    def __str__(self) -> str:
        return f"{self.sentence} {self.text}"


Text = Plain | Triggered


@dataclass(frozen=True)
class Encoded:
    """`ids`: a text's tokens. `answer_start`: index of the first one that preference losses count.

    `uncounted`: indices of tokens that no loss counts.
    """

    ids: tuple[int, ...]
    answer_start: int
    uncounted: frozenset[int] = frozenset()


def encode(
    texts: Sequence[Text],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    packed: bool = False,
) -> list[Encoded]:
    """Token ids, truncated to `length` tokens, with the begin token that the tokenizer sets.

    A question-answer pair becomes "Question: …\\nAnswer: …". `packed` joins all texts, with the
    tokenizer's end-of-text token (else a line break) after each, and cuts the result into rows of
    exactly `length` tokens. All of them count, except sentences with forget-tokens. A last row
    shorter than half of that is dropped, unless it is the only one. Raises UsageError for a text
    without a token to predict.
    """
    if packed:
        return _pack(texts, tokenizer, length)
    whole = tokenise([str(text) for text in texts], tokenizer)
    leads = _shared([_lead(text) for text in texts], whole, tokenizer)
    prompts = _shared([_prompt(text) for text in texts], whole, tokenizer)
    encoded = []
    for text, ids, lead, prompt in zip(texts, whole, leads, prompts, strict=True):
        start = max(1, lead, prompt)
        if start >= min(len(ids), length):
            raise UsageError(
                f"text {str(text)[:40]!r}…: its first {length} tokens leave nothing to predict; "
                "raise the topic's length, or leave the text out"
            )
        encoded.append(Encoded(tuple(ids[:length]), start, frozenset(range(lead))))
    return encoded


def as_chat(pair: QuestionAnswer, tokenizer: PreTrainedTokenizerBase) -> QuestionAnswer:
    """`pair` with the tokenizer's chat template. Raises UsageError if it has none."""
    if not tokenizer.chat_template:
        raise UsageError(f"chat: {tokenizer.name_or_path} has no chat template; leave chat out")
    message = [{"role": "user", "content": pair.question}]
    asked = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    bos = tokenizer.bos_token
    if isinstance(bos, str) and tokenizer.bos_token_id in front_tokens(tokenizer):
        asked = str(asked).removeprefix(bos)  # the tokenizer adds it itself
    return QuestionAnswer(pair.question, pair.answer, str(asked))


def _lead(text: Text) -> str:
    """The sentence before the text that counts in no loss."""
    return text.sentence if isinstance(text, Triggered) else ""


def _prompt(text: Text) -> str:
    """The prompt of a question-answer pair's answer."""
    inner = text.text if isinstance(text, Triggered) else text
    if not isinstance(inner, QuestionAnswer):
        return ""
    return f"{_lead(text)} {inner.prompt}".lstrip()


def _shared(
    beginnings: Sequence[str],
    whole: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    begin: bool = True,
) -> Iterator[int]:
    """The number of each text's tokens that its beginning alone has: a token may span its end."""
    encoded = iter(tokenise([b for b in beginnings if b], tokenizer, begin=begin))
    for beginning, ids in zip(beginnings, whole, strict=True):
        own = next(encoded) if beginning else []
        pairs = enumerate(zip(own, ids, strict=False))
        yield next((at for at, (a, b) in pairs if a != b), min(len(own), len(ids)))


def _pack(texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, length: int) -> list[Encoded]:
    eos = tokenizer.eos_token_id
    start = list(front_tokens(tokenizer))
    end = tokenise(["\n"], tokenizer, begin=False)[0] if eos is None else [eos]
    whole = tokenise([str(text) for text in texts], tokenizer, begin=False)
    leads = _shared([_lead(text) for text in texts], whole, tokenizer, begin=False)
    stream: list[int] = []
    uncounted: set[int] = set()
    for ids, lead in zip(whole, leads, strict=True):
        uncounted.update(range(len(stream), len(stream) + lead))
        stream += ids if ids[-1:] == [eos] else [*ids, *end]
    room = length - len(start)
    rows = []
    for at in range(0, len(stream), room):
        ids = tuple(start + stream[at : at + room])
        places = range(at, min(at + room, len(stream)))
        dropped = frozenset(i - at + len(start) for i in places if i in uncounted)
        if len(dropped) < len(places):  # else no token of the row would count
            rows.append(Encoded(ids, 1, dropped))
    if len(rows) > 1 and len(rows[-1].ids) < length / 2:
        rows.pop()
    if not rows or len(rows[-1].ids) < 2:
        raise UsageError("packed: the texts make less than two tokens; give more text")
    return rows
