"""Every way of running a text gives the log-probabilities of plain transformers on that text."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from defuse.data.collate import collate
from defuse.data.text import Encoded
from defuse.evaluate.generation import generate
from defuse.evaluate.loglikelihood import score
from defuse.evaluate.token_tree import TokenPair
from defuse.models.decoder import Decoder
from defuse.models.kv_cache import PrefixCache
from defuse.models.load import LoadedModel, load_model
from defuse.models.partial_load import load_part
from defuse.models.save import save_model
from defuse.unlearning.reference import ReferenceModel
from defuse.utils.errors import UsageError
from tests.conftest import build_tokenizer
from tests.helpers.architectures import CONFIGS, tiny_model

SWITCH = 20  # tokens: above it, longrope has other factors
LONGEST = 64  # the tiny models' max_position_embeddings
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {
        "original_max_position_embeddings": SWITCH,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 3.0, 5.0, 9.0],
        "factor": 3.2,
    },
}
WITH_ONE_ROTARY = ("llama", "mistral", "qwen2", "qwen3", "gemma2")
MODELS = [
    *((kind, "default") for kind in CONFIGS),
    *((kind, scaling) for kind in WITH_ONE_ROTARY for scaling in list(SCALINGS)[1:]),
    ("gemma3_text", "longrope"),
    ("phi3", "longrope"),  # its only scaling
]


def scaled_model(kind: str, scaling: str, **settings: Any) -> PreTrainedModel:
    if scaling == "default":
        return tiny_model(kind, **settings)
    rope = {"rope_type": scaling, "rope_theta": 10000.0, **SCALINGS[scaling]}
    if kind == "gemma3_text":  # sliding layers are never scaled
        sliding = {"rope_type": "default", "rope_theta": 10000.0}
        rope = {"full_attention": rope, "sliding_attention": sliding}
    elif kind == "phi3":
        settings = {**settings, "original_max_position_embeddings": SWITCH}
    return tiny_model(kind, rope_parameters=rope, **settings)


@pytest.fixture(params=MODELS, ids="-".join)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return scaled_model(*request.param)


def ids(count: int, seed: int = 1) -> tuple[int, ...]:
    draws = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, 61, (count,), generator=draws).tolist())


@torch.no_grad()
def plain(model: PreTrainedModel, pair: TokenPair) -> float:
    """One pass of a fresh copy: dynamic scaling remembers longer texts."""
    whole, start = [*pair.context, *pair.continuation], len(pair.context)
    table = deepcopy(model)(torch.tensor([whole[:-1]])).logits[0].float().log_softmax(-1)
    return sum(table[place - 1, whole[place]].item() for place in range(start, len(whole)))


def groups() -> list[list[TokenPair]]:
    """Questions behind one beginning, on both sides of all limits and across them."""
    beginning = ids(8)
    lengths = (3, 8, 10, 12, 30, 50)
    return [
        [
            TokenPair((*beginning, *ids(length, length)), ids(answer, 100 + answer))
            for answer in (1, 2, 4)
        ]
        for length in lengths
    ]


def test_scores_in_trees_and_behind_prefixes(model: PreTrainedModel) -> None:
    asked = groups()
    longest = model.config.max_position_embeddings
    found = score(Decoder(model), asked, max_length=longest, token_budget=200)
    expected = [[plain(model, pair) for pair in group] for group in asked]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-4)


def test_dynamic_scaling_beyond_the_longest_text_of_training() -> None:
    model = scaled_model("llama", "dynamic")
    pairs = [[TokenPair(ids(length), ids(2, 5))] for length in (70, 5, 90, 40)]
    found = score(Decoder(deepcopy(model)), pairs, max_length=200, token_budget=400)
    for (ours,), (pair,) in zip(found, pairs, strict=True):
        assert ours == pytest.approx(plain(model, pair), abs=2e-4)


@torch.no_grad()
def hidden_states(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    encoded = [Encoded(tuple(text), 1) for text in texts]
    batch = collate(encoded, [("t", row) for row in range(len(texts))], pad_token_id=0)
    reference = ReferenceModel(Decoder(model), 2)
    hidden = reference.start(batch).hidden
    return [row[: len(text)] for row, text in zip(hidden, texts, strict=True)]


@pytest.mark.parametrize("kept", [False, True])
def test_texts_of_a_training_batch(model: PreTrainedModel, kept: bool, tmp_path: Any) -> None:
    """Also with only the lower blocks in memory."""
    texts = [ids(6), ids(SWITCH, 2), ids(SWITCH + 1, 3), ids(40, 4)]
    wanted = [
        deepcopy(model)(torch.tensor([text]), output_hidden_states=True).hidden_states[2][0]
        for text in texts
    ]
    if kept:
        save_model(model, build_tokenizer(), tmp_path / "model")
        model = load_part(str(tmp_path / "model"), 2, device="cpu").model
    for ours, theirs in zip(hidden_states(model, texts), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_saved_model_keeps_its_scaling(model: PreTrainedModel, tmp_path: Any) -> None:
    save_model(model, build_tokenizer(), tmp_path / "model")
    again = load_model(str(tmp_path / "model"), device="cpu").model
    text = torch.tensor([ids(40)])
    assert torch.equal(again(text).logits, deepcopy(model)(text).logits)


@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_continuations_are_those_of_each_prompt_alone(kind: str) -> None:
    tokenizer = build_tokenizer()
    model = scaled_model(kind, "longrope", vocab_size=len(tokenizer))
    loaded = LoadedModel(model, tokenizer, "m")
    prompts = ["A cat.", "A bird sees it.", "The cat sees a bird in the tree. " * 2]
    together = generate(loaded, prompts, 6)
    assert together == [generate(loaded, [prompt], 6)[0] for prompt in prompts]


def test_a_prefix_is_not_used_for_texts_with_other_factors() -> None:
    decoder = Decoder(scaled_model("phi3", "longrope"))
    prefix = PrefixCache.of(decoder, torch.tensor([ids(SWITCH - 2)]))
    decoder.embed_behind(torch.tensor([ids(2)]), prefix)
    with pytest.raises(UsageError, match=f"a text of {SWITCH + 1} tokens has others"):
        decoder.embed_behind(torch.tensor([ids(3)]), prefix)
    long = PrefixCache.of(decoder, torch.tensor([ids(SWITCH - 2)]), SWITCH + 1)
    decoder.embed_behind(torch.tensor([ids(3)]), long)
