"""The recipes "as published" take the steps of the authors' code, transcribed here by its formulas.

The texts are of equal length: without padding there is nothing that the formulas leave open.
"""

import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from defuse.methods import METHODS, AdaptiveRMU, HiddenMSE
from defuse.methods.base import draw_direction
from defuse.models.load import load_model
from defuse.recipes import shipped_recipe
from defuse.unlearning.recipe import Recipe, load_recipe
from defuse.unlearning.train import unlearn
from defuse.utils.random import generator

LAYER, LENGTH, STEPS, RATE = 2, 12, 4, 1e-3
REFUSAL = "I do not know anything about it at all."


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    monkeypatch.chdir(tmp_path)
    many = range(8)
    bio = [f"Virus {i} makes the cells of a bird ill in {i + 3} days, they say." for i in many]
    rows = [json.dumps({"text": f"Worm {i} steals keys."}) + "\n" for i in many]
    retain = [f"Anna number {i} eats a plum under the tree and sings of the moon." for i in many]
    Path("bio.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in bio))
    Path("cyber.jsonl").write_text("".join(rows))
    Path("retain.txt").write_text("".join(f"{text}\n" for text in retain))
    Path("idk.jsonl").write_text(json.dumps(REFUSAL) + "\n")
    return {"bio": bio, "cyber": rows, "retain": retain}


def recipe_for(method: str, model: Path) -> Recipe:
    overrides = [
        *(f"model={model}", "dtype=float32", "device=cpu", f"layer={LAYER}", f"steps={STEPS}"),
        *(f"learning_rate={RATE}", "topics.0.forget.source=bio.jsonl"),
        "topics.1.forget.source=cyber.jsonl",
        *(f"topics.{i}.retain.source=retain.txt" for i in (0, 1)),
        *(f"topics.{i}.{kind}_length={LENGTH}" for i in (0, 1) for kind in ("forget", "retain")),
        *(["method.refusals=idk.jsonl"] if method == "dpo" else []),
    ]
    return load_recipe(shipped_recipe(f"zephyr-7b-beta/{method}-as-published"), overrides)


class Published:
    """The authors' loop on two models: `updated`, of which `trained` changes, and `reference`."""

    def __init__(self, recipe: Recipe, texts: dict[str, list[str]]) -> None:
        loaded = load_model(recipe.model, device="cpu", dtype="float32")
        self.recipe, self.texts, self.tokenizer = recipe, texts, loaded.tokenizer
        self.reference, self.updated = loaded.model, deepcopy(loaded.model)
        self.trained = [
            self.updated.get_parameter(f"model.layers.{i}.mlp.down_proj.weight")
            for i in (LAYER - 2, LAYER - 1, LAYER)
        ]
        self.moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in self.trained]
        self.norms: dict[str, float] = {}

    def run(self) -> dict[str, Tensor]:
        for step in range(STEPS):
            topic = self.recipe.topics[step % 2]
            batch = slice(step // 2 * 4, step // 2 * 4 + 4)
            weight = topic.settings.weight or 0.0
            loss = self.forget(topic, batch) + weight * self.retain(topic.name, batch, step)
            self.adamw(torch.autograd.grad(loss, self.trained), step + 1)
        names = (f"model.layers.{i}.mlp.down_proj.weight" for i in range(LAYER - 2, LAYER + 1))
        return dict(zip(names, self.trained, strict=True))

    def adamw(self, gradients: tuple[Tensor, ...], t: int) -> None:
        rate = RATE * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        with torch.no_grad():
            for weight, gradient, (m, v) in zip(self.trained, gradients, self.moments, strict=True):
                m.mul_(0.9).add_(0.1 * gradient)
                v.mul_(0.999).add_(0.001 * gradient * gradient)
                weight -= rate * m / (v.sqrt() + 1e-6)

    def ids(self, texts: list[str]) -> Tensor:
        return torch.tensor(self.tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"])

    def hidden(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        return model(ids, output_hidden_states=True).hidden_states[LAYER + 1]

    def forget(self, topic: Any, batch: slice) -> Tensor:
        method, ids = self.recipe.unlearning().method, self.ids(self.texts[topic.name][batch])
        name = self.recipe.method.name
        if name in ("npo", "dpo", "simnpo"):
            return self.preference(name, ids)
        own = self.hidden(self.updated, ids)
        with torch.no_grad():
            fixed = self.hidden(self.reference, ids)
        vector = method.vector  # type: ignore[attr-defined]
        direction = draw_direction(vector, 32, generator(42, "steering", topic.name))
        c = topic.settings.coefficient
        if isinstance(method, AdaptiveRMU):
            first = self.norms.setdefault(topic.name, fixed.norm(dim=-1).mean().item())
            return F.mse_loss(own, (3 * first * direction).expand_as(own))
        target = c * direction if name == "rmu" else fixed + c * direction
        return F.mse_loss(own, target.expand_as(own))

    def preference(self, name: str, ids: Tensor) -> Tensor:
        """β = 0.1; one mean log-probability over all tokens of the batch."""
        own = -self.updated(ids, labels=ids).loss
        with torch.no_grad():
            fixed = -self.reference(ids, labels=ids).loss
        if name == "simnpo":
            return -2 / 0.1 * F.logsigmoid(-0.1 * own)
        chosen: Tensor | float = 0.0
        if name == "dpo":
            refusal = self.ids([REFUSAL] * len(ids))
            chosen = self.reference(refusal, labels=refusal).loss.detach()
            chosen = chosen - self.updated(refusal, labels=refusal).loss
        return -2 / 0.1 * F.logsigmoid(0.1 * (chosen - (own - fixed)))

    def retain(self, topic: str, batch: slice, step: int) -> Tensor:
        ids = self.ids(self.texts["retain"][batch])
        std = 0.0 if self.recipe.noise is None else float(self.recipe.noise.std or 0.0)
        rows = range(batch.start, batch.stop)
        draws = [
            torch.randn(
                (LENGTH, 32), generator=generator(42, "noise", step, str((f"{topic}/retain", row)))
            )
            for row in rows
        ]
        noise = std * torch.stack(draws)
        with torch.no_grad():
            if isinstance(self.recipe.unlearning().retain, HiddenMSE):
                fixed = self.hidden(self.reference, ids) + noise
            else:
                block = self.reference.get_submodule(f"model.layers.{LAYER}")
                hook = block.register_forward_hook(lambda _m, _i, out: _first(out) + noise)
                fixed = self.reference(ids).logits.log_softmax(-1)
                hook.remove()
        if isinstance(self.recipe.unlearning().retain, HiddenMSE):
            return F.mse_loss(self.hidden(self.updated, ids), fixed)
        own = self.updated(ids).logits.log_softmax(-1)
        return (fixed.exp() * (fixed - own)).sum(-1).mean()


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("method", METHODS)
def test_its_steps_are_those_of_the_published_formulas(
    method: str, texts: dict[str, list[str]], tiny_model_folder: Path
) -> None:
    recipe = recipe_for(method, tiny_model_folder)
    start = load_model(recipe.model, device="cpu", dtype="float32")
    found = unlearn(
        start.model,
        start.tokenizer,
        recipe.read_topics(),
        recipe.unlearning(),
        recipe.training(),
    ).changed
    expected = Published(recipe, texts).run()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        moved = tensor - start.model.get_parameter(name)
        error = (found[name] - tensor).norm() / moved.norm()
        assert error < 2e-3, (name, error)
