"""Conditions, tests and tables of a trigger search."""

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
class Search:
    """The words of a search, and all answers with them.

    `first`: first-order scores. `best`: the words of highest score, sorted by their effect on the
    half that was searched. `measured`: these, the mined words and the controls in the retain
    questions at `report`, the other half. `forgotten`: forget questions with the words `shown`.
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
        """The words that have a condition of their own."""
        return list(self.forgotten)

    @property
    def ranks(self) -> RankTest | None:
        """Test whether the mined words disturb more than their controls; None if a side is empty.

        Words that every question mentions are left out.
        """
        mined, controls = (
            [self.measured.disturbance(word) for word in side if known(self.measured.effects[word])]
            for side in (self.words.mined, self.words.controls)
        )
        return rank_test(mined, controls) if mined and controls else None

    @property
    def share(self) -> Enrichment:
        """Test whether words of the forget corpus are more frequent among the best."""
        forget = _folded(self.words.forget)
        kind, best = (
            sum(word.casefold() in forget for word in some) for some in (self.words.ids, self.best)
        )
        return enrichment(len(self.words.ids), kind, len(self.best), best)


def word_findings(found: Search, score: Score) -> tuple[list[Condition], list[Example]]:
    """A condition for each word that is shown, and answers that it changed.

    Questions that mention the word themselves are left out.
    """
    conditions, changed = [], []
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
        conditions.append(condition(name, before, after, found.seed, numbers, headline=False))
        changed.extend(examples(name, before, after, score))
    return conditions, changed


def worst_conditions(found: Search) -> list[Condition]:
    """Each question with the word that disturbs it most, among those found and among as many
    controls: some word is the worst for any model."""
    count = min(len(found.best), len(found.words.controls)) or len(found.best)
    lists = [
        (f"worst of {count} words found, for each question", found.best, False),
        (f"worst of {count} controls, for each question", found.words.controls, True),
    ]
    before = {RETAIN: found.half}
    return [
        condition(
            name,
            before,
            {RETAIN: _worst(found, words[:count])},
            found.seed,
            is_control=is_control,
        )
        for name, words, is_control in lists
        if words
    ]


def corpus_conditions(found: Search) -> list[Condition]:
    """The mined words together, and their controls: all prompts of a question vote."""
    ranks = found.ranks
    numbers = {f"found_{name}": float(value) for name, value in asdict(found.share).items()}
    if ranks is not None:
        numbers |= {"u": ranks.u, "p_value": ranks.p_value, "auc": ranks.auc.value}
        numbers |= {"auc_low": ranks.auc.low, "auc_high": ranks.auc.high}
    mined, controls = found.words.mined, found.words.controls
    lists = [
        (f"all {len(mined)} words of the forget corpus", mined, numbers, False),
        (f"all {len(controls)} controls", controls, {}, True),
    ]
    before = {RETAIN: found.half}
    return [
        condition(
            name,
            before,
            {RETAIN: _together(found, words)},
            found.seed,
            some,
            is_control=is_control,
        )
        for name, words, some, is_control in lists
        if words
    ]


def tables(found: Search) -> list[TableData]:
    """Tables of the words found, of the words of the forget corpus, and of the tests."""
    mined = sorted(found.words.mined, key=lambda word: -found.measured.disturbance(word))
    tests = [_share_table(found.share)]
    if found.ranks is not None:
        tests.insert(0, _rank_table(found.ranks))
    return [
        _word_table(
            "Words found, in the order of their effect on the searched half", found.best, found
        ),
        _word_table(
            "Words of the forget corpus, in the order of the effects reported here",
            mined[: len(found.best)],
            found,
        ),
        *tests,
    ]


def _fair(before: Sequence[MCAnswer], after: Sequence[MCAnswer]) -> list[tuple[MCAnswer, MCAnswer]]:
    return [(a, b) for a, b in zip(before, after, strict=True) if is_foreign(b)]


def _prompts(found: Search, words: Sequence[str]) -> list[list[MCAnswer]]:
    """Each measured question with those words that it does not mention, or without a word."""
    by_question = zip(*(found.measured.outcomes[word] for word in words), strict=True)
    return [
        [outcome for outcome in some if is_foreign(outcome)] or [original]
        for original, some in zip(found.half, by_question, strict=True)
    ]


def _folded(words: Iterable[str]) -> set[str]:
    """The words without case, since the vocabulary may have a word in several spellings."""
    return {word.casefold() for word in words}


def _worst(found: Search, words: Sequence[str]) -> list[MCAnswer]:
    return [min(some, key=lambda each: each.answer_logprob) for some in _prompts(found, words)]


def _together(found: Search, words: Sequence[str]) -> list[MCAnswer]:
    return [mean_outcome(some) for some in _prompts(found, words)]


def _word_table(caption: str, words: Sequence[str], found: Search) -> TableData:
    """First-order fall, and exact change with its interval, in nats; with a reference, also the
    change beyond the reference's."""
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
        return "in every question"
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
