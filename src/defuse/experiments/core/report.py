"""What an experiment says at its end: files, and lines on the screen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from defuse.experiments.core.check_up import damage_sentences, left_out_sentences, perplexities
from defuse.experiments.core.defences import Defence, make_defences
from defuse.experiments.core.headlines import (
    Found,
    find_figures,
    headline_sentence,
    headline_table,
    read_headlines,
)
from defuse.experiments.core.metrics import Answers, Group, make_groups
from defuse.experiments.core.page import make_page
from defuse.experiments.core.plots import draw
from defuse.experiments.core.results import document
from defuse.experiments.core.scenario import Scenario
from defuse.experiments.core.tables import (
    defence_sentences,
    heap_sentences,
    more_tables,
    short_table,
    tables,
    unreadable_sentences,
)
from defuse.report import TableData, render
from defuse.report.format import as_csv, as_latex, captioned, screen_table
from defuse.report.plots import save
from defuse.unlearning.recipe_identity import recipe_essence
from defuse.utils.files import write_json, write_text
from defuse.utils.provenance import versions


@dataclass(frozen=True)
class Findings:
    """An experiment's figures.

    `headlines`: published conclusions with the figures here. `cautions`: sentences about figures
    that do not mean what they seem to, and about damaged models.
    """

    groups: Sequence[Group]
    defences: Sequence[Defence]
    headlines: Sequence[Found]
    tables: Sequence[TableData]
    cautions: Sequence[str]


def report(
    scenario: Scenario, answers: Answers, failed: Mapping[str, str], console: Console
) -> None:
    """Write results.json, tables, figure and page; print the main table.

    `failed`: why runs failed, by their name.
    """
    found = make_findings(scenario, answers)
    names = _write(scenario, answers, found, failed)
    console.print(screen_table(short_table(found.groups, scenario.layout)))
    said = [*found.cautions, *defence_sentences(found.defences, scenario.layout.judged)]
    if found.headlines:
        console.print(screen_table(headline_table(found.headlines)))
        said.insert(0, headline_sentence(found.headlines))
    folder = scenario.folder / scenario.layout.subfolder
    for sentence in (*said, f"Written in {folder}: {', '.join(names)}"):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def make_findings(scenario: Scenario, answers: Answers) -> Findings:
    """Compute all figures, tables and sentences."""
    layout = scenario.layout
    groups, defences = make_groups(answers), make_defences(answers, layout.matched_at)
    headlines = find_figures(read_headlines(scenario.headlines), groups, defences)
    main, *more = tables(groups, layout, perplexities(scenario.folder, answers))
    published = [headline_table(headlines)] if headlines else []
    cautions = [
        *unreadable_sentences(groups),
        *heap_sentences(groups, layout),
        *damage_sentences(scenario.folder, answers),
        *left_out_sentences(scenario.folder, list(answers.finished)),
    ]
    shown = [main, *published, *more, *more_tables(scenario, answers)]
    return Findings(groups, defences, headlines, shown, cautions)


def _write(
    scenario: Scenario, answers: Answers, found: Findings, failed: Mapping[str, str]
) -> list[str]:
    """Write every file; returns their names."""
    layout, record = scenario.layout, _record(scenario, answers)
    figure = (layout.draw or draw)(found.groups, answers, layout)
    groups, defences, shown = found.groups, found.defences, found.tables
    page = make_page(scenario, groups, defences, answers, shown, figure, found.cautions, record)
    labels = {run.name: run.label or run.name for run in scenario.runs}
    why = (f"failed: {labels[run]}: {said}" for run, said in failed.items())
    said = (f"\n- {each}" for each in (*found.cautions, *defence_sentences(defences), *why))
    folder, stem = scenario.folder / layout.subfolder, layout.stem
    texts = {
        "report.html": render(page),
        f"{stem}.md": "\n".join(map(captioned, shown)) + "".join(said) + "\n",
        f"{stem}.csv": as_csv(shown[0]),
        f"{stem}.tex": as_latex(shown[0]),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    write_json(folder / "results.json", document(answers, groups, defences, failed, record))
    listing = [] if scenario.listing is None else [scenario.listing(scenario.folder).name]
    return [*texts, "results.json", *(path.name for path in save(figure, folder / stem)), *listing]


def _record(scenario: Scenario, answers: Answers) -> dict[str, Any]:
    """What is needed to make the experiment again."""
    return {
        "experiment": scenario.name,
        "command": scenario.command,
        "model": scenario.model.name,
        **scenario.about,
        "recipes": {run.group: recipe_essence(run.recipe) for run in answers.finished},
        "versions": versions(),
    }
