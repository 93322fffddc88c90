"""`python -m dev.fuzz`: broken inputs of every kind, and a table of how they end."""

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

# One thread, so that the process can be forked; no network; no memory that is only reserved.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "COLUMNS": "100",
    "TQDM_DISABLE": "1",
}

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from dev.forks import import_everything
from dev.fuzz import corpus
from dev.fuzz.bench import Bench
from dev.fuzz.kinds import Input, inputs

OPTIONS = "options of all verbs"


@dataclass
class Tally:
    """Inputs of one kind by how they end, and what was wrong with some."""

    refused: int = 0
    accepted: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        return self.refused + self.accepted + len(self.wrong)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run inputs of every kind, or the corpus; returns 1 if one went wrong."""
    asked = _parser().parse_args(arguments)
    import_everything()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        bench = Bench(Path(place).resolve())
        if asked.replay is not None:
            return _replay(bench, asked.replay)
        tallies = fuzz(bench, asked.n, asked.seed, asked.kinds, asked.corpus)
    print(table(tallies))
    return int(any(tally.wrong for tally in tallies.values()))


def fuzz(
    bench: Bench, count: int, number: int, names: Sequence[str], folder: Path | None
) -> dict[str, Tally]:
    """`count` inputs, shared between kinds; what goes wrong is written into `folder`."""
    kinds = [kind for name, kind in bench.kinds.items() if not names or _is_named(name, names)]
    shares = sum(kind.share for kind in kinds)
    tallies: dict[str, Tally] = {}
    owed = 0.0
    for kind in kinds:
        owed += count * kind.share / shares
        some = round(owed) - sum(tally.inputs for tally in tallies.values())
        tally = tallies[kind.name] = Tally()
        began = time.monotonic()

        if some > 0:
            bench.check_valid(kind)
            strategy = inputs(kind, bench.content(kind))
            use = partial(_count, bench, tally=tally, folder=folder)
            _draw(strategy, some, f"{number} {kind.name}", use)
        seconds = time.monotonic() - began
        print(f"{kind.name}: {tally.inputs} in {seconds:.0f} s", file=sys.stderr, flush=True)
    return tallies


def _draw(
    strategy: SearchStrategy[Input], count: int, number: str, use: Callable[[Input], None]
) -> None:
    """Call `use` with `count` draws, which follow from `number`."""

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
    )
    @given(strategy)
    def one(drawn: Input) -> None:
        use(drawn)

    one()


def table(tallies: Mapping[str, Tally]) -> str:
    """A row for each kind in Markdown, and one for the options of all verbs."""
    lines = ["| kind | inputs | refused | read | wrong |", "|---|---|---|---|---|"]
    rows: dict[str, list[Tally]] = {}
    for name, tally in tallies.items():
        rows.setdefault(OPTIONS if name.startswith("options of") else name, []).append(tally)
    lines += [_row(name, some) for name, some in rows.items()]
    return "\n".join([*lines, _row("all", list(tallies.values()))])


def _row(name: str, some: Sequence[Tally]) -> str:
    refused, accepted = (sum(getattr(t, n) for t in some) for n in ("refused", "accepted"))
    wrong = sum(len(tally.wrong) for tally in some)
    return f"| {name} | {refused + accepted + wrong} | {refused} | {accepted} | {wrong} |"


def _count(bench: Bench, drawn: Input, tally: Tally, folder: Path | None) -> None:
    wrong, ending = bench.run(drawn)
    if not wrong:
        tally.refused += ending.code == 2
        tally.accepted += ending.code == 0
        return
    is_new = _like(wrong) not in map(_like, tally.wrong)
    tally.wrong.append(wrong)
    print(f"{drawn.kind}: {wrong}", flush=True)
    if is_new and folder is not None:
        kind = bench.kinds[drawn.kind]
        saved = corpus.save(folder, drawn, wrong, lambda _: bench.content(kind)(str(kind.file)))
        print(f"  {saved}", flush=True)


def _like(wrong: str) -> str:
    """What two sentences of the same fault have in common."""
    return re.sub(r"\W?[\d'\"].*", "", wrong)[:60]


def _is_named(name: str, names: Sequence[str]) -> bool:
    return any(each in name for each in names)


def _replay(bench: Bench, folder: Path) -> int:
    """Run the corpus again."""
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else [folder]
    failed = 0
    for path in paths:
        drawn = corpus.load(path, lambda name: bench.content(bench.kinds[name])(_file(bench, name)))
        wrong, _ = bench.run(drawn)
        if wrong:
            failed += 1
            print(f"{path}: {wrong}", flush=True)
    print(f"{len(paths)} inputs replayed, {failed} wrong")
    return int(failed > 0)


def _file(bench: Bench, name: str) -> str:
    return str(bench.kinds[name].file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dev.fuzz", description=__doc__)
    parser.add_argument("-n", type=int, default=300, help="Inputs, over all kinds.")
    parser.add_argument("--seed", type=int, default=0, help="Of all that is drawn.")
    parser.add_argument("--kinds", nargs="+", default=[], help="Parts of the names of kinds.")
    parser.add_argument("--corpus", type=Path, help="Folder for inputs that go wrong.")
    parser.add_argument("--replay", type=Path, help="Run the inputs of this folder or file.")
    return parser


if __name__ == "__main__":
    sys.exit(main())
