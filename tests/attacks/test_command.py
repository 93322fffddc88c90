"""`defuse attack`: its settings, what it writes, and what it leaves out."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from defuse.attacks import AttackData
from defuse.attacks import quantise as quantisation
from defuse.attacks.registry import ATTACKS, make_configs
from defuse.attacks.run import read_results
from defuse.cli import app
from defuse.utils.errors import UsageError
from tests.conftest import build_llama, build_tokenizer
from tests.helpers.attacked import DATA, QUESTIONS


def test_a_set_without_questions_is_refused() -> None:
    with pytest.raises(UsageError, match="retain: there are no questions"):
        AttackData(QUESTIONS, ())


def test_settings_are_read_strictly() -> None:
    assert make_configs(["quantise"], ["quantise.bits=[3]"], seed=5) == {
        "quantise": quantisation.Quantisation(bits=(3,), seed=5)
    }
    for override, said in {
        "quantise.bits=4": "quantise.bits: 4 is refused",
        "quantise.bits=[1]": "quantise.bits: 1 is no width",
        "quantise.bit=[4]": "quantise: has no field 'bit'",
        "lens.x=1": "'lens' is none of the attacks to run; write KIND.FIELD=VALUE",
        "quantize.bits=[4]": "'quantize' is none of the attacks to run; did you mean 'quantise'?",
    }.items():
        with pytest.raises(UsageError, match=said.replace("[", r"\[").replace("?", r"\?")):
            make_configs(["quantise"], [override])
    with pytest.raises(UsageError, match="'magic' is unknown; use one of"):
        make_configs(["magic"])
    with pytest.raises(UsageError, match="did you mean 'orthogonalise'"):
        make_configs(["orthogonalize"])


def files(folder: Path) -> dict[str, str]:
    paths = {}
    for name, questions in DATA.sets.items():
        rows = [
            {"id": q.id, "question": q.stem, "choices": q.choices, "answer": q.answer}
            for q in questions
        ]
        paths[name] = str(folder / f"{name}.jsonl")
        Path(paths[name]).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return paths


def command(model: Path, folder: Path, *more: str) -> list[str]:
    sets = files(folder)
    given = ["--forget", sets["forget"], "--retain", sets["retain"], "--out", str(folder / "out")]
    return ["attack", str(model), *given, "--kind", "quantise", "--device", "cpu", *more]


def test_the_command_writes_results_tables_and_report_and_knows_them_again(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    runner, out = CliRunner(), tmp_path / "out"
    first = runner.invoke(app, command(tiny_model_folder, tmp_path), catch_exceptions=False)
    assert first.exit_code == 0, first.output
    assert "quantise: 8 of 8" in first.output  # progress as plain lines
    result = read_results(out)["quantise"]
    assert [each.name for each in result.conditions] == ["8 bits", "4 bits"]
    assert {each.effects["forget"].before.n for each in result.conditions} == {4}
    assert json.loads((out / "quantise.json").read_text())["schema_version"] == 1
    assert "| 4 bits | retain | 4 |" in (out / "attacks.md").read_text()
    assert "<table>" in (out / "report.html").read_text()
    written = (out / "quantise.json").stat().st_mtime_ns
    assert runner.invoke(app, command(tiny_model_folder, tmp_path)).exit_code == 0
    assert (out / "quantise.json").stat().st_mtime_ns == written
    report = (out / "report.html").stat().st_mtime_ns
    other = tmp_path / "other"
    build_llama(seed=1).save_pretrained(other)
    build_tokenizer().save_pretrained(other)
    for model, more, said in (
        (tiny_model_folder, ["--set", "quantise.bits=[3]"], "settings"),
        (other, [], "weights"),
    ):
        with pytest.raises(UsageError, match=rf"quantise\.json belongs to other {said}; name a"):
            runner.invoke(app, command(model, tmp_path, *more), catch_exceptions=False)
    assert (out / "report.html").stat().st_mtime_ns == report  # of the model that it is about


def test_without_kind_attacks_that_refuse_or_lack_something_are_left_out_with_the_reason(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    given = command(tiny_model_folder, tmp_path, "--plan")
    without = [each for each in given if each not in ("--kind", "quantise")]
    said = " ".join(CliRunner().invoke(app, without, catch_exceptions=False).output.split())
    assert "left out: lens (forget: a letter is right in 1 of 4 questions, and a probe" in said
    assert "left out: orthogonalise (reference: missing; the attack orthogonalise needs" in said
    assert "left out: relearn (forget-texts: missing; the attack relearn needs" in said
    assert "quantise: Quantisation(bits=(8, 4)" in said
    assert "lens: Lens(" not in said
    assert not (tmp_path / "out").exists()


def test_old_names_of_the_other_models_are_understood_and_not_shown(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    """--base and --gold, for --reference and --retrained."""
    given = command(tiny_model_folder, tmp_path, "--plan", "--kind", "orthogonalise")
    texts = tmp_path / "texts.txt"
    texts.write_text("The cat sees a bird.\n")
    given += ["--forget-texts", str(texts), "--base", str(tiny_model_folder)]
    assert "orthogonalise: Orthogonalisation(" in CliRunner().invoke(app, given).output
    given += ["--gold", "no/such/model", "--kind", "relearn", "--retain-texts", str(texts)]
    assert "no/such/model" in str(CliRunner().invoke(app, given).exception)
    shown = CliRunner().invoke(app, ["attack", "--help"]).output
    assert "--retrained" in shown
    assert "--gold" not in shown
    assert "--base" not in shown


def test_what_is_finished_is_reported_though_the_next_attack_fails(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = replace(ATTACKS["rephrase"], run=lambda *_, **__: 1 / 0)
    monkeypatch.setattr("defuse.attacks.run.ATTACKS", {**ATTACKS, "rephrase": failing})
    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(
            app,
            command(tiny_model_folder, tmp_path, "--kind", "rephrase"),
            catch_exceptions=False,
        )
    assert "## quantise" in (tmp_path / "out" / "attacks.md").read_text()


def test_an_attack_leaves_the_model_as_it_was() -> None:
    model, tokenizer = build_llama(), build_tokenizer()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantisation.run(model, tokenizer, DATA)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
