"""Trees of token sequences with common beginnings, each laid out in one row.

A question's continuations share its context, and its variants share the tokens before the
perturbation. Each shared token is computed once. A node sees its ancestors only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defuse.models.rotary import LengthClasses

ANY_LENGTH = LengthClasses()  # the rotary factors are the same for all lengths


@dataclass(frozen=True)
class TokenPair:
    """A context and the continuation to score after it: token ids, neither empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def is_cut(self, max_length: int) -> bool:
        return len(self.context) + len(self.continuation) > max_length + 1

    def inputs(self, max_length: int) -> tuple[int, ...]:
        """The tokens that the model reads: all but the last, cut on the left to `max_length`."""
        return (self.context + self.continuation)[-(max_length + 1) :][:-1]


@dataclass(frozen=True)
class TokenTree:
    """Nodes in depth-first order.

    `depths[i]` is the number of ancestors of node i, and `last[i]` its last descendant (or i
    itself): j is i or an ancestor of i if and only if j <= i <= last[j]. `predicting[r]` are the
    nodes that predict the tokens `targets[r]` of pair r. `lengths[i]` is the representative length
    of the sequences that node i belongs to: sequences with other rotary factors share no node.
    """

    tokens: list[int]
    depths: list[int]
    lengths: list[int]
    last: list[int]
    predicting: list[list[int]]
    targets: list[tuple[int, ...]]


def grow(
    pairs: Sequence[TokenPair], skip: int, max_length: int, classes: LengthClasses = ANY_LENGTH
) -> TokenTree:
    """The tree of the pairs' inputs, without their first `skip` tokens.

    It is several trees in one row if the inputs' lengths are of several `classes`.
    """
    inputs = [pair.inputs(max_length)[skip:] for pair in pairs]
    lengths = [classes.representative(skip + len(sequence)) for sequence in inputs]
    tree = TokenTree([], [], [], [], [[] for _ in pairs], [pair.continuation for pair in pairs])
    path: list[int] = []
    before: tuple[int, ...] = ()
    length_before = 0
    # In lexicographic order, each sequence branches off the one before it.
    for index in sorted(range(len(inputs)), key=lambda i: (lengths[i], inputs[i])):
        sequence, length = inputs[index], lengths[index]
        shared = common_length(before, sequence) if length == length_before else 0
        size = len(tree.tokens)
        tree.tokens.extend(sequence[shared:])
        tree.depths.extend(range(shared, len(sequence)))
        tree.lengths.extend([length] * (len(sequence) - shared))
        tree.last.extend([0] * (len(sequence) - shared))
        path = path[:shared] + list(range(size, len(tree.tokens)))
        for node in path:
            tree.last[node] = len(tree.tokens) - 1
        tree.predicting[index] = path[-len(pairs[index].continuation) :]
        before, length_before = sequence, length
    return tree


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    differing = (index for index, (a, b) in pairs if a != b)
    return next(differing, min(len(first), len(second)))


@dataclass(frozen=True)
class TreeBatch:
    """Trees padded on the right to (batch, time), and the log-probabilities to read off.

    Entry k is the log-probability of the token `targets[k]` at node `nodes[k]` of the flattened
    batch. It belongs to pair `owners[k]`, counted over all trees.
    """

    input_ids: Tensor
    depths: Tensor
    lengths: Tensor
    last: Tensor
    nodes: Tensor
    targets: Tensor
    owners: Tensor


def collate(trees: Sequence[TokenTree], device: torch.device) -> TreeBatch:
    """The batch of these trees, one in each row."""
    time = max(len(tree.tokens) for tree in trees)
    entries = [
        (row * time + node, target, owner)
        for owner, (row, nodes, targets) in enumerate(
            (row, *pair)
            for row, tree in enumerate(trees)
            for pair in zip(tree.predicting, tree.targets, strict=True)
        )
        for node, target in zip(nodes, targets, strict=True)
    ]
    nodes, targets, owners = torch.tensor(entries, device=device).unbind(dim=1)
    padding = [list(range(len(tree.tokens), time)) for tree in trees]

    def rows(values: list[list[int]]) -> Tensor:
        return torch.tensor(values, device=device)

    return TreeBatch(
        input_ids=rows([t.tokens + [0] * len(p) for t, p in zip(trees, padding, strict=True)]),
        depths=rows([t.depths + [0] * len(p) for t, p in zip(trees, padding, strict=True)]),
        lengths=rows([t.lengths + [0] * len(p) for t, p in zip(trees, padding, strict=True)]),
        # A padding token is its own last descendant: nothing else sees it.
        last=rows([t.last + p for t, p in zip(trees, padding, strict=True)]),
        nodes=nodes,
        targets=targets,
        owners=owners,
    )


def visibility(last: Tensor, prefix_length: int) -> Tensor:
    """The keys that each node sees: prefix, ancestors and itself; (batch, time, prefix + time)."""
    batch, time = last.shape
    place = torch.arange(time, device=last.device)
    visible = (place[:, None] >= place) & (place[:, None] <= last[:, None, :])
    prefix = visible.new_ones(batch, time, prefix_length)
    return torch.cat([prefix, visible], dim=2)
