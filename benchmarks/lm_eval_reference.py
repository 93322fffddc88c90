"""lm-evaluation-harness's own answers to the same questions: a reference for tests, and a rival.

Its task files, its prompts, its encoding, its forward passes; only the rows come from us.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import lm_eval.tasks
import torch
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.evaluate import Settings
from defuse.questions import Question

TASKS = Path(lm_eval.tasks.__file__).parent
SPLITS = ("train", "validation", "test")
TEMPLATE = TASKS / "mmlu/default/_default_template_yaml"
CLOZE = {"doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_choice": "{{choices}}"}


@dataclass(frozen=True)
class Reference:
    """Per question: the prompt, each choice's log-probability, and the chosen answers."""

    prompts: list[str]
    logprobs: list[tuple[float, ...]]
    choices: list[int]
    choices_norm: list[int]
    seconds: float
    processor_seconds: float


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    settings: Settings,
    *,
    batch_size: int = 8,
) -> Reference:
    """Ask lm-eval; the times count `HFLM.loglikelihood` only, with its logits cache on."""
    return run_task(build_task(questions, settings), model, tokenizer, batch_size=batch_size)


def run_task(
    task: ConfigurableTask,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 8,
) -> Reference:
    """Ask lm-eval the documents of any multiple-choice task."""
    task.build_all_requests(rank=0, world_size=1)
    build: Any = HFLM  # its decorator hides its parameters
    harness = build(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        device=str(model.device),
        # Its own choice would round log-probabilities to the model's half precision, to 1/16 of 16.
        softmax_dtype=torch.promote_types(model.dtype, torch.float32),
    )
    start, processor_start = time.perf_counter(), time.process_time()
    answers = harness.loglikelihood(task.instances, disable_tqdm=True)
    seconds = time.perf_counter() - start
    processor_seconds = time.process_time() - processor_start
    scored = zip(task.instances, (value for value, _ in answers), strict=True)
    by_document = groupby(scored, key=lambda each: each[0].doc_id)
    documents = [list(each) for _, each in by_document]
    logprobs = [tuple(value for _, value in each) for each in documents]
    metrics = [
        _choices(task, dict(each[0][0].doc), v) for each, v in zip(documents, logprobs, strict=True)
    ]
    prompts = [each[0][0].args[0] for each in documents]
    choices, choices_norm = map(list, zip(*metrics, strict=True))
    return Reference(prompts, logprobs, choices, choices_norm, seconds, processor_seconds)


def build_task(questions: Sequence[Question], settings: Settings) -> ConfigurableTask:
    """lm-eval's `mmlu` task of the subject over these questions; its template where it has none."""
    name = (settings.subject or "").replace(" ", "_")
    file = TASKS / "mmlu/default" / f"mmlu_{name}.yaml"
    config: dict[str, Any] = dict(load_yaml(file if name else TEMPLATE, resolve_func=True))
    config.pop("dataset_name", None)
    rows = {"test": _dataset(questions), "dev": _dataset(settings.few_shot or questions[:1])}
    config |= {"task": "reference", "custom_dataset": lambda **_: rows}
    config |= {"num_fewshot": len(settings.few_shot)}
    config |= CLOZE if settings.score == "cloze" else {}
    config["metric_list"] = [_metric(name) for name in ("acc", "acc_norm")]
    return ConfigurableTask(config=config)


def shipped_task(file: str, rows: Dataset) -> ConfigurableTask:
    """A task of lm-eval's own, such as "arc/arc_easy.yaml", over these rows in every split.

    Its target becomes the field `answer`, which `run_task` sets.
    """
    config: dict[str, Any] = dict(load_yaml(TASKS / file, resolve_func=True))
    config.pop("dataset_name", None)
    config |= {
        "task": "reference",
        "custom_dataset": lambda **_: dict.fromkeys(SPLITS, rows),
        "num_fewshot": 0,
    }
    config |= {"doc_to_target": "answer"}
    config["metric_list"] = [_metric(name) for name in ("acc", "acc_norm")]
    return ConfigurableTask(config=config)


def _choices(
    task: ConfigurableTask, document: Mapping[str, Any], logprobs: Sequence[float]
) -> tuple[int, int]:
    """lm-eval tells only whether a choice is right: make each the answer in turn."""
    results = [(value, False) for value in logprobs]
    answers = range(len(logprobs))
    judged = [task.process_results({**document, "answer": i}, results) for i in answers]
    rights = [[each[metric] for each in judged] for metric in ("acc", "acc_norm")]
    acc, acc_norm = (right.index(1.0) for right in rights)
    return acc, acc_norm


def _dataset(questions: Sequence[Question]) -> Dataset:
    rows = [{"question": q.stem, "choices": list(q.choices), "answer": q.answer} for q in questions]
    return Dataset.from_list(rows)


def _metric(name: str) -> Mapping[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": True}
