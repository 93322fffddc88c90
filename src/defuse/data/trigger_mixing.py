"""Trigger-mixed retain texts: a defence beside RNA, beyond the paper.

If unlearning ties forget-terms to its target, then retain texts that stand behind forget-terms can
untie them: a sentence that names one is set before some of the retain texts and counts in no loss,
so that the updated model learns to read on as the reference does.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch

from defuse.data.text import Text, Triggered
from defuse.utils.errors import UsageError
from defuse.utils.random import generator

# None is a sentence that an evaluation sets before its questions (defuse.questions.SENTENCE).
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
TYPICAL = 1.0  # standard errors; a word that the other corpus lacks seldom has two
PRIOR = 0.5  # added to every count


def mix_triggers(
    texts: Sequence[Text], triggers: Sequence[str], share: float, seed: int, topic: str
) -> list[Text]:
    """`texts` with a sentence that names a trigger before about `share` of them.

    A trigger that is a sentence itself (it ends as one) stands there as it is. Whether, and which
    sentence and trigger, is drawn from (seed, topic, place in `texts`).
    """
    mixed = []
    for place, text in enumerate(texts):
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

    Words are ranked by the log-odds ratio of their frequencies in the two corpora over its standard
    error (Monroe, Colaresi and Quinn 2008, "Fightin' Words", eq. 15, with a flat prior), as far as
    it exceeds one. Raises UsageError if no word is.
    """
    (ours, forms), (theirs, _) = _counts(forget), _counts(retain)
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
            "triggers: no word is typical of the forget texts; name a file of terms, or give more "
            "texts"
        )
    return tuple(forms[word].most_common(1)[0][0] for word in chosen)


def _counts(texts: Iterable[Text]) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """How often each word occurs, and in which spellings."""
    counts: Counter[str] = Counter()
    forms: dict[str, Counter[str]] = {}
    for text in texts:
        for word in WORD.findall(str(text)):
            counts[word.casefold()] += 1
            forms.setdefault(word.casefold(), Counter())[word] += 1
    return counts, forms
