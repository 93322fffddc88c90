"""Trees of tokens score as each sequence does alone; encoding and windows are lm-eval's."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.evaluate.encoding import encode_pairs
from defuse.evaluate.generation import generate
from defuse.evaluate.loglikelihood import max_length, score
from defuse.evaluate.perplexity import perplexity, read_passage
from defuse.evaluate.token_tree import TokenPair, collate, grow, visibility
from defuse.models.decoder import Decoder
from defuse.models.load import LoadedModel
from defuse.utils.errors import UsageError
from tests.conftest import build_llama, build_tokenizer
from tests.helpers.architectures import CONFIGS, tiny_model
from tests.helpers.tokenizers_on_the_spot import KINDS

ids = st.lists(st.integers(3, 5), min_size=1, max_size=6).map(tuple)
requests = st.builds(TokenPair, ids, ids)


@torch.no_grad()
def alone(model: PreTrainedModel, request: TokenPair, length: int) -> float:
    """One sequence, one plain forward pass."""
    inputs = torch.tensor([request.inputs(length)])
    logprobs = model(inputs).logits[0].log_softmax(-1)[-len(request.continuation) :]
    return float(logprobs.gather(1, torch.tensor(request.continuation)[:, None]).sum())


def assert_scored_as_alone(
    model: PreTrainedModel,
    groups: Sequence[Sequence[TokenPair]],
    length: int = 64,
    token_budget: int | None = None,
) -> None:
    found = score(Decoder(model), groups, max_length=length, token_budget=token_budget)
    for group, values in zip(groups, found, strict=True):
        assert values == pytest.approx([alone(model, r, length) for r in group], abs=1e-4)


@given(st.lists(requests, min_size=1, max_size=6))
def test_in_a_tree_each_node_sees_just_what_stands_before_it(group: list[TokenPair]) -> None:
    tree = grow(group, skip=0, max_length=64)
    batch = collate([tree], torch.device("cpu"))
    seen = visibility(batch.last, prefix_length=0)[0]
    tokens = torch.tensor(tree.tokens)
    for request, nodes in zip(group, tree.predicting, strict=True):
        visible = seen[nodes[-1]]
        assert tuple(tokens[visible].tolist()) == request.inputs(64)
        assert [tree.depths[node] for node in nodes] == sorted(tree.depths[node] for node in nodes)
    assert len(tree.tokens) <= len({r.inputs(64)[: i + 1] for r in group for i in range(64)})


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(requests, min_size=1, max_size=4), min_size=1, max_size=4))
def test_groups_of_any_shape_score_as_alone(groups: list[list[TokenPair]]) -> None:
    model = build_llama(layers=2)
    assert_scored_as_alone(model, groups)
    assert_scored_as_alone(model, groups, token_budget=1)
    assert_scored_as_alone(model, groups, length=6)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_shared_prefix_and_branches_score_as_alone_in_every_architecture(kind: str) -> None:
    draw = torch.Generator().manual_seed(0)

    def some(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 61, (count,), generator=draw).tolist())

    before = some(9)
    groups = []
    for size in (3, 7, 5):
        context = before + some(size)
        groups.append([TokenPair(context, some(length)) for length in (1, 4, 2, 1)])
    assert_scored_as_alone(tiny_model(kind), groups)
    assert_scored_as_alone(tiny_model(kind), groups, length=14)


def test_the_prefix_of_all_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    run = Decoder.run

    def counting(self: Decoder, hidden: torch.Tensor, *args: object, **options: object) -> object:
        lengths.append(hidden.shape[0] * hidden.shape[1])
        return run(self, hidden, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "run", counting)
    before = tuple(range(3, 43))
    groups = [[TokenPair((*before, i), (50 + k,)) for k in range(4)] for i in range(60, 64)]
    score(Decoder(build_llama()), groups, max_length=64)
    assert lengths == [40, 4]  # the prefix, then one token for each question


def test_dropout_is_off_meanwhile_and_the_callers_mode_comes_back() -> None:
    model = tiny_model("gpt2").train()
    group = [[TokenPair((5, 6, 7), (8,))]]
    first, second = (score(Decoder(model), group, max_length=64) for _ in range(2))
    assert first == second
    assert model.training


def test_a_continuation_longer_than_the_model_reads_is_refused() -> None:
    with pytest.raises(UsageError, match="9 tokens long, and the model reads 8"):
        score(Decoder(build_llama()), [[TokenPair((3,), (4,) * 9)]], max_length=8)


PAIRS = [
    ("", " cat"),
    ("", "</s> cat"),
    ("Term: ", " cat"),
    ("Term:\n\n", "cat"),
    ("<s>Term:", " cat"),
    ("Ter", "m: cat"),  # the whole's tokens do not split where the context ends
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", PAIRS, ids=repr)
def test_odd_contexts_are_encoded_as_lm_eval_does(kind: str, pair: tuple[str, str]) -> None:
    tokenizer = KINDS[kind](["Term: the cat sat"] * 3)
    model = build_llama(vocab_size=len(tokenizer), layers=2)
    build = HFLM  # its decorator hides its parameters
    harness = build(pretrained=model, tokenizer=tokenizer, device="cpu", max_length=64)  # type: ignore[call-arg]
    instance = Instance("loglikelihood", {}, pair, 0)
    ((expected, _),) = harness.loglikelihood([instance], disable_tqdm=True)  # type: ignore[call-arg]
    found = score(Decoder(model), [encode_pairs([pair], tokenizer)], max_length=64)
    assert found[0][0] == pytest.approx(expected, abs=1e-4)


def test_a_continuation_without_a_token_is_refused() -> None:
    with pytest.raises(UsageError, match="has no token of its own"):
        encode_pairs([("Term:", "")], build_tokenizer())


def rolling(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    harness = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu")  # type: ignore[call-arg]
    instance = Instance("loglikelihood_rolling", {}, (text,), 0)
    (expected,) = harness.loglikelihood_rolling([instance], disable_tqdm=True)  # type: ignore[call-arg]
    return expected


@pytest.mark.parametrize("repeats", [1, 40])
def test_perplexity_is_lm_evals_over_all_windows(repeats: int) -> None:
    tokenizer = KINDS["byte-bpe"](["The cat sees a small bird."])
    model = build_llama(vocab_size=len(tokenizer), layers=2)
    model.config.max_position_embeddings = 64
    text = "The cat sees an owl. " * repeats
    found = perplexity(LoadedModel(model, tokenizer, "m"), text)
    expected = rolling(model, tokenizer, text)
    tokens = len(tokenizer.encode(text))
    assert (found.tokens, found.bytes, found.window) == (tokens, len(text), 64)
    assert torch.tensor(found.perplexity).log() * tokens == pytest.approx(-expected, abs=1e-3)


def test_a_bos_is_read_and_not_predicted(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    found = perplexity(LoadedModel(tiny_llama, tiny_tokenizer, "m"), "The cat")
    assert found.tokens == len(tiny_tokenizer.encode("The cat", add_special_tokens=False))


def test_generation_is_greedy_and_leaves_the_prompt_out(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    loaded = LoadedModel(tiny_llama, tiny_tokenizer, "m")
    (text,) = generate(loaded, ["The cat"], new_tokens=5)
    sequence = tiny_tokenizer.encode("The cat")
    for _ in range(5):
        sequence.append(int(tiny_llama(torch.tensor([sequence])).logits[0, -1].argmax()))
    assert text == tiny_tokenizer.decode(sequence[-5:], skip_special_tokens=True)


def test_blank_and_missing_texts_are_refused(tmp_path: Path) -> None:
    blank = tmp_path / "blank.txt"
    blank.write_text(" \n")
    with pytest.raises(UsageError, match="is empty"):
        read_passage(str(blank))
    with pytest.raises(UsageError, match="cannot be read"):
        read_passage(str(tmp_path / "missing.txt"))


def test_the_models_length_is_the_configurations_else_the_tokenizers(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    assert max_length(tiny_llama, tiny_tokenizer) == 512
    del tiny_llama.config.__dict__["max_position_embeddings"]
    assert max_length(tiny_llama, tiny_tokenizer) == 2048
