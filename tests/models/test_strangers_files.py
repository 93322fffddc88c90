"""A stranger's checkpoint is read or refused: quickly, in one sentence, and within its folder."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from defuse.evaluate import Settings, evaluate_questions
from defuse.models.load import LoadedModel, load_model, load_outline
from defuse.models.safetensors_index import INDEX, SINGLE
from defuse.models.save import save_changed
from defuse.models.tokenizer_checks import repeats_repetitions
from defuse.questions import Question
from defuse.utils.errors import UsageError
from defuse.utils.text import printable
from tests.conftest import build_llama
from tests.helpers.architectures import tiny_model


@pytest.fixture
def folder(tmp_path: Path, tiny_model_folder: Path) -> Path:
    return shutil.copytree(tiny_model_folder, tmp_path / "model")


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refusal(name: Path | str) -> str:
    sentences = []
    for read in (load_outline, load_model):
        with pytest.raises(UsageError) as refused:
            read(str(name))
        sentences.append(str(refused.value))
    assert sentences[0] == sentences[1]  # all verbs say it before they read weights
    assert "\n" not in sentences[0]
    return sentences[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", "four"),
        ("vocab_size", 10**12),
        ("hidden_size", -32),
        ("intermediate_size", 10**9),
        ("num_attention_heads", True),
        ("max_position_embeddings", 10**30),
    ],
)
def test_sizes_that_no_model_has_are_refused_by_field(folder: Path, field: str, value: Any):
    edit(folder / "config.json", **{field: value})
    sentence = refusal(folder)
    assert str(folder) in sentence
    assert f"{field}: {value}" in sentence.replace("'", "")


def test_sizes_that_are_not_the_files_are_refused(folder: Path):
    edit(folder / "config.json", vocab_size=10**8)
    assert "(vocab_size: 100000000) asks for (100000000, 32)" in refusal(folder)
    edit(folder / "config.json", vocab_size=320, num_hidden_layers=900)
    assert "tensors, model.layers.10.input_layernorm.weight among them" in refusal(folder)


@pytest.mark.parametrize("text", ["[]", "{", "3", "[" * 10_000])
def test_a_configuration_that_is_no_object_is_refused(folder: Path, text: str):
    (folder / "config.json").write_text(text)
    assert str(folder / "config.json") in refusal(folder)


def test_sliding_attention_needs_its_window(tmp_path: Path, tiny_tokenizer):
    model = tiny_model("gemma3_text", vocab_size=320)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    edit(tmp_path / "model/config.json", sliding_window=None)
    assert "layer_types has sliding_attention, but sliding_window is missing" in refusal(
        tmp_path / "model"
    )


def test_a_tokenizer_s_numbers_are_checked(folder: Path):
    edit(folder / "tokenizer_config.json", model_max_length="long")
    assert "model_max_length: 'long' is no number of tokens" in refusal(folder)
    edit(folder / "tokenizer_config.json", model_max_length=int(1e30))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["zebra"] = 10**9
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert "the id of 'zebra': 1000000000 is no token's id" in refusal(folder)


@pytest.mark.parametrize("pattern", [{"String": "a"}, {"Regex": "."}])
def test_a_normaliser_that_multiplies_text_is_refused(folder: Path, pattern: dict[str, str]):
    step = {"type": "Replace", "pattern": pattern, "content": "aaaaaaaaaa"}
    steps = {"type": "Sequence", "normalizers": [step] * 9}
    edit(folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": [steps]})
    assert "the normalizer may make a text more than 1000 times as long" in refusal(folder)


def test_usual_normalisers_are_accepted(folder: Path):
    llama = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            {"type": "NFKC"},
        ],
    }
    edit(folder / "tokenizer.json", normalizer=llama)
    load_outline(str(folder))


@pytest.mark.parametrize(
    "expression", [r"(x+x+)+y", r"^(?:\w+\s?)*!", r"((a+)b){1000}", r"(a{2,})*?"]
)
def test_an_expression_that_may_take_for_ever_is_refused(folder: Path, expression: str):
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated"}
    edit(folder / "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": [split]})
    assert f"the expression {expression!r} repeats what repeats itself" in refusal(folder)


@pytest.mark.parametrize(
    "expression",
    [
        r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}]+[\r\n]*|\s+(?!\S)|\s+",
        r" ?[^(\s|[.,!?…。，、।۔،])]+",
        r"[!\"#()*+,\-.:;<=>?@\[\\\]^_`{|}~][A-Za-z]+| ?[\p{P}\p{S}]+[\r\n]*|\(a+\)+",
        r"(?:\r\n|\n)+[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t)? {2,}",
    ],
)
def test_usual_expressions_are_accepted(expression: str):
    assert not repeats_repetitions(expression)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_the_fields_of_added_tokens_do_not_control_the_terminal(folder: Path, name: str):
    token = {"content": "<x>", "id": 3, "special": True, "\x1b[2J": 1}
    added = {"added_tokens": [token], "added_tokens_decoder": {"3": token}}
    edit(folder / name, **added)
    assert "'\\x1b[2J' is no field of an added token" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_settings_of_a_terabyte_are_not_read(folder: Path, name: str):
    with (folder / name).open("r+b") as file:
        file.truncate(2**40)
    assert f"{name} cannot be read as JSON (its 1,099,511,627,776 bytes are more" in refusal(folder)


def test_deep_nesting_is_refused_by_the_file(folder: Path):
    (folder / "config.json").write_text('{"a":' + "[" * 5000 + "]" * 5000 + "}")
    assert "config.json cannot be read as JSON (it is nested deeper than 100)" in refusal(folder)


def test_an_index_that_names_a_pickle_is_refused_by_all(folder: Path):
    names = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    (folder / "other.safetensors").touch()
    torch.save(names, folder / "pytorch_model.bin")
    (folder / INDEX).write_text(
        json.dumps({"weight_map": dict.fromkeys(names, "pytorch_model.bin")})
    )
    assert "names pytorch_model.bin, which is no .safetensors file" in refusal(folder)


def test_a_tensor_that_the_index_puts_elsewhere_is_refused_by_all(sharded_model_folder: Path):
    places = json.loads((sharded_model_folder / INDEX).read_text())["weight_map"]
    name, file = next(iter(places.items()))
    other = sharded_model_folder / next(each for each in places.values() if each != file)
    save_file(load_file(other) | {name: torch.zeros(2)}, other, {"format": "pt"})
    assert f"{other} has {name}, which {INDEX} does not put there" in refusal(sharded_model_folder)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "generation_config.json", "model.safetensors"]
)
def test_a_link_out_of_the_folder_is_refused(folder: Path, name: str, tmp_path: Path):
    (folder / name).rename(tmp_path / "private.json")
    (folder / name).symlink_to(tmp_path / "private.json")
    assert f"{folder / name} is a link out of the model's folder" in refusal(folder)


def test_a_link_to_a_private_file_is_not_copied_into_an_output(folder: Path, tmp_path: Path):
    (tmp_path / "key").write_text("PRIVATE")
    for name in ("LICENSE", "NOTICE.txt"):
        (folder / name).symlink_to(tmp_path / "key")
    (folder / "LICENSE.own").write_text("Apache")
    (folder / "LICENSE.link").symlink_to(folder / "LICENSE.own")
    save_changed(str(folder), {}, tmp_path / "out")
    assert all(b"PRIVATE" not in path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert (tmp_path / "out/LICENSE.link").read_text() == "Apache"


def test_a_folder_may_itself_be_a_link(folder: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(folder)
    load_outline(str(tmp_path / "link"))


@pytest.mark.parametrize("name", [".model", "model.v1.0", "..model", "m.safetensors"])
def test_folders_are_read_whatever_dots_their_names_have(folder: Path, name: str, tmp_path: Path):
    place = folder.rename(tmp_path / name)
    assert load_model(str(place), device="cpu").name == str(place)


def test_the_working_folder_is_a_model(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    load_model(".", device="cpu")


@pytest.mark.parametrize(
    "name", ["modell", "models/llama", "./models/llama", "/gone/model", "~x/m"]
)
def test_a_folder_that_is_not_there_is_said_to_be_so(name: str):
    assert "does not exist" in (said := refusal(name)) or f"no such folder: {name}" in said


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def refuse(*arguments: object, **_: object) -> None:
        asked.append(arguments)
        raise OSError("no network here")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    sentence = refusal("nobody/nothing")
    assert "no such folder: nobody/nothing is not here, and the hub cannot be reached" in sentence
    assert len(asked) <= 2 * 2


def test_a_token_without_an_embedding_is_refused_when_it_is_asked_for(tiny_tokenizer):
    loaded = LoadedModel(build_llama(vocab_size=200), tiny_tokenizer, "m")
    question = Question("q", "What does the cat see?", ("bird", "moon"), 0)
    with pytest.raises(UsageError, match=r"token id \d+ has no embedding, the model has 200"):
        evaluate_questions(loaded, [question], Settings())


def test_control_characters_are_written_out():
    assert printable("\x1b]0;PWNED\x07 a\tb\nc\x9b") == "\\x1b]0;PWNED\\x07 a\tb\nc\\x9b"
    assert printable("Zürich ▁ 日本") == "Zürich ▁ 日本"
