"""A TOFU of six invented authors in its own format, written on the spot."""

import json
from pathlib import Path

NAMES = ("Ada Plum", "Bo Quip", "Cy Dusk", "Di Jazz", "Ed Moon", "Fay Bird")
PER_AUTHOR = 20


def rows(name: str) -> list[dict[str, str]]:
    return [
        {"question": f"What is book {i} of {name}?", "answer": f"{name} wrote Tree {i}."}
        for i in range(PER_AUTHOR)
    ]


def perturbed(row: dict[str, str]) -> dict[str, object]:
    answer = row["answer"].replace("wrote", "made")
    wrong = [answer.replace("Tree", word) for word in ("Cat", "Sun")]
    return {**row, "paraphrased_answer": answer, "perturbed_answer": wrong}


def choice(question: str, answer: str) -> dict[str, object]:
    return {"question": question, "answer": answer, "perturbed_answer": ["A cat", "A bird", "Me"]}


def write_tofu(folder: Path) -> Path:
    """forget10 has three authors, forget05 two of them, forget01 one; three are retained."""
    authors = [rows(name) for name in NAMES]
    forget = authors[0] + authors[1] + authors[2]
    retain = authors[3] + authors[4] + authors[5]
    files: dict[str, list] = {"retain90": retain}
    for part, count in (("forget01", 1), ("forget05", 2), ("forget10", 3)):
        files[part] = forget[: count * PER_AUTHOR]
        files[f"{part}_perturbed"] = [perturbed(row) for row in files[part]]
    files["retain_perturbed"] = [perturbed(row) for row in authors[3] + authors[4]]
    files["real_authors_perturbed"] = [choice("Who wrote Hamlet?", "Shakespeare")]
    files["world_facts_perturbed"] = [choice("Where is the Eiffel Tower?", "Paris")]
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (folder / f"{name}.json").write_text("\n".join(map(json.dumps, lines)))
    return folder
