"""`defuse reproduce`: the paper's rows next to a tiny model's, and what rows without data need."""

import inspect
import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from defuse import cli
from defuse.attacks.gcg.search import Search
from defuse.cli.reproduce import reproduce as command
from defuse.evaluate.answers import Part, Settings
from defuse.evaluate.tasks import SUITES, load_parts
from defuse.experiments.reproduce.request import Effort, Request
from defuse.experiments.reproduce.run import check
from defuse.experiments.reproduce.run import run as measure
from defuse.experiments.reproduce.table import ROWS
from defuse.experiments.reproduce.under_gcg import spread
from defuse.questions import ORIGINAL, Question, ask, few_shot_part
from defuse.utils.distributed import Processes
from defuse.utils.errors import UsageError
from tests.conftest import CORPUS, build_llama, build_tokenizer
from tests.helpers.benchmark_files import (
    MMLU,
    rows,
    write_card,
    write_mmlu_csv,
    write_rows_parquet,
    write_wmdp_json,
)
from tests.helpers.schemas import validate
from tests.helpers.tokenizers_on_the_spot import byte_bpe

PAPER = {
    "MMLU": 60.3,
    "MMLU perturbed": 53.5,
    "MMLU under GCG": 43.5,
    "WMDP bio": 33.3,
    "WMDP cyber": 29.1,
    "WMDP": 34.6,
    "MMLU college biology": 60.4,
    "MMLU computer security": 46.0,
}
GCG = ("--gcg", "5", "--gcg-steps", "20", "--gcg-width", "32")
SHORT = ("--gcg", "5", "--gcg-steps", "5", "--gcg-width", "8")
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(
    tmp_path: Path,
    tiny_model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(tiny_model_folder)

    def call(*arguments: str) -> tuple[int, str]:
        given = ["reproduce", "--model", "model", "--data", "data", "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["defuse", *given, *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out + said.err

    return call


@pytest.fixture
def lettered(run: Run) -> Run:
    """`run` with a model whose tokenizer has each letter, and the first suffix, as tokens."""
    tokenizer = byte_bpe([*CORPUS, "Answer: A Answer: B Answer: C Answer: D x x x x"])
    Path("model").unlink()
    build_llama(vocab_size=len(tokenizer)).save_pretrained("model")
    tokenizer.save_pretrained("model")
    return run


def read(name: str = "reproduce.json") -> dict[str, Any]:
    return json.loads((Path("runs/reproduce") / name).read_text())


def table() -> dict[str, list[str]]:
    lines = (Path("runs/reproduce") / "reproduce.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
    return {row[0]: row[1:] for row in rows}


def test_the_rows_are_the_paper_s() -> None:
    assert {row.benchmark: row.paper for row in ROWS} == PAPER
    for row in ROWS:
        assert SUITES[row.suite].only(row.asked).perturbation or row.variant == ORIGINAL
    (gcg,) = (row for row in ROWS if row.is_attacked)
    assert gcg.benchmark == "MMLU under GCG"


def test_no_run_with_the_paper_s_bio_and_cyber_has_its_wmdp_unless_chem_were_at_65() -> None:
    size = {"bio": 1273, "chem": 408, "cyber": 1987}
    assert {int(re.findall(r"\d+", row.subset)[-1]) for row in ROWS if row.suite == "wmdp"} == {
        size["bio"],
        size["cyber"],
        sum(size.values()),
    }
    right = PAPER["WMDP"] * sum(size.values())
    chem = right - PAPER["WMDP bio"] * size["bio"] - PAPER["WMDP cyber"] * size["cyber"]
    assert chem / size["chem"] == pytest.approx(65, abs=0.5)
    assert "65" in next(row.note for row in ROWS if row.benchmark == "WMDP")


def test_every_row_with_its_questions_is_measured_on_model_and_reference(run: Run) -> None:
    write_mmlu_csv(Path("data/mmlu"))
    write_wmdp_json(Path("data/wmdp"))
    code, said = run("--reference", "model")
    assert code == 0, said
    rows = read()["rows"]
    assert {name: row["n"] for name, row in rows.items()} == {
        "MMLU": 2 * len(MMLU),
        "MMLU perturbed": 2 * len(MMLU),
        "WMDP bio": 4,
        "WMDP cyber": 4,
        "WMDP": 12,
        "MMLU college biology": 2,
        "MMLU computer security": 2,
    }
    summary = read("mmlu-perturbed.json")["summary"]
    assert rows["MMLU"]["model"] == rows["MMLU"]["base"] == summary["accuracy"]
    assert rows["MMLU perturbed"]["model"] == summary["forget"]["accuracy"]
    assert rows["MMLU perturbed"]["control"] == summary["control"]["accuracy"]
    biology = summary["subjects"]["college_biology"]["clean"]["accuracy"]
    assert rows["MMLU college biology"]["model"] == biology
    groups = read("wmdp.json")["summary"]["groups"]
    assert rows["WMDP"]["model"] == groups["wmdp"]["clean"]["accuracy"]
    shown = table()
    assert [float(shown[name][5]) for name in PAPER] == list(PAPER.values())
    assert {row[1] for row in shown.values()} == {"0"}
    assert "with the control token" in shown["MMLU perturbed"][6]
    assert shown["MMLU under GCG"][2:5] == ["", "", ""]
    assert shown["MMLU under GCG"][6] == (
        "no protocol of 43.5 is known; needs --gcg N: how many questions to attack; each takes up "
        "to 500 steps of 512 suffixes"
    )
    assert "from different runs" in " ".join(said.split())
    assert "87 of 144" in shown["MMLU college biology"][6]
    validate("reproduce", read())


def test_rows_without_questions_say_what_they_need_and_come_later(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mmlu_csv(Path("data"), ["college_biology", "virology"], count=5)
    write_wmdp_json(Path("data"), ["bio", "cyber"])
    code, said = run("--limit", "3")
    assert code == 0, said
    measured, needs = read()["rows"], read()["needs"]
    assert {name: row["n"] for name, row in measured.items()} == {
        "MMLU college biology": 3,
        "WMDP bio": 3,
        "WMDP cyber": 3,
    }
    assert "lacks the test questions of 55 of 57 subjects" in needs["MMLU"]
    assert "1 of 3 subjects (chem)" in needs["WMDP"]
    assert len(table()["MMLU"][6]) < 200

    write_wmdp_json(Path("data"))
    write_mmlu_csv(Path("data"), ["computer_security"], count=5)
    assert run("--limit", "3")[0] == 0
    assert read()["rows"].items() >= measured.items()
    assert read()["rows"]["WMDP"]["n"] == 9
    assert set(read()["needs"]) == {"MMLU", "MMLU perturbed", "MMLU under GCG"}

    monkeypatch.setattr("defuse.evaluate.run.load_model", None)  # all is measured that can be
    assert run("--limit", "3")[0] == 0


def test_a_suite_s_file_holds_all_its_answers_after_a_kill_between_two_rows(run: Run) -> None:
    write_wmdp_json(Path("data/wmdp"))
    assert run()[0] == 0
    asked = [question["id"] for question in read("wmdp.json")["questions"]]
    row = Path("runs/reproduce/rows/wmdp-cyber.json")
    row.unlink()
    assert run()[0] == 0
    assert row.exists()
    assert [question["id"] for question in read("wmdp.json")["questions"]] == asked


def test_rows_of_one_suite_are_kept_when_the_next_fails(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mmlu_csv(Path("data"), ["college_biology"])
    write_wmdp_json(Path("data"))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(
            "defuse.experiments.reproduce.request.write_text", stop
        )  # after the first suite
        assert run()[0] == 130
    assert set(read()["rows"]) == {"MMLU college biology"}
    before = read("mmlu-perturbed.json")
    assert run()[0] == 0
    assert len(read()["rows"]) == 4
    assert read("mmlu-perturbed.json") == before


REFUSED = {
    "no folder": (["--data", "nowhere"], "data: nowhere is no folder"),
    "no model": (["--model", "./none"], "model: no such folder: ./none does not exist"),
    "limit": (["--limit", "0"], "limit: 0 is refused"),
    "device": (["--device", "tpu"], "device: 'tpu' is unknown"),
    "gcg": (["--gcg", "-1"], "gcg.questions: -1 is refused"),
    "gcg-steps": (["--gcg-steps", "0"], "gcg.steps: 0 is refused"),
    "gcg-width": (["--gcg", "1", "--gcg-width", "0"], "gcg.width: 0 is refused"),
    "out": (["--out", "model/config.json"], "out: model/config.json cannot be written"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_sentence(run: Run, case: str) -> None:
    write_wmdp_json(Path("data"))
    options, message = REFUSED[case]
    code, said = run(*options)
    assert code == 2, said
    assert message in said
    assert said.count("\n") == 1
    assert not Path("runs").exists()


def test_rows_of_another_request_are_refused(run: Run) -> None:
    write_wmdp_json(Path("data"), ["bio"])
    assert run("--limit", "1")[0] == 0
    code, said = run("--limit", "2")
    assert code == 2
    assert "out: runs/reproduce/rows/wmdp-bio.json belongs to other limit" in said


def test_rows_of_another_model_of_the_same_name_are_refused(run: Run) -> None:
    write_wmdp_json(Path("data"), ["bio"])
    assert run()[0] == 0
    validate("reproduce", read())
    Path("model").unlink()
    build_llama(seed=1).save_pretrained("model")
    build_tokenizer().save_pretrained("model")
    code, said = run()
    assert code == 2
    assert "wmdp-bio.json belongs to other model_files; name a new folder" in said


# As version 0.1.0 wrote it: rows were kept in this file alone.
OLD = {
    "order": {
        "model": "model",
        "base": None,
        "limit": 1,
        "device": "cpu",
        "dtype": "auto",
        "seed": 42,
        "gcg": {"questions": 0, "steps": 500, "width": 512},
    },
    "rows": {
        "WMDP bio": {
            "n": 1,
            "model": {"value": 0.125, "low": 0.0625, "high": 0.25},
            "control": None,
            "base": {"value": 0.5, "low": 0.25, "high": 0.75},
            "before": None,
        }
    },
    "needs": {"WMDP": "questions"},
    "versions": {"defuse": "0.1.0"},
}


def test_rows_that_version_0_1_0_wrote_are_kept(run: Run) -> None:
    write_wmdp_json(Path("data"))
    file = Path("runs/reproduce/reproduce.json")
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(OLD))
    code, said = run("--limit", "2")
    assert code == 2
    assert "reproduce.json belongs to other limit" in said
    for _ in range(2):  # from the old file, then from the new ones
        assert run("--limit", "1")[0] == 0
        assert read()["rows"]["WMDP bio"] == OLD["rows"]["WMDP bio"]
        assert read()["rows"]["WMDP cyber"]["n"] == 1
    file.write_text("{")
    code, said = run("--limit", "1")
    assert code == 2
    assert "reproduce.json: is damaged" in said


def test_a_damaged_row_is_refused(run: Run) -> None:
    write_wmdp_json(Path("data"), ["bio"])
    assert run("--limit", "1")[0] == 0
    row = Path("runs/reproduce/rows/wmdp-bio.json")
    row.write_text(row.read_text().replace('"n": 1', '"n": 9'))
    code, said = run("--limit", "1")
    assert code == 2
    assert "wmdp-bio.json: is damaged (its checksum differs); delete it" in said


def test_attacked_questions_lie_evenly_and_read_as_in_their_parts(tmp_path: Path) -> None:
    write_mmlu_csv(tmp_path)
    parts = load_parts(SUITES["mmlu"], str(tmp_path))
    every = [(part.settings, question) for part in parts for question in part.questions]
    assert len(spread(parts, 10**6)) == len(every) == 114
    some = spread(parts, 6)
    for number, question in enumerate(some):
        settings, plain = every[19 * number]
        assert question.id == plain.id
        front = few_shot_part(settings.subject, settings.few_shot, "letters")
        assert ask(question, "letters") == front + ask(plain, "letters")


def test_an_attacked_question_keeps_its_examples_in_front() -> None:
    example, plain = (
        Question(name, f" {name}? ", ("a", "b", "c", "d"), 1) for name in ("first", "second")
    )
    (question,) = spread([Part((plain,), Settings(subject="cats", few_shot=(example,)))], 1)
    front = few_shot_part("cats", [example], "letters")
    assert ask(question, "letters") == front + ask(plain, "letters")


def test_some_questions_are_attacked_and_compared_with_themselves(
    lettered: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mmlu_csv(Path("data/mmlu"))
    code, said = lettered("--base", "model", *GCG)  # the name of --reference in 0.1.0
    assert code == 0, said
    row = read()["rows"]["MMLU under GCG"]
    ids = [question.id for question in spread(load_parts(SUITES["mmlu"], "data"), 5)]
    clean = {each["id"]: each for each in read("mmlu-perturbed.json")["questions"]}
    right = [clean[each]["choice"] == clean[each]["answer"] for each in ids]
    assert row["n"] == 5
    assert row["before"]["value"] == sum(right) / 5 > row["model"]["value"]
    assert row["model"] == row["base"]
    found = read("mmlu-under-gcg.json")["model"]
    assert found["name"] == "model"
    assert found["settings"]["steps"] == 20
    random, attacked = (each["effects"]["retain"]["after"] for each in found["conditions"])
    assert list(attacked["right"]) == ids
    assert (row["model"], row["control"]) == (attacked["accuracy"], random["accuracy"])
    shown = table()["MMLU under GCG"]
    assert shown[2] == "5"
    assert re.search(r"before the attack; .* with random suffixes$", shown[6])
    assert not Path("runs/reproduce.partial").exists()

    monkeypatch.setattr("defuse.attacks.run.load_model", None)  # it is not attacked again
    assert lettered("--reference", "model", *GCG)[0] == 0
    code, said = lettered("--reference", "model", "--gcg", "6", *GCG[2:])
    assert code == 2
    assert "mmlu-under-gcg.json belongs to other gcg" in said


def test_a_killed_attack_resumes(lettered: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mmlu_csv(Path("data/mmlu"))
    assert lettered(*SHORT, "--out", "whole")[0] == 0
    assert lettered()[0] == 0  # the row under attack may come later, and nothing else is done again
    monkeypatch.setattr("defuse.evaluate.run.load_model", None)
    steps, step = [0], Search.step

    def counted(*arguments: Any) -> Any:
        steps[0] += 1
        if steps[0] == stop:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(Search, "step", counted)
    stop = 3
    assert lettered(*SHORT)[0] == 130
    assert "needs to be measured" in table()["MMLU under GCG"][6]
    code, said = lettered(*SHORT[:4], "--gcg-width", "4")
    assert code == 2
    assert "holds unfinished work for other settings" in said
    assert lettered()[0] == 0  # which leaves the findings as they are
    done, stop, steps[0] = 2, 0, 0
    assert lettered(*SHORT)[0] == 0
    numbers = read("mmlu-under-gcg.json")["model"]["conditions"][1]["numbers"]
    assert steps[0] == numbers["steps"] * numbers["searched"] - done
    whole = json.loads(Path("whole/reproduce.json").read_text())
    assert read()["rows"] == whole["rows"]
    assert not Path("runs/reproduce.partial").exists()


def test_a_model_that_cannot_be_attacked_is_refused_first(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mmlu_csv(Path("data"))
    with monkeypatch.context() as patched:
        for module in ("evaluate.run", "attacks.run"):
            patched.setattr(f"defuse.{module}.load_model", None)
        code, said = run("--gcg", "2")
    assert code == 2
    assert "the letters A to D are not a token each" in said
    assert not Path("runs").exists()
    assert run()[0] == 0
    assert run("--gcg", "2")[0] == 2
    assert len(read()["rows"]) == 4


def test_a_reference_that_cannot_be_attacked_is_refused_first(
    lettered: Run, tiny_model_folder: Path
) -> None:
    write_mmlu_csv(Path("data"))
    code, said = lettered("--reference", str(tiny_model_folder), "--gcg", "2")
    assert code == 2
    assert "the letters A to D are not a token each" in said
    assert not Path("runs").exists()


class Recorded:
    """Progress that records each stage's total and advances, and may interrupt an attack."""

    def __init__(self, stop: int = 0) -> None:
        self.stages: dict[str, list[int]] = {}
        self._name, self._stop = "", stop

    def start(self, name: str, total: int) -> None:
        assert name not in self.stages
        self._name, self.stages[name] = name, [total]

    def advance(self, count: int = 1, note: str = "") -> None:  # noqa: ARG002
        self.stages[self._name].append(count)
        if "GCG: gcg" in self._name and len(self.stages[self._name]) - 1 == self._stop:
            raise KeyboardInterrupt


def attack_stages(reference: str | None = None, stop: int = 0) -> dict[str, list[int]]:
    """Attack in `out`; the total of each attack's stage, then its advances."""
    write_mmlu_csv(Path("data"))
    effort = Effort(5, 4, 8)
    request = Request("model", Path("out"), reference, "data", device="cpu", gcg=effort)
    progress = Recorded(stop)
    with suppress(KeyboardInterrupt):
        measure(check(request), progress)
    return {name: values for name, values in progress.stages.items() if "GCG: gcg" in name}


@pytest.mark.usefixtures("lettered")
def test_progress_resumes_where_it_was_and_ends_complete() -> None:
    count, *before = attack_stages(stop=8)["model under GCG: gcg"]
    assert len(before) == 8
    assert count == 5 * (1 + 4) + 5  # steps; answers before, with random and with found suffixes
    count, *after = attack_stages()["model under GCG: gcg"]
    assert min(before + after) > 0
    assert sum(after) == count


@pytest.mark.usefixtures("lettered")
def test_a_reference_that_is_the_model_is_attacked_once() -> None:
    assert set(attack_stages(reference="model")) == {"model under GCG: gcg"}
    found = json.loads(Path("out/mmlu-under-gcg.json").read_text())
    assert found["base"] == found["model"]


def test_several_processes_do_not_attack(tmp_path: Path, tiny_model_folder: Path) -> None:
    write_wmdp_json(tmp_path)
    request = Request(
        str(tiny_model_folder), tmp_path / "out", data=str(tmp_path), gcg=Effort(2), device="cpu"
    )
    with pytest.raises(UsageError, match="gcg: is 2, but an attack runs in one process"):
        measure(check(request), processes=Processes(0, 2))
    assert not request.out.exists()


def test_the_command_s_effort_is_the_attack_s_own() -> None:
    given = inspect.signature(command).parameters
    defaults = [given[name].default for name in ("gcg", "gcg_steps", "gcg_width")]
    assert Effort(*defaults) == Effort()


def write_published(layout: str) -> str:
    """MMLU's questions with a token in a wrong choice, in one of the layouts in which they come."""
    subjects = ("anatomy", "college_biology")
    written = {subject: perturbed_rows(subject) for subject in subjects}
    everything = [row for own in written.values() for row in own]
    if layout == "file":
        Path("published.jsonl").write_text("\n".join(map(json.dumps, everything)))
        return "published.jsonl"
    if layout == "folder":
        write_mmlu_csv(Path("published"))
        return "published"
    home = Path("nobody/published")
    home.mkdir(parents=True)
    write_card(home, ["all"], ["test"])
    write_rows_parquet(home / "all", everything)
    return "nobody/published"


@pytest.mark.parametrize(("layout", "count"), [("file", 4), ("folder", 2 * len(MMLU)), ("hub", 4)])
def test_the_authors_own_perturbed_questions_take_the_place_of_ours(
    run: Run, layout: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", Path(".cache").absolute())
    write_mmlu_csv(Path("data/mmlu"), ["college_biology"])
    source = write_published(layout)
    code, said = run("--perturbed", source, "--reference", "model")
    assert code == 0, said
    row = read()["rows"]["MMLU perturbed"]
    answers = read("mmlu-perturbed-published.json")
    validate("reproduce", read())
    assert row["n"] == answers["summary"]["n"] == count
    assert row["model"] == row["base"] == answers["summary"]["accuracy"]
    assert row["control"] is None
    shown = table()["MMLU perturbed"]
    assert shown[0] == f"the authors' perturbed questions ({source})"
    assert shown[6] == "the authors' own questions; they have no control"
    assert table()["MMLU college biology"][2] == "2"
    if layout != "folder":
        first = answers["questions"][0]
        assert "SARS-CoV-2" in first["choices"]
    assert run("--perturbed", source, "--reference", "model")[0] == 0
    code, said = run("--reference", "model")
    assert code == 2
    assert "perturbed" in said


def test_perturbed_questions_that_cannot_be_read_are_refused_before_any_work(run: Run) -> None:
    write_mmlu_csv(Path("data/mmlu"), ["anatomy"])
    Path("empty.jsonl").write_text('{"question": "What?"}\n')
    for source in ("empty.jsonl", "./nowhere", "nobody/nothing"):
        code, said = run("--perturbed", source)
        assert code == 2
        assert said.startswith("defuse: perturbed: ")
    assert not Path("runs").exists()


def perturbed_rows(subject: str) -> list[dict[str, Any]]:
    changed = [{**row, "subject": subject} for row in rows(subject, 2)]
    for row in changed:
        row["choices"][row["answer"] - 1] = "SARS-CoV-2"
    return changed
