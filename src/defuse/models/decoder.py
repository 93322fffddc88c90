"""A Hugging Face decoder as its parts: embedding, any range of blocks, final norm and head.

This is the only file that calls an architecture's modules, by the names in
`defuse.models.architectures`. All other code uses `Decoder`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from defuse.models.architectures import architecture_of
from defuse.models.rotary import Factors, LengthClasses
from defuse.utils.errors import UsageError

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class BlockInputs:
    """A block's inputs besides the hidden states, made once per batch by `Decoder.embed`."""

    position_ids: Tensor  # (batch or 1, time)
    masks: Mapping[str, Tensor | None]  # per attention type; None = plain causal attention
    rotary: Mapping[str, Factors]  # per attention type: cosine and sine

    def last(self, count: int) -> "BlockInputs":
        """The inputs of the last `count` tokens, which still attend to all keys."""
        masks = {kind: None if m is None else m[..., -count:, :] for kind, m in self.masks.items()}
        rotary = {kind: (c[:, -count:], s[:, -count:]) for kind, (c, s) in self.rotary.items()}
        return BlockInputs(self.position_ids[:, -count:], masks, rotary)


class Cache(Protocol):
    """Keys and values of `length` tokens before those that a block is called with.

    Replaces a Hugging Face cache: see `defuse.models.kv_cache`.
    """

    length: int
    whole: int | None

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: object
    ) -> tuple[Tensor, Tensor]: ...


class Decoder:
    """A view of a causal language model as embedding, blocks 0..L-1, norm and head.

    It holds no tensors and does not change the model. With `recompute` a block whose gradients are
    needed keeps only its input and runs again in the backward pass. Raises UsageError for an
    architecture that is not in `ARCHITECTURES`.
    """

    def __init__(self, model: PreTrainedModel, *, recompute: bool = False) -> None:
        self.model = model
        self.recompute = recompute
        self.config = model.config
        self.architecture = architecture_of(self.config.model_type)
        self.blocks: Sequence[nn.Module] = list(self._part(self.architecture.blocks))
        self.num_layers = len(self.blocks)
        self.hidden_size: int = self.config.hidden_size
        self.vocab_size: int = self.config.vocab_size
        self.num_embeddings: int = model.get_input_embeddings().num_embeddings  # type: ignore[assignment]
        self.max_positions: int | None = getattr(self.config, "max_position_embeddings", None)
        self.length_classes = LengthClasses.of(self.config)
        self.attention_types = [self._attention_type(i) for i in range(self.num_layers)]

    @property
    def device(self) -> torch.device:
        return self.model.device

    def parameter_name(self, layer: int, name: str) -> str:
        """The model's name for parameter `name` of block `layer`."""
        return f"{self.architecture.blocks}.{layer}.{name}"

    def parts(self, stop: int) -> list[nn.Module]:
        """The modules that `embed` and `run` up to block stop-1 call."""
        below = (self.architecture.positions, self.architecture.rotary)
        tables = [self._part(path) for path in below if path is not None]
        return [self.model.get_input_embeddings(), *tables, *self.blocks[:stop]]

    @property
    def top(self) -> tuple[nn.Module, nn.Module]:
        """The final norm and the head, which `logits` calls."""
        return self._part(self.architecture.norm), self.model.get_output_embeddings()  # type: ignore[return-value]

    def embed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> tuple[Tensor, BlockInputs]:
        """The hidden states before block 0, (batch, time, hidden), and what the blocks need.

        `input_ids` and `attention_mask` are (batch, time). Without a mask there must be no
        padding, or padding on the right, which causal attention hides from the real tokens.
        `lengths`: the number of each text's own tokens, by default those of the mask, or all. They
        decide about rotary factors that depend on the length.
        """
        time = torch.arange(input_ids.shape[1], device=input_ids.device)
        whole = self._whole_rows(input_ids, attention_mask, lengths)
        if attention_mask is None:
            return self._prepare(input_ids, time[None], time[None], None, whole)
        causal = time[:, None] >= time[None, :]
        # A padding token attends to itself: attention without any key would be NaN.
        itself = time[:, None] == time[None, :]
        visible = (causal & attention_mask[:, None, :].bool()) | itself
        position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        return self._prepare(input_ids, position_ids, position_ids, visible, whole)

    def embed_tree(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        visible: Tensor,
        prefix: Cache | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, BlockInputs]:
        """Like `embed`, for rows whose tokens form a tree behind a shared prefix.

        `input_ids` and `position_ids` are (batch, time); `visible` is boolean, (batch, time,
        prefix length + time): the keys that each token attends to. Positions count from the start
        of the prefix. `lengths` (batch or 1, time or 1): the representatives
        (`LengthClasses.representative`) of the texts that the tokens belong to; without them, texts
        must be short. Raises UsageError for attention kernels without such masks (flash attention).
        """
        key_positions = position_ids
        if prefix is not None:
            before = torch.arange(prefix.length, device=position_ids.device)
            before = before.expand(position_ids.shape[0], -1)
            key_positions = torch.cat([before, position_ids], dim=1)
        whole = self._whole_short(position_ids) if lengths is None else lengths
        return self._prepare(input_ids, position_ids, key_positions, visible, whole)

    def embed_behind(self, input_ids: Tensor, prefix: Cache) -> tuple[Tensor, BlockInputs]:
        """Like `embed`, for rows (batch, time) that follow a shared prefix.

        Raises UsageError if the rotary factors of texts so long are not those of the prefix.
        """
        whole = self._whole_behind(prefix, input_ids.shape[1])
        places = torch.arange(prefix.length + input_ids.shape[1], device=input_ids.device)
        position_ids = places[None, prefix.length :]
        visible = places <= position_ids[:, :, None]
        return self.embed_tree(input_ids, position_ids, visible, prefix, whole)

    def run(
        self,
        hidden: Tensor,
        inputs: BlockInputs,
        start: int,
        stop: int,
        weights: Mapping[str, Tensor] | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Blocks start..stop-1 applied to `hidden` (batch, time, hidden).

        `weights` replace the model's parameters of the same (full) names; they are cast to the
        model's dtype, and gradients flow back to them.
        """
        call = self._call_block
        if self.recompute and torch.is_grad_enabled():
            # Evaluation mode draws no random numbers, so none have to be drawn again.
            call = partial(checkpoint, call, use_reentrant=False, preserve_rng_state=False)
        for layer in range(start, stop):
            kind = self.attention_types[layer]
            arguments: dict[str, Any] = {
                "attention_mask": inputs.masks[kind],
                "position_ids": inputs.position_ids,
            }
            if inputs.rotary:
                arguments["position_embeddings"] = inputs.rotary[kind]
            if cache is not None:
                arguments[self.architecture.cache_argument] = cache
                arguments["use_cache"] = True
            hidden = call(layer, hidden, arguments, weights or {})
        return hidden

    def states(self, hidden: Tensor, inputs: BlockInputs) -> Iterator[Tensor]:
        """The hidden states before the first block, and those after each block."""
        yield hidden
        for layer in range(self.num_layers):
            hidden = self.run(hidden, inputs, layer, layer + 1)
            yield hidden

    def vectors(self, input_ids: Tensor) -> Tensor:
        """Each token's embedding in the hidden states before block 0: (…) to (…, hidden)."""
        table = self.model.get_input_embeddings()
        vectors: Tensor = table(input_ids)
        if self.architecture.scaled_embedding and type(table) is nn.Embedding:
            # Early releases of transformers 5 scale in the model's forward pass.
            vectors = vectors * vectors.new_full((), self.hidden_size**0.5)
        return vectors

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm, head and soft-cap: (..., hidden) to (..., vocabulary)."""
        norm, head = self.top
        logits = head(norm(hidden))
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _call_block(
        self, layer: int, hidden: Tensor, arguments: dict[str, Any], weights: Mapping[str, Tensor]
    ) -> Tensor:
        block, prefix = self.blocks[layer], self.parameter_name(layer, "")
        own = {
            name.removeprefix(prefix): tensor.to(hidden.dtype)
            for name, tensor in weights.items()
            if name.startswith(prefix)
        }
        output = functional_call(block, own, (hidden,), arguments) if own else None
        output = block(hidden, **arguments) if output is None else output
        return output[0] if isinstance(output, tuple) else output

    def _whole_rows(
        self, input_ids: Tensor, attention_mask: Tensor | None, lengths: Sequence[int] | None
    ) -> Tensor:
        """Each row's representative length, (batch or 1, 1)."""
        if not self.length_classes.vary:
            return torch.zeros_like(input_ids[:1, :1])
        if lengths is None:
            whole = None if attention_mask is None else attention_mask.long().sum(dim=1).tolist()
            lengths = [input_ids.shape[1]] if whole is None else whole
        known = [[self.length_classes.representative(length)] for length in lengths]
        return torch.tensor(known, device=input_ids.device)

    def _whole_short(self, position_ids: Tensor) -> Tensor:
        """The representative length of short texts, (1, 1); refuses positions of longer ones."""
        if self.length_classes.vary:
            self._refuse_other_factors(0, int(position_ids.max()) + 1)
        return torch.zeros_like(position_ids[:1, :1])

    def _whole_behind(self, prefix: Cache, time: int) -> Tensor:
        """The representative length of rows of `time` tokens behind `prefix`, (1, 1)."""
        length = prefix.length + time
        whole = self.length_classes.representative(length)
        self._refuse_other_factors(whole if prefix.whole is None else prefix.whole, length)
        return torch.tensor([[whole]], device=self.device)

    def _refuse_other_factors(self, whole: int, length: int) -> None:
        if self.length_classes.representative(length) != whole:
            raise UsageError(
                f"model: its rotary factors depend on the length of a text, and a text of {length} "
                "tokens has others than its beginning alone; use shorter texts"
            )

    def _prepare(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        key_positions: Tensor,
        visible: Tensor | None,
        whole: Tensor,
    ) -> tuple[Tensor, BlockInputs]:
        hidden = self.vectors(input_ids)
        if self.architecture.positions is not None:
            hidden = hidden + self._part(self.architecture.positions)(position_ids)
        masks = {
            kind: self._mask(kind, position_ids, key_positions, visible, hidden.dtype)
            for kind in set(self.attention_types)
        }
        return hidden, BlockInputs(position_ids, masks, self._rotary(hidden, position_ids, whole))

    def _rotary(self, hidden: Tensor, position_ids: Tensor, whole: Tensor) -> dict[str, Factors]:
        if self.architecture.rotary is None:
            return {}
        rotary: Callable[..., Factors] = self._part(self.architecture.rotary)

        def factors(*kind: str) -> Factors:
            if not self.length_classes.vary:
                return rotary(hidden, position_ids, *kind)
            return self.length_classes.factors(
                lambda positions: rotary(hidden, positions, *kind), position_ids, whole
            )

        kinds = set(self.attention_types)
        if self.architecture.rotary_per_type:
            return {kind: factors(kind) for kind in kinds}
        return dict.fromkeys(kinds, factors())

    def _mask(
        self,
        kind: str,
        queries: Tensor,
        keys: Tensor,
        visible: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor | None:
        """The mask for an attention layer of this kind; None for plain causal attention."""
        distance = queries[:, :, None] - keys[:, None, :]
        window = self.config.sliding_window if kind == SLIDING else None
        slides = window is not None and keys.shape[1] > window
        implementation: str = self.config._attn_implementation or "eager"
        if visible is None and not slides and implementation != "eager":
            return None
        if implementation.startswith("flash"):
            if visible is None:
                return None  # the kernel applies window and causal mask itself
            raise UsageError(
                f"attn_implementation={implementation} takes no tree of tokens and no padding on "
                "the left: load the model with attn_implementation='sdpa' or 'eager'"
            )
        allowed = distance >= 0 if visible is None else visible
        if window is not None:
            allowed = allowed & (distance < window)
        allowed = allowed[:, None]
        if implementation != "eager":
            return allowed
        hidden_from = torch.zeros((), dtype=dtype, device=allowed.device)
        return hidden_from.where(allowed, torch.finfo(dtype).min)

    def _attention_type(self, layer: int) -> str:
        types = getattr(self.config, "layer_types", None)
        if types is not None:
            return types[layer]
        sliding = self.architecture.all_sliding and self.config.sliding_window is not None
        return SLIDING if sliding else FULL

    def _part(self, path: str) -> Any:  # noqa: ANN401 (a submodule of any class)
        return attrgetter(path)(self.model)
