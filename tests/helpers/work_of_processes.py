"""What tests/test_processes.py starts once per process: every case unlearned, the weights kept.

    torchrun --nproc-per-node 2 -m tests.helpers.work_of_processes OUT few|all RECIPE

Then RECIPE is run as `defuse unlearn` runs it.

Batches of three texts do not divide by two, and leave one of four processes without any.
"""

import sys
from dataclasses import replace
from itertools import cycle, product, repeat
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from defuse.cli.unlearn import unlearn as run_recipe
from defuse.methods import NPO, LogitKL, Method, RepresentationMethod, Retain
from defuse.models.decoder import Decoder
from defuse.models.freeze import frozen_model
from defuse.unlearning.batches import Collate, StepBatches
from defuse.unlearning.config import Topic, Training, Unlearning, trained_parameters
from defuse.unlearning.noise import GaussianNoise
from defuse.unlearning.objective import make_objectives
from defuse.unlearning.reference import ReferenceModel
from defuse.unlearning.step import SharedPrefixStep
from defuse.unlearning.tokenized import encode_topics
from defuse.unlearning.train import unlearn
from defuse.utils.distributed import Processes, join_processes
from tests.conftest import build_tokenizer
from tests.helpers.architectures import tiny_model
from tests.unlearning.test_step import METHODS, NOISE, RETAIN

TRAINING = Training(steps=3, batch_size=3, learning_rate=1e-3, shuffle=True)
LENGTH = 60
CASES = {
    "few": [*zip(METHODS, cycle(RETAIN), repeat(NOISE[1]), strict=False)],
    "all": [*product(METHODS, RETAIN, NOISE)],
}


def settings(method: Method, retain: Retain, noise: GaussianNoise | None) -> Unlearning:
    return Unlearning(method, retain, noise, layer=2, train_layers=(1, 2))


def topic(unlearning: Unlearning) -> Topic:
    forget = [f"The virus {'is bad ' * i}number {i}." for i in range(7)]
    retain = [f"A cat {'sleeps ' * (4 - i % 4)}number {i}." for i in range(8)]
    whole = Topic("t", forget, retain, LENGTH, LENGTH, weight=2.0)
    strength = getattr(unlearning.method, "strength_field", None)
    return whole if strength is None else replace(whole, **{strength: 3.0})


def weights_after(unlearning: Unlearning, processes: Processes) -> dict[str, Tensor]:
    """The trained tensors in float64 after a few steps of AdamW."""
    model = tiny_model("gpt2", dtype=torch.float64, vocab_size=320)
    arguments = (model, build_tokenizer(), [topic(unlearning)], unlearning, TRAINING)
    return dict(unlearn(*arguments, processes=processes).changed)


def gradients(unlearning: Unlearning, processes: Processes) -> dict[str, Tensor]:
    """The first step's, in float32."""
    model = tiny_model("gpt2", dtype=torch.float32, vocab_size=320)
    found = trained_parameters(Decoder(model), unlearning)
    weights = {name: (1.1 * t.detach()).requires_grad_() for name, t in found.items()}
    with frozen_model(model):
        decoder, tokenizer = Decoder(model), build_tokenizer()
        topics = encode_topics(decoder, unlearning, tokenizer, [topic(unlearning)], TRAINING)
        collate = Collate.of(unlearning, tokenizer, decoder.device)
        batches = StepBatches(topics, TRAINING, collate, processes)
        reference = ReferenceModel(decoder, unlearning.layers(decoder.num_layers)[0])
        (objective,) = make_objectives(reference, unlearning, batches)
        step = SharedPrefixStep(reference, unlearning, weights, processes=processes)
        losses = step.backward(objective, batches.batch(0), 0)
    named = {name: tensor.grad for name, tensor in weights.items() if tensor.grad is not None}
    return {**named, "losses": torch.stack([losses.forget, losses.retain]).float()}


def sharded(processes: Processes) -> dict[str, Tensor]:
    """Several processes hold a share of the blocks each; one holds them whole."""
    unlearning = settings(NPO(), LogitKL(), GaussianNoise(std=0.1))
    model = tiny_model("gpt2", dtype=torch.float64, vocab_size=320)
    arguments = (model, build_tokenizer(), [topic(unlearning)], unlearning)
    device = None if processes.count == 1 else torch.device("cpu")
    training = replace(TRAINING, batch_size=4)
    result = unlearn(*arguments, training, in_place=True, processes=processes, shard_on=device)
    blocks = Decoder(model).blocks[0].parameters()
    assert all(isinstance(tensor, DTensor) == (device is not None) for tensor in blocks)
    return {f"sharded/weight/{name}": tensor for name, tensor in result.changed.items()}


def work(processes: Processes, cases: str) -> dict[str, Tensor]:
    kept = {}
    for case, parts in enumerate(CASES[cases]):
        unlearning = settings(*parts)
        for kind, found in (("weight", weights_after), ("gradient", gradients)):
            tensors = found(unlearning, processes)
            kept |= {f"{case}/{kind}/{name}": tensor for name, tensor in tensors.items()}
    kept |= sharded(processes)
    counted = Unlearning(METHODS[-1], LogitKL(), layer=2, mask_padding=False)
    assert not isinstance(counted.method, RepresentationMethod)
    tensors = weights_after(counted, processes)
    return kept | {f"padding/weight/{name}": tensor for name, tensor in tensors.items()}


def main() -> None:
    torch.set_num_threads(1)
    processes = join_processes(torch.device("cpu"))
    out, cases, recipe = sys.argv[1:]
    save_file(work(processes, cases), Path(out) / f"{processes.rank}.safetensors")
    run_recipe(Path(recipe), ["device=cpu"])


if __name__ == "__main__":
    main()
