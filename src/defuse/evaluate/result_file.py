"""The result file of an evaluation; `docs/schemas/evaluation.json` describes it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from defuse.evaluate.answers import Evaluation, MCAnswer
from defuse.evaluate.groups import Groups, group_figures, subjects_of
from defuse.evaluate.perplexity import Perplexity
from defuse.evaluate.summary import contrasts, summarise, vulnerability
from defuse.questions import CONTROL_TOKEN, FORGET_TOKEN, ORIGINAL, Question, Variant, ask, chance
from defuse.utils.provenance import versions

SCHEMA_VERSION = 1
# The names of the variants in the file.
KEYS: Mapping[Variant, str] = {
    ORIGINAL: "clean",
    FORGET_TOKEN: "forget",
    CONTROL_TOKEN: "control",
}


@dataclass(frozen=True)
class Report:
    """All results of one model.

    `precision`, `device`, `fingerprint` (of its weights) and `commit` (of a hub model) describe the
    loaded model. `generations`: the continuation of each prompt.
    """

    evaluation: Evaluation
    precision: str
    device: str
    fingerprint: str
    commit: str | None = None
    perplexity: Perplexity | None = None
    generations: Mapping[str, str] | None = None


def document(
    report: Report,
    reference: Report | None = None,
    sources: Mapping[str, Any] | None = None,
    groups: Groups | None = None,
    *,
    keep_text: bool = True,
) -> dict[str, Any]:
    """`report` as JSON values, with the reference model's results and the vulnerability.

    `sources` says where questions and tokens came from. `groups`: the subjects of each group that
    gets an accuracy of its own, beside each subject's. `keep_text` includes the questions' texts.
    """
    evaluation = report.evaluation
    summary = _summary(evaluation, groups)
    found = {"schema_version": SCHEMA_VERSION, **_findings(report, keep_text=keep_text)}
    found["summary"] = summary
    if reference is not None:
        if CONTROL_TOKEN in evaluation.answers:
            summary["vulnerability"] = asdict(vulnerability(evaluation, reference.evaluation))
        found["base"] = {
            **_findings(reference, keep_text=False),
            "summary": _summary(reference.evaluation, groups),
        }
    return {
        **found,
        "settings": {**_settings(evaluation), "sources": dict(sources or {})},
        "seed": evaluation.settings.seed,
        "prompt_hash": evaluation.prompt_hash,
        "versions": versions(),
        "seconds": round(evaluation.seconds, 3),
    }


def _findings(report: Report, *, keep_text: bool) -> dict[str, Any]:
    findings: dict[str, Any] = {
        "model": report.evaluation.model,
        "model_commit": report.commit,
        "model_fingerprint": report.fingerprint,
        "dtype": report.precision,
        "device": report.device,
        "questions": _questions(report.evaluation, keep_text=keep_text),
    }
    if report.perplexity is not None:
        findings["text"] = asdict(report.perplexity)
    if report.generations is not None:
        findings["generations"] = [
            {"prompt": prompt, "text": text} for prompt, text in report.generations.items()
        ]
    return findings


def _questions(evaluation: Evaluation, *, keep_text: bool) -> list[dict[str, Any]]:
    perturbed = {KEYS[v]: each for v, each in evaluation.answers.items() if v != ORIGINAL}
    questions = []
    for index, answer in enumerate(evaluation.answers[ORIGINAL]):
        variants = {name: _answer(each[index], evaluation) for name, each in perturbed.items()}
        subject = answer.question.subject
        questions.append(
            {
                "id": answer.question.id,
                **({} if subject is None else {"subject": subject}),
                **(_text(answer.question, evaluation) if keep_text else {}),
                **_answer(answer, evaluation),
                **({"variants": variants} if variants else {}),
            }
        )
    return questions


def _text(question: Question, evaluation: Evaluation) -> dict[str, Any]:
    text: dict[str, Any] = {"stem": question.stem, "choices": list(question.choices)}
    is_cloze = evaluation.settings.score == "cloze"
    return {**text, "prompt": ask(question, "cloze")} if is_cloze else text


def _answer(answer: MCAnswer, evaluation: Evaluation) -> dict[str, Any]:
    replaced, fields = answer.question.replaced, {}
    if evaluation.settings.score == "cloze":
        fields["choice_norm"] = answer.choice_norm
    if replaced is not None:
        fields |= {"token": replaced.token, "replaced": asdict(replaced)}
    return {
        "answer": answer.question.answer,
        "choice": answer.choice,
        "logprobs": list(answer.logprobs),
        **fields,
    }


def _summary(evaluation: Evaluation, groups: Groups | None) -> dict[str, Any]:
    variants = {KEYS[name]: asdict(summary) for name, summary in summarise(evaluation).items()}
    paired = {
        f"{KEYS[first]}-{KEYS[second]}": asdict(each)
        for (first, second), each in contrasts(evaluation).items()
    }
    return {
        **variants.pop(KEYS[ORIGINAL]),
        "chance": chance([answer.question for answer in evaluation.answers[ORIGINAL]]),
        **variants,
        **({"paired": paired} if paired else {}),
        **(_grouped(evaluation, groups) if groups else {}),
    }


def _grouped(evaluation: Evaluation, groups: Groups) -> dict[str, Any]:
    def figures(groups: Groups) -> dict[str, Any]:
        found = group_figures(evaluation, groups)
        return {
            name: {KEYS[variant]: asdict(figure) for variant, figure in variants.items()}
            for name, variants in found.items()
        }

    return {"groups": figures(groups), "subjects": figures(subjects_of(evaluation))}


def _settings(evaluation: Evaluation) -> dict[str, Any]:
    settings, perturbation = evaluation.settings, evaluation.perturbation
    return {
        "score": settings.score,
        "subject": settings.subject,
        "few_shot": _ids(settings.few_shot),
        "perturbation": None if perturbation is None else asdict(perturbation),
    }


def _ids(questions: Sequence[Question]) -> list[str]:
    return [question.id for question in questions]
