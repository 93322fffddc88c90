"""The defence "mixing": retain texts behind sentences with forget-tokens.

Unlearning can tie forget-tokens to its target. A sentence with a forget-token is put before some
retain texts and counts in no loss, so the updated model learns to continue as the reference does.
The fields of a topic and a recipe call these tokens `triggers`.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch

from defuse.data.given import given_strings, given_texts
from defuse.data.text import Text, Triggered
from defuse.utils.errors import UsageError
from defuse.utils.random import generator

# An evaluation puts a different sentence before its questions (defuse.questions.SENTENCE).
SENTENCES = (
    "Someone mentioned {token} this morning.",
    "The last page was about {token}.",
    "We had to look up {token} again.",
    "A note on {token} lay on the table.",
    "Nobody here talks about {token}.",
)
SENTENCE_ENDS = (".", "!", "?")
WORD = re.compile(r"[^\W\d_]{3,}")
MINED = 100
TYPICAL = 1.0  # standard errors; a word that is absent from the other corpus seldom has two
PRIOR = 0.5  # added to every count


def mix_triggers(
    texts: Sequence[Text], triggers: Sequence[str], share: float, seed: int, topic: str
) -> list[Text]:
    """`texts`, about a `share` of them behind a sentence with one of `triggers`.

    A trigger that ends like a sentence is used as the sentence. Which texts, sentences and triggers
    are used is drawn from (seed, topic, place in `texts`).
    """
    triggers, mixed = given_strings(triggers, "triggers"), []
    for place, text in enumerate(given_texts(texts, "texts")):
        rng = generator(seed, "triggers", topic, place)
        chance = float(torch.rand((), generator=rng))
        which, how = (int(torch.randint(len(n), (), generator=rng)) for n in (triggers, SENTENCES))
        trigger = triggers[which]
        is_sentence = trigger.endswith(SENTENCE_ENDS)
        sentence = trigger if is_sentence else SENTENCES[how].format(token=trigger)
        if chance < share and not isinstance(text, Triggered):
            mixed.append(Triggered(sentence, text))
        else:
            mixed.append(text)
    return mixed


def mine_triggers(
    forget: Iterable[Text], retain: Iterable[Text], count: int = MINED
) -> tuple[str, ...]:
    """The words most typical of the forget texts, at most `count`, the most typical first.

    Words are ranked by the log-odds ratio of their frequencies in the two corpora, divided by its
    standard error (Monroe, Colaresi and Quinn 2008, "Fightin' Words", eq. 15, with a flat prior);
    it must exceed one. Raises UsageError if it does for no word.
    """
    (ours, forms), (theirs, _) = (
        _counts(given_texts(texts, name))
        for name, texts in (("forget", forget), ("retain", retain))
    )
    vocabulary = ours.keys() | theirs.keys()
    our_total, their_total = (counts.total() + PRIOR * len(vocabulary) for counts in (ours, theirs))

    def typical(word: str) -> float:
        one, other = ours[word] + PRIOR, theirs[word] + PRIOR
        ratio = math.log(one / (our_total - one)) - math.log(other / (their_total - other))
        return ratio / math.sqrt(1 / one + 1 / other)

    scores = {word: typical(word) for word in sorted(ours)}
    ranked = sorted(scores, key=lambda word: -scores[word])
    chosen = [word for word in ranked if scores[word] > TYPICAL][:count]
    if not chosen:
        raise UsageError(
            "triggers: no word is typical of the forget texts; give a file of forget-tokens, or "
            "more texts"
        )
    return tuple(forms[word].most_common(1)[0][0] for word in chosen)


def _counts(texts: Iterable[Text]) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """The number of times that each word occurs, and its spellings."""
    counts: Counter[str] = Counter()
    forms: dict[str, Counter[str]] = {}
    for text in texts:
        for word in WORD.findall(str(text)):
            counts[word.casefold()] += 1
            forms.setdefault(word.casefold(), Counter())[word] += 1
    return counts, forms
