"""Padded batches of encoded texts, with all indices that the losses need.

The indices are made on the CPU, where the lengths are known, so no training step has to wait for
the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defuse.data.text import Encoded
from defuse.utils.distributed import ALONE, Processes

Item = tuple[str, int]


@dataclass(frozen=True)
class TextBatch:
    """B texts padded to T tokens; flat indices count through (B·T).

    `items` names each text, (corpus, row), for everything that is drawn or cached per text.
    `counted` (B, T) is true where a token counts in hidden-state and logit losses, `counted_at`
    (M,) are its flat indices. `labels` (P,) are the tokens whose log-probability counts,
    `predicted_at` (P,) the places of the hidden states that predict them, `sequence` (P,) its text.
    If several processes share a step's texts, `whole` is the number of all texts, `places` (B,) the
    places of these among them, and `share` their share of the counted tokens.
    """

    items: tuple[Item, ...]
    input_ids: Tensor
    attention_mask: Tensor | None
    spans: tuple[slice, ...]
    counted: Tensor
    counted_at: Tensor
    predicted_at: Tensor
    labels: Tensor
    sequence: Tensor
    whole: int
    places: Tensor
    share: float

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of each text's tokens, without padding."""
        return tuple(span.stop - span.start for span in self.spans)


def collate(
    texts: Sequence[Encoded],
    items: Sequence[Item],
    *,
    pad_token_id: int,
    mask_padding: bool = True,
    skip_first_token: bool = True,
    device: torch.device | str = "cpu",
    processes: Processes = ALONE,
) -> TextBatch:
    """Pad `texts` on the right and mark what counts; each of several processes gets its part.

    `mask_padding=False` is what the RNA paper's code does: padding is on the left, and every padded
    position counts like a token. `skip_first_token` does not count each text's first real token,
    whose hidden state is an attention sink with a norm many times larger than all others.
    """
    time = max(len(text.ids) for text in texts)
    offsets = [0 if mask_padding else time - len(text.ids) for text in texts]
    ids = torch.full((len(texts), time), pad_token_id)
    real = torch.zeros(len(texts), time, dtype=torch.bool)
    predicted, silent = torch.zeros_like(real), torch.zeros_like(real)
    for row, (text, offset) in enumerate(zip(texts, offsets, strict=True)):
        end = offset + len(text.ids)
        ids[row, offset:end] = torch.tensor(text.ids)
        real[row, offset:end] = True
        predicted[row, offset + max(1, text.answer_start) : end] = True
        silent[row, [offset + place for place in text.uncounted]] = True
        if not mask_padding:
            predicted[row, : offset + 1] = True  # padding, and the token after it
    predicted[:, 0] = False
    predicted &= ~silent
    counted = real & ~silent if mask_padding else ~silent
    if skip_first_token:
        counted[torch.arange(len(texts)), torch.tensor(offsets)] = False
    spans = tuple(slice(o, o + len(t.ids)) for o, t in zip(offsets, texts, strict=True))
    whole = _Marked(tuple(items), ids, real, spans, counted, predicted)
    return _batch(whole, processes.mine(range(len(texts))), device, mask_padding=mask_padding)


@dataclass(frozen=True)
class _Marked:
    """All of a step's texts on the CPU."""

    items: tuple[Item, ...]
    ids: Tensor
    real: Tensor
    spans: tuple[slice, ...]
    counted: Tensor
    predicted: Tensor


def _batch(
    whole: _Marked, rows: Sequence[int], device: torch.device | str, *, mask_padding: bool
) -> TextBatch:
    """Some rows of `whole` as a batch."""
    chosen = list(rows)
    time = whole.ids.shape[1]
    if mask_padding:  # where padding counts, it stays
        time = max((whole.spans[row].stop for row in chosen), default=0)
    ids, real, counted, predicted = (
        each[chosen, :time] for each in (whole.ids, whole.real, whole.counted, whole.predicted)
    )
    label_at = predicted.flatten().nonzero()[:, 0]
    return TextBatch(
        items=tuple(whole.items[row] for row in chosen),
        input_ids=ids.to(device),
        attention_mask=None if mask_padding else real.to(device),
        spans=tuple(whole.spans[row] for row in chosen),
        counted=counted.to(device),
        counted_at=counted.flatten().nonzero()[:, 0].to(device),
        predicted_at=(label_at - 1).to(device),
        labels=ids.flatten()[label_at].to(device),
        sequence=(label_at // max(1, time)).to(device),
        whole=len(whole.items),
        places=torch.tensor(chosen, dtype=torch.long, device=device),
        share=int(counted.sum()) / int(whole.counted.sum()),
    )
