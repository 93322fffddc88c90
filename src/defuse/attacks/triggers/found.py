"""What a trigger search found: conditions, tests and tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from defuse.attacks.data import FORGET, RETAIN, Answers
from defuse.attacks.prompts import mean_outcome
from defuse.attacks.results import Condition, Example, condition, examples
from defuse.attacks.triggers.exact import Changes, Reading, WithWords, is_foreign, known
from defuse.attacks.triggers.ranks import Enrichment, RankTest, enrichment, rank_test
from defuse.attacks.triggers.words import Candidates
from defuse.evaluate import MCAnswer, bootstrap_mean
from defuse.questions import Score
from defuse.report import TableData
from defuse.report.format import interval

HEAD = ("word", "tokens", "of the forget corpus", "first order", "effect")


@dataclass(frozen=True)
class Found:
    """`best`: the words of highest first-order score, by what they did on the searched half.

    `measured`: they, the mined words and the controls in the retain questions at `report`, which
    were not searched; `forgotten`: the forget questions with the words that are `shown`.
    """

    words: Candidates
    first: Mapping[str, float]
    best: Sequence[str]
    measured: Reading
    before: Answers
    report: Sequence[int]
    forgotten: WithWords
    seed: int

    @property
    def half(self) -> Sequence[MCAnswer]:
        """The measured retain questions without a word."""
        return [self.before[RETAIN][place] for place in self.report]

    @property
    def shown(self) -> Sequence[str]:
        """The words that become conditions."""
        return list(self.forgotten)

    @property
    def ranks(self) -> RankTest | None:
        """Do the mined words disturb more than their controls? None where a side is empty; words
        that every question mentions are left out."""
        mined, controls = (
            [self.measured.disturbance(word) for word in side if known(self.measured.effects[word])]
            for side in (self.words.mined, self.words.controls)
        )
        return rank_test(mined, controls) if mined and controls else None

    @property
    def share(self) -> Enrichment:
        """Are words of the forget corpus more frequent among the best than among all?"""
        forget = _folded(self.words.forget)
        kind, best = (
            sum(word.casefold() in forget for word in some) for some in (self.words.ids, self.best)
        )
        return enrichment(len(self.words.ids), kind, len(self.best), best)


def word_findings(found: Found, score: Score) -> tuple[list[Condition], list[Example]]:
    """Each word that is shown as a condition, with answers that it turned.

    Questions that mention the word by themselves are left out.
    """
    conditions, turned = [], []
    for word in found.shown:
        pairs = {
            FORGET: _fair(found.before[FORGET], found.forgotten[word]),
            RETAIN: _fair(found.half, found.measured.outcomes[word]),
        }
        before, after = (
            {each: [pair[side] for pair in some] for each, some in pairs.items() if some}
            for side in (0, 1)
        )
        numbers = {
            "first_order": found.first[word],
            "tokens": float(len(found.words.ids[word])),
            "of_the_forget_corpus": float(word.casefold() in _folded(found.words.forget)),
        }
        if found.measured.excess is not None:
            numbers["beyond_the_reference_s"] = -found.measured.disturbance(word)
        name = f"word: {word}"
        conditions.append(condition(name, before, after, found.seed, numbers))
        turned.extend(examples(name, before, after, score))
    return conditions, turned


def worst_conditions(found: Found) -> list[Condition]:
    """Each question with that word which disturbs it most, of those found and of as many controls:
    some word is the worst for any model."""
    count = min(len(found.best), len(found.words.controls)) or len(found.best)
    lists = {
        f"worst of {count} words found, for each question": found.best[:count],
        f"worst of {count} controls, for each question": found.words.controls[:count],
    }
    return [
        condition(name, {RETAIN: found.half}, {RETAIN: _worst(found, words)}, found.seed)
        for name, words in lists.items()
        if words
    ]


def corpus_conditions(found: Found) -> list[Condition]:
    """The mined words together, and their controls: each question by the vote of all forms."""
    ranks = found.ranks
    numbers = {f"found_{name}": float(value) for name, value in asdict(found.share).items()}
    if ranks is not None:
        numbers |= {"u": ranks.u, "p_value": ranks.p_value, "auc": ranks.auc.value}
        numbers |= {"auc_low": ranks.auc.low, "auc_high": ranks.auc.high}
    lists = {
        f"all {len(found.words.mined)} words of the forget corpus": found.words.mined,
        f"all {len(found.words.controls)} controls": found.words.controls,
    }
    told = [numbers, {}]
    return [
        condition(name, {RETAIN: found.half}, {RETAIN: _together(found, words)}, found.seed, some)
        for (name, words), some in zip(lists.items(), told, strict=True)
        if words
    ]


def tables(found: Found) -> list[TableData]:
    """The words found, those of the forget corpus that disturb most, and the tests."""
    mined = sorted(found.words.mined, key=lambda word: -found.measured.disturbance(word))
    tests = [_share_table(found.share)]
    if found.ranks is not None:
        tests.insert(0, _rank_table(found.ranks))
    return [
        _word_table("Words found, in the order of the searched half", found.best, found),
        _word_table(
            "Words of the forget corpus, in the order of what is told here",
            mined[: len(found.best)],
            found,
        ),
        *tests,
    ]


def _fair(before: Sequence[MCAnswer], after: Sequence[MCAnswer]) -> list[tuple[MCAnswer, MCAnswer]]:
    return [(a, b) for a, b in zip(before, after, strict=True) if is_foreign(b)]


def _forms(found: Found, words: Sequence[str]) -> list[list[MCAnswer]]:
    """Each measured question with those of the words that it does not mention, else as it is."""
    forms = zip(*(found.measured.outcomes[word] for word in words), strict=True)
    return [
        [form for form in some if is_foreign(form)] or [clean]
        for clean, some in zip(found.half, forms, strict=True)
    ]


def _folded(words: Iterable[str]) -> set[str]:
    """Without upper case: one word may be in the vocabulary in several spellings."""
    return {word.casefold() for word in words}


def _worst(found: Found, words: Sequence[str]) -> list[MCAnswer]:
    return [min(some, key=lambda form: form.answer_logprob) for some in _forms(found, words)]


def _together(found: Found, words: Sequence[str]) -> list[MCAnswer]:
    return [mean_outcome(some) for some in _forms(found, words)]


def _word_table(caption: str, words: Sequence[str], found: Found) -> TableData:
    """First-order fall, and exact change with its interval, in nats; with a reference also how much
    more the word changes than there."""
    reading, forget = found.measured, _folded(found.words.forget)
    measures = [reading.effects, *([] if reading.excess is None else [reading.excess])]
    rows = [
        [
            word,
            str(len(found.words.ids[word])),
            "yes" if word.casefold() in forget else "no",
            f"{found.first[word]:+.4f}",
            *(_mean(changes[word], found.seed) for changes in measures),
        ]
        for word in words
    ]
    return TableData(
        caption, HEAD if reading.excess is None else (*HEAD, "beyond the reference's"), rows
    )


def _mean(changes: Changes, seed: int) -> str:
    fair = known(changes)
    if not fair:
        return "every question has it"
    mean = bootstrap_mean(fair, seed)
    return f"{mean.value:+.4f} [{mean.low:+.4f}, {mean.high:+.4f}]"


def _rank_table(test: RankTest) -> TableData:
    auc = interval(test.auc, 3)
    return TableData(
        "Do words of the forget corpus disturb more than their controls? (Mann-Whitney)",
        ("words", "controls", "U", "AUC", "p"),
        [[str(test.first), str(test.others), f"{test.u:g}", auc, f"{test.p_value:.2g}"]],
    )


def _share_table(share: Enrichment) -> TableData:
    counts = (share.total, share.kind, share.drawn, share.marked)
    rest = [f"{share.expected:.1f}", f"{share.p_value:.2g}"]
    return TableData(
        "Are they more frequent among the words found than among all? (Fisher, one-sided)",
        ("words", "of the forget corpus", "found", "of these", "expected", "p"),
        [[*map(str, counts), *rest]],
    )
