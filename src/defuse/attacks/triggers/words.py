"""Natural words to insert into questions: whole words of the vocabulary and of texts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from defuse.attacks.data import FORGET, RETAIN, AttackData
from defuse.data.trigger_mixing import WORD, mine_triggers
from defuse.questions import draw_controls
from defuse.utils.errors import UsageError

LEAD = "I read about"  # a word is encoded after these

Ids = Mapping[str, tuple[int, ...]]  # by word: its tokens within a text


@dataclass(frozen=True)
class Candidates:
    """`ids`: all words to search. `forget`: those typical of the forget texts, the most typical
    first. `mined`: the first of them that have a control. `controls`: as many other words, with as
    many tokens and about as frequent in the retain texts."""

    ids: Ids
    forget: Sequence[str]
    mined: Sequence[str]
    controls: Sequence[str]

    @property
    def whole(self) -> Ids:
        """The words of one token."""
        return {word: ids for word, ids in self.ids.items() if len(ids) == 1}


def find_candidates(
    data: AttackData, tokenizer: PreTrainedTokenizerBase, mined: int, seed: int
) -> Candidates:
    """Find the words to search, and at most `mined` of them to compare with controls.

    Raises UsageError if the vocabulary has fewer than two whole words, or no word is typical of the
    forget texts.
    """
    texts = {name: data.texts_of(name) for name in (FORGET, RETAIN)}
    written = {word for each in texts.values() for text in each for word in WORD.findall(text)}
    forget = mine_triggers(texts[FORGET], texts[RETAIN], count=len(written))
    whole = vocabulary_words(tokenizer)
    if len(whole) < 2:
        raise UsageError(
            "tokenizer: has fewer than two whole words as tokens, and the first-order search "
            "starts from such words; leave the attack triggers out"
        )
    ids = {**whole, **encode_words(sorted(written - whole.keys()), tokenizer)}
    neutral = _neutral(texts[RETAIN], forget, written, whole)
    lengths = {len(ids[word]) for word in " ".join(neutral).split() if word in ids}
    comparable = [word for word in forget if word in ids and len(ids[word]) in lengths][:mined]
    controls = draw_controls(comparable, neutral, tokenizer, seed)
    return Candidates(ids, forget, comparable, list(dict.fromkeys(controls)))


def vocabulary_words(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """Whole words of three letters or more that are one token after another word."""
    decoded = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
    words = dict.fromkeys(text.strip() for text in decoded if WORD.fullmatch(text.strip()))
    return {word: ids for word, ids in encode_words(words, tokenizer).items() if len(ids) == 1}


def encode_words(words: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Ids:
    """The tokens of each word within a text.

    Words that the tokenizer does not know, or joins with the word before, are left out.
    """
    words = list(words)
    texts = [LEAD, *(f"{LEAD} {word}" for word in words)]
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    start, *wholes = [tuple(ids) for ids in encoded["input_ids"]]  # type: ignore[union-attr]
    cut, unknown = len(start), tokenizer.unk_token_id
    return {
        word: ids[cut:]
        for word, ids in zip(words, wholes, strict=True)
        if ids[:cut] == start and len(ids) > cut and unknown not in ids[cut:]
    }


def _neutral(
    retain: Sequence[str], forget: Sequence[str], written: Iterable[str], whole: Ids
) -> list[str]:
    """Texts to draw controls from: the retain texts without forget-words, and one of the words of
    the vocabulary that are in no text."""
    excluded = {word.casefold() for word in forget}
    texts = [[w for w in WORD.findall(text) if w.casefold() not in excluded] for text in retain]
    known = {word.casefold() for word in written}
    unwritten = [word for word in whole if word.casefold() not in known]
    return [" ".join(words) for words in [*texts, unwritten]]
