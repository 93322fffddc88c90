"""The result file of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from defuse.evaluate.answers import Evaluation, MCAnswer
from defuse.evaluate.groups import Groups, group_figures, subjects_of
from defuse.evaluate.perplexity import Perplexity
from defuse.evaluate.summary import contrasts, summarise, vulnerability
from defuse.questions import CONTROL_TOKEN, FORGET_TOKEN, ORIGINAL, Variant
from defuse.utils.provenance import versions

# How the file names the variants.
KEYS: Mapping[Variant, str] = {
    ORIGINAL: "clean",
    FORGET_TOKEN: "forget",
    CONTROL_TOKEN: "control",
}


@dataclass(frozen=True)
class Report:
    """All that was found about one model.

    `precision`, `device`, `fingerprint` (of its weights) and `commit` (of a hub model): as it was
    loaded. `generations` maps prompts to what it wrote.
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
    base: Report | None = None,
    sources: Mapping[str, Any] | None = None,
    groups: Groups | None = None,
) -> dict[str, Any]:
    """`report` as JSON values; `base`'s findings and the vulnerability go with it.

    `sources`: where questions and tokens came from, kept beside the settings. `groups`: subjects
    whose accuracy is given together, beside each subject's.
    """
    evaluation = report.evaluation
    summary = _summary(evaluation, groups)
    if base is not None and CONTROL_TOKEN in evaluation.answers:
        summary["vulnerability"] = asdict(vulnerability(evaluation, base.evaluation))
    return {
        **_findings(report),
        "summary": summary,
        **(
            {}
            if base is None
            else {"base": {**_findings(base), "summary": _summary(base.evaluation, groups)}}
        ),
        "settings": {**_settings(evaluation), "sources": dict(sources or {})},
        "seed": evaluation.settings.seed,
        "prompt_hash": evaluation.prompt_hash,
        "versions": versions(),
        "seconds": round(evaluation.seconds, 3),
    }


def _findings(report: Report) -> dict[str, Any]:
    findings: dict[str, Any] = {
        "model": report.evaluation.model,
        "model_commit": report.commit,
        "model_fingerprint": report.fingerprint,
        "dtype": report.precision,
        "device": report.device,
        "questions": _questions(report.evaluation),
    }
    if report.perplexity is not None:
        findings["text"] = asdict(report.perplexity)
    if report.generations is not None:
        findings["generations"] = [
            {"prompt": prompt, "text": text} for prompt, text in report.generations.items()
        ]
    return findings


def _questions(evaluation: Evaluation) -> list[dict[str, Any]]:
    perturbed = {KEYS[v]: each for v, each in evaluation.answers.items() if v != ORIGINAL}
    questions = []
    for index, answer in enumerate(evaluation.answers[ORIGINAL]):
        variants = {name: _answer(each[index], evaluation) for name, each in perturbed.items()}
        subject = answer.question.subject
        questions.append(
            {
                "id": answer.question.id,
                **({} if subject is None else {"subject": subject}),
                **_answer(answer, evaluation),
                **({"variants": variants} if variants else {}),
            }
        )
    return questions


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


def _ids(questions: Sequence[Any]) -> list[str]:
    return [question.id for question in questions]
