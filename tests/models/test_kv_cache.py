"""Rows behind a shared prefix are as if each were run whole."""

import pytest
import torch
from transformers import PreTrainedModel

from defuse.models.decoder import Decoder
from defuse.models.kv_cache import PrefixCache, last_states
from tests.models.test_decoder import TIME, model, tokens

__all__ = ["model"]


@torch.no_grad()
def test_branches_behind_a_shared_prefix_equal_whole_sequences(model: PreTrainedModel) -> None:
    """Prefix of 5, then a trunk of 3 with two branches of 2: each branch must be as if alone."""
    decoder, ids = Decoder(model), tokens(1)[0]
    prefix, trunk, branches = ids[:5], ids[5:8], (ids[8:10], ids[10:12])
    cache = PrefixCache.of(decoder, prefix[None])
    row = torch.cat([trunk, *branches])[None]
    positions = torch.tensor([[5, 6, 7, 8, 9, 8, 9]])
    visible = torch.ones(1, 7, 12, dtype=torch.bool)
    visible[0, :, 5:] = torch.ones(7, 7).tril().bool()
    visible[0, 5:, 8:10] = False  # the second branch does not see the first
    hidden, inputs = decoder.embed_tree(row, positions, visible, cache)
    hidden = decoder.run(hidden, inputs, 0, 4, cache=cache)
    for branch, where in zip(branches, ([3, 4], [5, 6]), strict=True):
        whole = torch.cat([prefix, trunk, branch])[None]
        expected = model(whole).logits[:, -2:]
        torch.testing.assert_close(decoder.logits(hidden[:, where]), expected)


@torch.no_grad()
def test_a_prefix_goes_on_or_stops_sooner(model: PreTrainedModel) -> None:
    decoder, ids = Decoder(model), tokens(3)
    short = PrefixCache.of(decoder, ids[:1, :3])
    for prefix in (short.extended(decoder, ids[:1, 3:8]).first(6), short):
        rows = torch.cat([ids[:1].expand(3, -1)[:, : prefix.length], ids[:, prefix.length :]], 1)
        hidden, inputs = decoder.embed_behind(rows[:, prefix.length :], prefix)
        hidden = decoder.run(hidden, inputs, 0, 4, cache=prefix)
        expected = model(rows).logits[:, prefix.length :]
        torch.testing.assert_close(decoder.logits(hidden), expected)


@pytest.mark.parametrize("count", [1, 3])
def test_of_the_last_block_only_what_is_read_is_run(model: PreTrainedModel, count: int) -> None:
    """The same states and the same gradients as by whole sequences, and no work that is lost."""
    decoder, ids = Decoder(model), tokens(3)
    rows = torch.cat([ids[:1, :5].expand(3, -1), ids[:, 5:]], dim=1)
    prefix = PrefixCache.of(decoder, ids[:1, :5])
    ran: list[int] = []
    output = decoder.blocks[-1].get_submodule(decoder.architecture.mlp_output)
    handle = output.register_forward_hook(lambda _, inputs, __: ran.append(inputs[0].shape[-2]))

    def by_parts() -> torch.Tensor:
        hidden, inputs = decoder.embed_behind(rows[:, 5:], prefix)
        hidden = hidden.detach().requires_grad_()
        last = last_states(decoder, hidden, inputs, prefix, count)
        return torch.cat(
            [last.flatten(), *torch.autograd.grad(last.square().sum(), hidden)[0].flatten(1)]
        )

    found = by_parts()
    handle.remove()
    assert set(ran) == {count}
    hidden, inputs = decoder.embed(rows)
    behind = hidden[:, 5:].detach().requires_grad_()
    whole = torch.cat([hidden[:, :5].detach(), behind], dim=1)
    last = decoder.run(whole, inputs, 0, decoder.num_layers)[:, -count:]
    (gradient,) = torch.autograd.grad(last.square().sum(), behind)
    expected = torch.cat([last.flatten(), gradient.flatten()])
    assert (found - expected).norm() < 1e-4 * expected.norm()


@torch.no_grad()
def test_nothing_in_front_is_a_prefix_too(model: PreTrainedModel) -> None:
    decoder, ids = Decoder(model), tokens(1)
    prefix = PrefixCache().extended(decoder, ids[:, :4])
    assert prefix.length == 4
    hidden, inputs = decoder.embed_behind(ids[:, 4:], prefix)
    last = last_states(decoder, hidden, inputs, prefix, TIME - 4)
    torch.testing.assert_close(decoder.logits(last), model(ids).logits[:, 4:])
