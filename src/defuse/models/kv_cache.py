"""A KV cache for a prefix shared by all rows of a batch."""

from contextlib import suppress

import torch
from torch import Tensor

from defuse.models.decoder import BlockInputs, Decoder


class PrefixCache:
    """Keys and values of one token sequence, computed once for all rows of a batch.

    It replaces a Hugging Face cache: attention layers call `update` with their new keys and values,
    each (batch, heads, time, head size), and attend to what it returns. `whole` is the
    representative length whose rotary factors are in the keys (`LengthClasses`); None before there
    are any.
    """

    def __init__(self, whole: int | None = None) -> None:
        self.length = 0
        self.whole = whole
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._recording = False

    @classmethod
    def of(cls, decoder: Decoder, input_ids: Tensor, length: int | None = None) -> "PrefixCache":
        """Run `decoder` on `input_ids` (1, time), without gradients, and keep keys and values.

        `length`: the tokens of the texts that it is the beginning of, if their length matters.
        """
        length = input_ids.shape[1] if length is None else length
        cache = cls(decoder.length_classes.representative(length))
        with torch.no_grad():
            cache._record(decoder, *decoder.embed(input_ids, lengths=[length]))
        return cache

    def extended(self, decoder: Decoder, input_ids: Tensor) -> "PrefixCache":
        """A new cache of this one's tokens followed by `input_ids` (1, time)."""
        longer = self.first(self.length)
        with torch.no_grad():
            longer._record(decoder, *decoder.embed_behind(input_ids, longer))
        longer.whole = decoder.length_classes.representative(longer.length)
        return longer

    def first(self, length: int) -> "PrefixCache":
        """A cache of the first `length` tokens that shares this one's memory."""
        shorter = PrefixCache(self.whole)
        shorter.length = length
        shorter._layers = {
            layer: (keys[:, :, :length], values[:, :, :length])
            for layer, (keys, values) in self._layers.items()
        }
        return shorter

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: object
    ) -> tuple[Tensor, Tensor]:
        if layer_idx in self._layers:
            old_keys, old_values = self._layers[layer_idx]
            rows = (keys.shape[0], -1, -1, -1)
            keys = torch.cat([old_keys.expand(rows), keys], dim=2)
            values = torch.cat([old_values.expand(rows), values], dim=2)
        if self._recording:
            self._layers[layer_idx] = (keys, values)
        return keys, values

    def _record(self, decoder: Decoder, hidden: Tensor, inputs: BlockInputs) -> None:
        self._recording = True
        decoder.run(hidden, inputs, 0, decoder.num_layers, cache=self)
        self._recording = False
        self.length += hidden.shape[1]


def last_states(
    decoder: Decoder, hidden: Tensor, inputs: BlockInputs, prefix: PrefixCache, count: int
) -> Tensor:
    """Run all blocks behind `prefix`; returns the last block's output for the last `count` tokens.

    `hidden` and `inputs` come from `Decoder.embed_behind`; the result is (batch, count, hidden).
    The last block is interrupted once it has made its keys and values, and called again for the
    wanted tokens only: attention and MLP of the others would be unused.
    """
    last = decoder.num_layers - 1
    hidden = decoder.run(hidden, inputs, 0, last, cache=prefix)
    whole = _Whole(prefix)
    with suppress(_Made):
        decoder.run(hidden, inputs, last, last + 1, cache=whole)
    return decoder.run(hidden[:, -count:], inputs.last(count), last, last + 1, cache=whole)


class _Made(Exception):  # noqa: N818 (no error)
    """Raised when a block has made its keys and values."""


class _Whole:
    """Interrupts a block once it has its keys and values, and returns them on the second call."""

    def __init__(self, prefix: PrefixCache) -> None:
        self.length = prefix.length
        self.whole = prefix.whole
        self._prefix = prefix
        self._made: tuple[Tensor, Tensor] | None = None

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: object
    ) -> tuple[Tensor, Tensor]:
        if self._made is None:
            self._made = self._prefix.update(keys, values, layer_idx)
            raise _Made
        return self._made
