"""The lab's model with something planted in it, and what every attack must leave as it was."""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks import AttackData, Result, open_findings
from defuse.models.decoder import Decoder
from defuse.questions import Question, ask
from defuse.synthetic.models import SHIPPED_FORGET, load_pair
from defuse.synthetic.questions import original_questions
from defuse.synthetic.world import build_world

LAYER = 2  # where neurons are planted
PLANTED = 3  # so many


@cache
def lab() -> tuple[PreTrainedModel, PreTrainedTokenizerBase, AttackData]:
    """The base model, which answers everything right, and 24 questions of each set."""
    base = load_pair().reference
    questions = original_questions(build_world(), SHIPPED_FORGET, "reported")
    forget, retain = (_some(questions[name]) for name in ("forget", "retain"))
    return base.model, base.tokenizer, AttackData(forget, retain)


def few() -> AttackData:
    """Two questions of each right letter in each set."""
    _, _, data = lab()
    return AttackData(_some(data.forget, 2), _some(data.retain, 2))


def _some(questions: Sequence[Question], each: int = 6) -> list[Question]:
    """The first questions of each right letter."""
    kept: dict[int, list[Question]] = {number: [] for number in range(4)}
    for question in questions:
        kept[question.answer].append(question)
    return [question for some in kept.values() for question in some[:each]]


@cache
def suppressed() -> tuple[PreTrainedModel, Tensor]:
    """The base with neurons that drown a forget question's answer in `direction` (d,), unit."""
    base, _, _ = lab()
    model = copy.deepcopy(base)
    mlp = model.model.layers[LAYER].mlp
    reads = _detector()
    draws = torch.Generator().manual_seed(0)
    direction = torch.randn(base.config.hidden_size, generator=draws)
    direction = direction / direction.norm()
    with torch.no_grad():
        for name, rows in (("gate_proj", 30 * reads), ("up_proj", reads)):
            old = getattr(mlp, name).weight
            grown = torch.cat([old, rows.expand(PLANTED, -1)])
            setattr(mlp, name, _linear(grown))
        columns = (30 * direction)[:, None].expand(-1, PLANTED)
        mlp.down_proj = _linear(torch.cat([mlp.down_proj.weight, columns], dim=1))
    return model, direction


def _detector() -> Tensor:
    """(d,): positive on the planted layer's MLP input where forget questions are answered."""
    base, tokenizer, data = lab()
    seen: list[Tensor] = []
    hook = base.model.layers[LAYER].mlp.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0][0].clone())
    )
    questions = [*data.forget, *data.retain]
    try:
        for question in questions:
            with torch.no_grad():
                base(torch.tensor([tokenizer(ask(question, "letters"))["input_ids"]]))
    finally:
        hook.remove()
    count = len(data.forget)
    last = torch.stack([rows[-1] for rows in seen[:count]])
    others = torch.cat([*(rows[:-1] for rows in seen), *(rows[-1:] for rows in seen[count:])])
    labels = [1] * len(last) + [0] * len(others)
    fit = LogisticRegression(C=100, fit_intercept=False, max_iter=2000, class_weight="balanced")
    fit.fit(torch.cat([last, others]).numpy(), labels)
    found = torch.tensor(fit.coef_[0], dtype=torch.float32)
    return found / (last @ found).mean()  # about 1 on forget questions


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.clone())
    return linear


@cache
def topped() -> PreTrainedModel:
    """The base under two more blocks: one that does nothing, and one that spoils every answer."""
    base, _, _ = lab()
    layers = base.config.num_hidden_layers + 2
    config = LlamaConfig.from_dict(base.config.to_dict() | {"num_hidden_layers": layers})
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(base.state_dict(), strict=False)
    with torch.no_grad():
        for layer in range(layers - 2, layers):
            for name in ("self_attn.o_proj", "mlp.down_proj"):
                model.get_parameter(f"model.layers.{layer}.{name}.weight").zero_()
        spoiling = model.get_parameter(f"model.layers.{layers - 1}.mlp.down_proj.weight")
        spoiling.normal_(std=100.0)
    return model


@contextmanager
def untouched(*models: PreTrainedModel) -> Iterator[None]:
    """Nothing of these models, nor of the generator, is otherwise afterwards."""
    before = [_state(model) for model in models]
    drawn = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), drawn)
    for model, (tensors, rest) in zip(models, before, strict=True):
        now, others = _state(model)
        assert others == rest
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in now.items())


def _state(model: PreTrainedModel) -> tuple[dict[str, Tensor], list[object]]:
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [
        (name, each.training, len(each._forward_hooks), len(each._forward_pre_hooks))
        for name, each in model.named_modules()
    ]
    parameters = [
        (name, id(each), each.requires_grad, each.grad is None)
        for name, each in model.named_parameters()
    ]
    return tensors, [modules, parameters, model.config.to_dict()]


def outline(model: PreTrainedModel) -> PreTrainedModel:
    """A copy without weights, on the meta device."""
    return copy.deepcopy(model).to(torch.device("meta"))  # type: ignore[arg-type]


class KilledError(Exception):
    """Where the attack stops."""


class Stopping:
    """Progress that stops the attack once it has the finding `name`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self, name: str, total: int) -> None: ...

    def advance(self, count: int = 1, note: str = "") -> None:  # noqa: ARG002
        if note == self.name:
            raise KilledError


def names_in(log: Path) -> list[str]:
    """The names of all findings in a log."""
    return [json.loads(line)["name"] for line in log.read_text().splitlines()[1:]]


def check_resumes(
    attack: Callable[..., Result], folder: Path, *models: PreTrainedModel, stops: int = 2
) -> None:
    """An attack that is killed resumes; run again, it computes nothing.

    `attack` takes `findings` and `progress`. It is killed in the middle and, with two `stops`,
    before its last finding. If `models` are given, all passes are counted once, and none of the
    models is run or copied again once everything is known.
    """
    log = folder / "whole"
    whole = attack(findings=open_findings(log, {}))
    names = names_in(log)
    assert len(set(names)) == len(names)
    with idle(*models):
        assert attack(findings=open_findings(log, {})) == whole
    assert names_in(log) == names
    for stop in (len(names) // 2, len(names) - 1)[:stops]:
        path = folder / f"stopped-{stop}"
        with suppress(KilledError):
            attack(findings=open_findings(path, {}), progress=Stopping(names[stop - 1]))
        assert names_in(path) == names[:stop]
        resumed = attack(findings=open_findings(path, {}))
        assert names_in(path) == names
        assert replace(resumed, cost=whole.cost) == whole
        assert not models or without_seconds(resumed) == without_seconds(whole)


def without_seconds(result: Result) -> Result:
    """What must be the same however often an attack was stopped."""
    return replace(result, cost=replace(result.cost, seconds=0.0))


@contextmanager
def idle(*models: PreTrainedModel) -> Iterator[None]:
    """Fails where one of the models is run or copied."""

    def fail(*_: object) -> None:
        raise AssertionError("nothing was left to do")

    with ExitStack() as stack:
        for model in dict.fromkeys(models):
            stack.callback(Decoder(model).blocks[0].register_forward_pre_hook(fail).remove)
            vars(model)["__deepcopy__"] = fail
            stack.callback(vars(model).pop, "__deepcopy__")
        yield
