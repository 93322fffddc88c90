"""`defuse reproduce`: the paper's rows beside a tiny model's, and what rows without data need."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defuse import cli
from defuse.suites import SUITES
from defuse.suites.paper import ROWS
from tests.benchmark_files import MMLU, write_mmlu_csv, write_wmdp_json

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


def read(name: str = "reproduce.json") -> dict[str, Any]:
    return json.loads((Path("runs/reproduce") / name).read_text())


def table() -> dict[str, list[str]]:
    lines = (Path("runs/reproduce") / "reproduce.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
    return {row[0]: row[1:] for row in rows}


def test_the_rows_are_the_paper_s() -> None:
    assert {row.benchmark: row.paper for row in ROWS} == PAPER
    for row in ROWS:
        assert SUITES[row.suite].only(row.subjects).perturbation or row.variant == "clean"
    (gcg,) = (row for row in ROWS if row.needs)
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


def test_every_row_with_its_questions_is_measured_beside_the_base(run: Run) -> None:
    write_mmlu_csv(Path("data/mmlu"))
    write_wmdp_json(Path("data/wmdp"))
    code, said = run("--base", "model")
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
    assert "needs defuse attack" in shown["MMLU under GCG"][6]
    assert "from different runs" in " ".join(said.split())


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

    monkeypatch.setattr("defuse.evaluate.job.load_model", None)  # all is measured that can be
    assert run("--limit", "3")[0] == 0


def test_rows_of_one_suite_are_kept_when_the_next_fails(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mmlu_csv(Path("data"), ["college_biology"])
    write_wmdp_json(Path("data"))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("defuse.suites.reproduce.write_text", stop)  # after the first suite
        assert run()[0] == 130
    assert set(read()["rows"]) == {"MMLU college biology"}
    before = read("mmlu-perturbed.json")
    assert run()[0] == 0
    assert len(read()["rows"]) == 4
    assert read("mmlu-perturbed.json") == before


REFUSED = {
    "no folder": (["--data", "nowhere"], "data: nowhere is no folder"),
    "no model": (["--model", "./none"], "model: ./none does not exist"),
    "limit": (["--limit", "0"], "limit: is 0"),
    "device": (["--device", "tpu"], "device: 'tpu' is unknown"),
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


def test_rows_of_another_order_are_refused(run: Run) -> None:
    write_wmdp_json(Path("data"), ["bio"])
    assert run("--limit", "1")[0] == 0
    code, said = run("--limit", "2")
    assert code == 2
    assert "out: runs/reproduce holds rows of another model or of other options" in said
