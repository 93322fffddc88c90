"""The table, on the screen, as Markdown and as data."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from defuse.evaluate import Interval, bootstrap_mean, wilson
from defuse.experiments.core.answers import CLEAN, FORGET, Answers
from defuse.experiments.core.metrics import (
    BOOTSTRAP_SEED,
    LOGPROB,
    RIGHT,
    Matched,
    Row,
    accuracy,
    make_row,
    match,
    mean,
    shared_ids,
    values,
)
from defuse.experiments.core.tables import sentence
from defuse.experiments.elements.grid import ARMS, Run
from defuse.report.format import interval, markdown_table, stacked

COLUMNS = (
    "",
    "runs",
    "n",
    "forget acc.",
    "retain acc.",
    "after forget-term",
    "after control",
    "logp after forget-term",
    "vulnerability",
    "vulnerability, nats",
    "vulnerability, as a choice",
)

DEFENCES = {"RNA": "RNA", "mixed": "mixing forget-terms into the retain texts"}

Finished = Mapping[Run, Mapping[int, Answers]]


def make_rows(finished: Finished, base: Answers) -> list[Row]:
    """The base model, then a row for each method, retain loss, noise and change, over seeds."""
    groups: dict[str, list[Answers]] = {}
    for run, steps in finished.items():
        name = label(run.method, " ".join([run.retain, *run.changes]), run.arm)
        groups.setdefault(name, []).append(steps[max(steps)])
    rows = [make_row(name, runs, base) for name, runs in sorted(groups.items())]
    return [make_row("base", [base], base), *rows]


def make_matches(finished: Finished, base: Answers) -> dict[tuple[str, str], Matched | None]:
    """Every defence against none at equal forgetting, by method and retain loss, and by arm."""
    pairs = sorted({(run.method, run.retain) for run in finished})
    matches = {}
    for pair in pairs:
        arms = {
            arm: {r: s for r, s in finished.items() if (r.method, r.retain, r.arm) == (*pair, arm)}
            for arm in ARMS
        }
        for arm, runs in arms.items():
            if arm != "none" and runs and arms["none"]:
                matches[label(*pair), arm] = match(arms["none"], runs, base)
    return matches


def match_sentences(matches: Mapping[tuple[str, str], Matched | None]) -> list[str]:
    """What each defence changes, in words."""
    return [sentence(name, found, DEFENCES[arm]) for (name, arm), found in matches.items()]


def label(method: str, retain: str, arm: str = "none") -> str:
    """A row's name, such as "rmu / hidden_mse + RNA"."""
    return f"{method} / {retain}{'' if arm == 'none' else f' + {arm}'}"


TERM_COLUMNS = (
    "after a forget-term",
    "runs",
    "n, mixed in",
    "accuracy",
    "logp",
    "n, held out",
    "accuracy",
    "logp",
)


def terms_markdown(finished: Finished, base: Answers, held_out: Collection[str]) -> str:
    """Does mixing protect from terms that were never mixed in?

    A row for each arm of what was run with forget-terms mixed in; `held_out`: the questions behind
    a term that never is. Empty if nothing mixes.
    """
    mixing = {(run.method, run.retain) for run in finished if run.mix}
    groups: dict[str, list[Answers]] = {"base": [base]} if mixing else {}
    for run, steps in finished.items():
        if (run.method, run.retain) in mixing:
            name = label(run.method, run.retain, run.arm)
            groups.setdefault(name, []).append(steps[max(steps)])
    rows = [
        [
            name,
            str(len(runs)),
            *_half(runs, base, held_out, False),
            *_half(runs, base, held_out, True),
        ]
        for name, runs in groups.items()
    ]
    return markdown_table(TERM_COLUMNS, rows) if rows else ""


def _half(
    runs: Sequence[Answers], base: Answers, held_out: Collection[str], wanted: bool
) -> list[str]:
    form = "before/forget"
    ids = [name for name in shared_ids(form, runs, base) if (name in held_out) == wanted]
    if not ids:
        return ["0", "", ""]
    logprob = bootstrap_mean(values(form, runs, ids, LOGPROB), BOOTSTRAP_SEED)
    return [str(len(ids)), interval(accuracy(form, runs, ids)), interval(logprob)]


def cells(row: Row) -> list[str]:
    """A row's text under `COLUMNS`."""
    shares = (row.forget, row.clean, row.after_term, row.after_control)
    return [
        row.label,
        str(row.runs),
        "{} / {}".format(*row.n),
        *map(interval, shares),
        interval(row.logprob),
        interval(row.vulnerability),
        interval(row.vulnerability_logprob),
        interval(row.vulnerability_choice),
    ]


def screen_table(rows: Sequence[Row]) -> Table:
    """What fits a terminal: intervals below their estimates."""
    names = ("accuracy", "forget\ndomain", "other\ndomains", "... after\na forget-\nterm")
    names = (*names, "... after\na control", "vulner-\nability")
    table = Table(*names, title="with 95 % intervals; chance 0.25", box=SIMPLE_HEAD)
    for row in rows:
        values = (row.forget, row.clean, row.after_term, row.after_control, row.vulnerability)
        table.add_row(row.label, *map(stacked, values))
    return table


def domain_accuracies(answers: Answers) -> dict[str, Interval]:
    """The clean accuracy in each domain, with Wilson's interval."""
    right: dict[str, list[bool]] = {}
    for form in (FORGET, CLEAN):
        for name, (is_right, _) in answers[form].items():
            right.setdefault(name.partition("/")[0], []).append(is_right)
    return {domain: wilson(sum(values), len(values)) for domain, values in right.items()}


def domain_sentence(base: Answers) -> str:
    """What the base model knows of each domain."""
    parts = (f"{domain} {interval(acc)}" for domain, acc in domain_accuracies(base).items())
    return f"The base model's accuracy by domain (chance 0.25): {', '.join(parts)}."


def markdown(rows: Sequence[Row], matches: Mapping[tuple[str, str], Matched | None]) -> str:
    """The same for a page, with a sentence for each comparison."""
    table = markdown_table(COLUMNS, map(cells, rows))
    return table + "".join(f"\n- {each}" for each in match_sentences(matches)) + "\n"


CURVE_FORMS = (FORGET, CLEAN, "before/forget", "before/control")
CURVE_COLUMNS = ("along the steps", "runs", "n", "steps", *COLUMNS[3:7])


def curve_markdown(finished: Finished, base: Answers) -> str:
    """Mean accuracies after every number of steps, for what was run with several seeds.

    On the questions that were asked at every checkpoint.
    """
    groups: dict[str, list[Mapping[int, Answers]]] = {}
    for run, steps in finished.items():
        groups.setdefault(label(run.method, run.retain, run.arm), []).append(steps)
    several = ((name, runs) for name, runs in sorted(groups.items()) if len(runs) > 1)
    rows = (row for name, runs in several for row in _curve(name, runs, base))
    return markdown_table(CURVE_COLUMNS, rows)


def _curve(
    name: str, runs: Sequence[Mapping[int, Answers]], base: Answers
) -> Iterator[Sequence[str]]:
    sheets = [sheet for steps in runs for sheet in steps.values()]
    ids = {form: shared_ids(form, sheets, base) for form in CURVE_FORMS}
    n = f"{len(ids[FORGET])} / {len(ids[CLEAN])}"
    for step in sorted(set.intersection(*(set(steps) for steps in runs))):
        means = (
            fmean(mean(steps[step], form, ids[form], RIGHT) for steps in runs)
            for form in CURVE_FORMS
        )
        yield [name, str(len(runs)), n, str(step), *(f"{value:.2f}" for value in means)]


def as_data(
    rows: Sequence[Row], matches: Mapping[tuple[str, str], Matched | None], base: Answers
) -> dict[str, Any]:
    """The same as JSON values."""
    known = domain_accuracies(base)
    return {
        "rows": [asdict(row) for row in rows],
        "matched": {f"{name} + {arm}": m and asdict(m) for (name, arm), m in matches.items()},
        "base_by_domain": {domain: asdict(accuracy) for domain, accuracy in known.items()},
    }
