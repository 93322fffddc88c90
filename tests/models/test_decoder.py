"""The parts of every supported decoder, put together again, equal the whole."""

import pytest
import torch
from transformers import PreTrainedModel

from defuse.models.architectures import ARCHITECTURES, architecture_of
from defuse.models.decoder import Decoder
from defuse.utils.errors import UsageError
from tests.helpers.architectures import CONFIGS, tiny_model

KINDS = [
    (kind, attention)
    for kind in CONFIGS
    for attention in ("sdpa", "eager")
    if (kind, attention) != ("gemma2", "sdpa")  # refused by transformers itself
]
TIME = 12


@pytest.fixture(params=KINDS, ids="-".join)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    kind, attention = request.param
    return tiny_model(kind, attention=attention)


def tokens(rows: int, time: int = TIME) -> torch.Tensor:
    return torch.randint(3, 61, (rows, time), generator=torch.Generator().manual_seed(1))


def test_every_architecture_has_a_tiny_model() -> None:
    assert set(CONFIGS) == set(ARCHITECTURES)


@torch.no_grad()
def test_prefix_trained_blocks_and_rest_equal_the_plain_forward_pass(
    model: PreTrainedModel,
) -> None:
    decoder, input_ids = Decoder(model), tokens(3)
    hidden, inputs = decoder.embed(input_ids)
    for start, stop in [(0, 1), (1, 3), (3, 4)]:
        hidden = decoder.run(hidden, inputs, start, stop)
    torch.testing.assert_close(decoder.logits(hidden), model(input_ids).logits)


@torch.no_grad()
def test_hidden_states_are_those_of_a_hook_on_the_block(model: PreTrainedModel) -> None:
    decoder, input_ids, seen = Decoder(model), tokens(2), []
    decoder.blocks[2].register_forward_hook(lambda *call: seen.append(call[-1]))
    hidden, inputs = decoder.embed(input_ids)
    model(input_ids)
    expected = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    torch.testing.assert_close(decoder.run(hidden, inputs, 0, 3), expected)


@torch.no_grad()
def test_other_weights_stand_in_without_touching_the_model(model: PreTrainedModel) -> None:
    decoder, input_ids = Decoder(model), tokens(2)
    name = decoder.parameter_name(1, f"{decoder.architecture.mlp_output}.weight")
    before = model.get_parameter(name).clone()
    other = before + 1.0
    hidden, inputs = decoder.embed(input_ids)
    swapped = decoder.run(hidden, inputs, 0, 4, weights={name: other})
    assert torch.equal(model.get_parameter(name), before)
    model.get_parameter(name).copy_(other)
    torch.testing.assert_close(swapped, decoder.run(hidden, inputs, 0, 4))
    model.get_parameter(name).copy_(before)
    assert not torch.allclose(swapped, decoder.run(hidden, inputs, 0, 4))


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_leaves_real_tokens_as_they_are(model: PreTrainedModel, side: str) -> None:
    decoder, input_ids = Decoder(model), tokens(1)
    hidden, inputs = decoder.embed(input_ids)
    alone = decoder.run(hidden, inputs, 0, 4)
    padding = torch.zeros(1, 4, dtype=torch.long)
    parts = [padding, input_ids] if side == "left" else [input_ids, padding]
    padded = torch.cat(parts, dim=1)
    real = slice(4, None) if side == "left" else slice(None, TIME)
    mask = torch.zeros_like(padded)
    mask[:, real] = 1
    for given in [mask] if side == "left" else [mask, None]:
        hidden, inputs = decoder.embed(padded, given)
        again = decoder.run(hidden, inputs, 0, 4)
        assert torch.isfinite(again).all()
        torch.testing.assert_close(again[:, real], alone, rtol=1e-4, atol=1e-5)


def test_an_unknown_architecture_is_refused_with_the_list_of_what_works() -> None:
    with pytest.raises(UsageError, match=r"'mamba'.*llama, mistral.*gpt2"):
        architecture_of("mamba")
