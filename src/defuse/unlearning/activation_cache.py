"""What the frozen model makes of each text, kept for when the text comes again.

A text's hidden states depend, in their last bits, on what else stands in the batch. So a kept text
is always computed in the same company, its bucket, whatever batch asks for it first: a resumed run
equals an undisturbed one to the last bit, and runs of a sweep may share what is kept.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from defuse.data.collate import Item, TextBatch

Kept = dict[tuple[Hashable, str], Sequence[Tensor]]


@dataclass(frozen=True)
class Bucket:
    """Texts that the frozen model always sees together, `tokens` in all.

    `key`: a hash of all that the model sees of them.
    """

    key: str
    items: tuple[Item, ...]
    batch: Callable[[], TextBatch]
    tokens: int = 0


class FrozenStore:
    """Results per text of the texts in `buckets`, computed a bucket at a time when first needed.

    `kept` may be shared by stores of the same model in the same precision.
    """

    def __init__(self, buckets: Iterable[Bucket] = (), kept: Kept | None = None) -> None:
        self.kept: Kept = {} if kept is None else kept
        self._places = {item: (b, row) for b in buckets for row, item in enumerate(b.items)}

    def rows(
        self,
        kind: Hashable,
        items: Sequence[Item],
        compute: Callable[[TextBatch], Sequence[Tensor]],
    ) -> list[Tensor] | None:
        """What `compute` gives for each text; None where one of them is in no bucket."""
        if not all(item in self._places for item in items):
            return None
        rows = []
        for bucket, row in (self._places[item] for item in items):
            where = (kind, bucket.key)
            if where not in self.kept:
                self.kept[where] = compute(bucket.batch())
            rows.append(self.kept[where][row])
        return rows

    def hidden(
        self, kind: Hashable, batch: TextBatch, compute: Callable[[TextBatch], Tensor]
    ) -> Tensor:
        """Hidden states (batch, time, hidden): kept ones, zero on padding, or `compute(batch)`."""

        def without_padding(bucket: TextBatch) -> list[Tensor]:
            hidden = compute(bucket)
            return [row[span].clone() for row, span in zip(hidden, bucket.spans, strict=True)]

        rows = self.rows(kind, batch.items, without_padding)
        return compute(batch) if rows is None else _pad(rows, batch)


def _pad(rows: Sequence[Tensor], batch: TextBatch) -> Tensor:
    padded = rows[0].new_zeros(*batch.input_ids.shape, rows[0].shape[-1])
    for row, span, kept in zip(padded, batch.spans, rows, strict=True):
        row[span] = kept
    return padded
