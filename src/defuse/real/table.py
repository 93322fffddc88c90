"""The table, on the screen, as Markdown and as data."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from defuse.evaluate import Interval, wilson
from defuse.experiment.answers import CLEAN, FORGET, Answers
from defuse.experiment.compare import RIGHT, Matched, Row, make_row, match, mean, shared_ids
from defuse.experiment.words import interval, markdown_table, sentence, stacked
from defuse.real.grid import Run

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

Finished = Mapping[Run, Mapping[int, Answers]]


def make_rows(finished: Finished, base: Answers) -> list[Row]:
    """The base model, then a row for each method, retain loss, noise and change, over seeds."""
    groups: dict[str, list[Answers]] = {}
    for run, steps in finished.items():
        name = label(run.method, " ".join([run.retain, *run.changes]), run.rna)
        groups.setdefault(name, []).append(steps[max(steps)])
    rows = [make_row(name, runs, base) for name, runs in sorted(groups.items())]
    return [make_row("base", [base], base), *rows]


def make_matches(finished: Finished, base: Answers) -> dict[str, Matched | None]:
    """RNA against none at equal forgetting, for each method and retain loss run both ways."""
    pairs = sorted({(run.method, run.retain) for run in finished})
    matches = {}
    for method, retain in pairs:
        plain, noised = (
            {
                r: s
                for r, s in finished.items()
                if (r.method, r.retain, r.rna) == (method, retain, rna)
            }
            for rna in (False, True)
        )
        if plain and noised:
            matches[label(method, retain, rna=False)] = match(plain, noised, base)
    return matches


def label(method: str, retain: str, rna: bool) -> str:
    """A row's name, such as "rmu / hidden_mse + RNA"."""
    return f"{method} / {retain}{' + RNA' if rna else ''}"


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


def markdown(rows: Sequence[Row], matches: Mapping[str, Matched | None]) -> str:
    """The same for a page, with a sentence for each comparison."""
    table = markdown_table(COLUMNS, map(cells, rows))
    return table + "".join(f"\n- {sentence(*item)}" for item in matches.items()) + "\n"


CURVE_FORMS = (FORGET, CLEAN, "before/forget", "before/control")
CURVE_COLUMNS = ("along the steps", "runs", "n", "steps", *COLUMNS[3:7])


def curve_markdown(finished: Finished, base: Answers) -> str:
    """Mean accuracies after every number of steps, for what was run with several seeds.

    On the questions that were asked at every checkpoint.
    """
    groups: dict[str, list[Mapping[int, Answers]]] = {}
    for run, steps in finished.items():
        groups.setdefault(label(run.method, run.retain, run.rna), []).append(steps)
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
    rows: Sequence[Row], matches: Mapping[str, Matched | None], base: Answers
) -> dict[str, Any]:
    """The same as JSON values."""
    known = domain_accuracies(base)
    return {
        "rows": [asdict(row) for row in rows],
        "matched": {name: found and asdict(found) for name, found in matches.items()},
        "base_by_domain": {domain: asdict(accuracy) for domain, accuracy in known.items()},
    }
