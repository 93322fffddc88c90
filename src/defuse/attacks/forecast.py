"""How long attacks take: tokens counted beforehand, and the speed of this machine.

A forward pass of a token costs two operations for each parameter of the blocks. What attacks
compute beside the model is left out, and searches may end earlier than counted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel

from defuse.attacks import gcg, lens, orthogonalise, prune, quantise, relearn, rephrase, triggers
from defuse.attacks.data import FORGET, RETAIN
from defuse.attacks.gcg.tasks import prepare
from defuse.attacks.registry import Target
from defuse.attacks.rephrase.ways import plan
from defuse.attacks.run import Plan, has_findings, make_outline
from defuse.data.token_ids import tokenise
from defuse.evaluate.loglikelihood import max_length
from defuse.models.decoder import Decoder
from defuse.models.load import resolve_device
from defuse.questions import ask
from defuse.utils.progress import duration
from defuse.utils.speed import matrix_speed

TRAINED = 3  # forward passes' worth of a forward and a backward pass
# The share of a large matrix product's speed that forward passes reach (docs/performance.md).
EFFICIENCY = 0.5
LONGEST = 30 * 60  # seconds that GCG may take among the attacks that run by default


def forecast(made: Plan) -> dict[str, float]:
    """The seconds that each attack of a plan takes on this machine, about and at most."""
    outline = make_outline(made.request)
    decoder, device = Decoder(outline.model), resolve_device(made.request.device)
    block = sum(p.numel() for p in decoder.blocks[0].parameters())
    width = decoder.hidden_size
    speed = matrix_speed(device, outline.model.dtype, width, 4 * width)
    token = 2 * decoder.num_layers * block / (EFFICIENCY * speed)
    configs = made.request.configs
    return {name: token * forward_tokens(name, outline, each) for name, each in configs.items()}


def without_slow(made: Plan, seconds: Mapping[str, float]) -> Plan:
    """The plan without GCG where that would take too long; work that has begun is continued.

    It is for attacks that nobody named. The plan says why GCG is left out.
    """
    name, request = gcg.NAME, made.request
    taken = seconds.get(name, 0.0)
    if taken <= LONGEST or len(request.configs) == 1 or has_findings(request, name):
        return made
    configs = {attack: each for attack, each in request.configs.items() if attack != name}
    reason = f"{duration(taken)} on this machine; --kind {name} runs it"
    left_out = {**made.left_out, name: reason}
    return replace(made, request=replace(request, configs=configs), left_out=left_out)


def forward_tokens(attack: str, target: Target, config: object) -> float:
    """Tokens that an attack pushes through the model, about and at most; a backward pass is two."""
    return WORK[attack](target, config)


def _asked(target: Target) -> dict[str, float]:
    """The tokens of asking each set once."""
    settings = target.data.settings
    return {
        name: sum(
            len(ids) + 1
            for ids in tokenise([ask(q, settings.score) for q in questions], target.tokenizer)
        )
        for name, questions in target.data.sets.items()
    }


def _all(target: Target) -> float:
    return sum(_asked(target).values())


def _models(*others: PreTrainedModel | None) -> int:
    return 1 + sum(other is not None for other in others)


def _text_tokens(target: Target, name: str, count: int, length: int) -> float:
    """The tokens of `count` texts of a set; its questions take their place if it has none."""
    texts = target.data.texts_of(name)
    lengths = [len(ids) for ids in tokenise(list(texts), target.tokenizer)]
    return min(count, len(texts)) * fmean(min(length, each) for each in lengths)


def _quantise(target: Target, config: quantise.Quantisation) -> float:
    return _all(target) * (1 + len(config.bits))


def _lens(target: Target, config: lens.Lens) -> float:  # noqa: ARG001 (all have one signature)
    return _all(target) * (1 + _models(target.reference))


def _orthogonalise(target: Target, config: orthogonalise.Orthogonalisation) -> float:
    sets = (FORGET,) if config.source == FORGET else (FORGET, RETAIN)
    read = sum(_text_tokens(target, name, config.texts, config.length) for name in sets)
    each = Decoder(target.model).num_layers if "each" in config.ways else 0
    ablations = each + 2 * len(set(config.ways) - {"each"})  # random directions are controls
    return 2 * read + _all(target) * (1 + ablations)


def _prune(target: Target, config: prune.Pruning) -> float:
    sets = target.data.sets
    read = sum(_text_tokens(target, name, config.texts, config.length) for name in sets)
    return TRAINED * read + _all(target) * (1 + 2 * len(config.shares))


def _rephrase(target: Target, config: rephrase.Rephrasing) -> float:
    data, asked = target.data, _asked(target)
    ways = plan(data, config, target.tokenizer, max_length(target.model, target.tokenizer))
    total = _all(target)
    for way in ways:
        for part in way.parts:
            mean = asked[part.questions] / len(data.sets[part.questions])
            total += sum(map(len, part.prompts)) * mean * (1 + way.examples)
    return total * _models(target.reference)


def _triggers(target: Target, config: triggers.TriggerSearch) -> float:
    asked, count = _asked(target), len(target.data.retain)
    one = asked[RETAIN] / count
    half = min(config.questions or count, count) / 2
    words = 2 * config.top + 2 * config.mined  # tried on the two halves
    tried = half * one * (TRAINED * config.placeholders + words)
    own = _all(target) + tried + config.shown * asked[FORGET]
    return own + (asked[RETAIN] + tried) * (_models(target.reference) - 1)


def _relearn(target: Target, config: relearn.Relearning) -> float:
    models = _models(target.retrained)
    total = models * _all(target)
    for source in set(config.source):
        texts = target.data.given_texts(source)
        for count in {min(each, len(texts)) for each in config.texts if each}:
            taken = config.steps * config.batch_size
            mean = _text_tokens(target, source, count, config.length) / max(1, count)
            checkpoints = len(config.asked_at) * _all(target)
            total += models * (TRAINED * taken * mean + checkpoints)
    return total


def _gcg(target: Target, config: gcg.GCG) -> float:
    searches = prepare(target.model, target.tokenizer, target.data, config)
    tasks = [*searches.universal, *(each for own in searches.each_question for each in own)]
    total = _all(target) * (2 + len(searches.universal))
    for task in tasks:
        for problem in task.problems:
            rest = len(problem.after) + len(problem.target.read)
            # A candidate shares on average half of the suffix with the one that it comes from.
            candidates = config.search_width * (config.length / 2 + rest)
            whole = len(problem.before) + config.length + rest
            total += config.steps * (candidates + (1 + TRAINED) * whole)
    return total


WORK: Mapping[str, Callable[[Target, Any], float]] = {
    quantise.NAME: _quantise,
    lens.NAME: _lens,
    orthogonalise.NAME: _orthogonalise,
    prune.NAME: _prune,
    rephrase.NAME: _rephrase,
    triggers.NAME: _triggers,
    relearn.NAME: _relearn,
    gcg.NAME: _gcg,
}


def lines(made: Plan, seconds: Mapping[str, float]) -> Sequence[str]:
    """The attacks of a plan, each with its time and settings, and the time of all."""
    own = [
        f"{name}: {config} ({duration(seconds[name])})"
        for name, config in made.request.configs.items()
    ]
    total = sum(seconds[name] for name in made.request.configs)
    return [*own, f"time: {duration(total)} at most on this machine"]
