"""WordNet's nouns: a reader of its data files `data.noun` and `index.noun`."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Synset:
    """A noun's meaning: its names, the offsets of the synsets above it, and its gloss."""

    offset: str
    names: tuple[str, ...]
    parents: tuple[str, ...]
    gloss: str

    @property
    def definition(self) -> str:
        """The gloss up to its first semicolon, without a leading "(medicine)"."""
        return re.sub(r"^\([^)]*\)\s*", "", self.gloss.partition(";")[0]).strip()

    @property
    def sentence(self) -> str:
        """The whole gloss without its quoted examples, as a sentence about the first name."""
        parts = [part.strip() for part in self.gloss.split(";") if '"' not in part]
        text = "; ".join(re.sub(r"^\([^)]*\)\s*", "", part) for part in parts if part)
        return f"{self.names[0][0].upper()}{self.names[0][1:]} is {text}." if text else ""


class WordNet:
    """The nouns of WordNet: synsets by offset, and the offsets of a lemma's senses in order."""

    def __init__(self, folder: Path) -> None:
        lines = _lines(folder / "data.noun")
        self.synsets = {synset.offset: synset for synset in map(_synset, lines)}
        fields = (line.split() for line in _lines(folder / "index.noun"))
        self.senses = {each[0]: each[-int(each[2]) :] for each in fields}
        others = (_lines(folder / f"index.{kind}") for kind in ("verb", "adj"))
        self.other_words = {line.partition(" ")[0] for lines in others for line in lines}
        glosses = (set(WORD.findall(each.gloss.lower())) for each in self.synsets.values())
        self.mentions = Counter(chain.from_iterable(glosses))
        self._children: dict[str, list[str]] = defaultdict(list)
        for synset in self.synsets.values():
            for parent in synset.parents:
                self._children[parent].append(synset.offset)

    def below(self, root: str) -> list[Synset]:
        """Every synset under `root`, each once, in the order of their offsets."""
        found: set[str] = set()
        waiting = [root]
        while waiting:
            fresh = set(self._children[waiting.pop()]) - found
            found |= fresh
            waiting += fresh
        return [self.synsets[offset] for offset in sorted(found)]

    def domain(self, roots: Iterable[tuple[str, int]]) -> list[Synset]:
        """Every synset under any of the senses `roots`."""
        offsets = [self.senses[lemma][number - 1] for lemma, number in roots]
        found = {synset.offset: synset for root in offsets for synset in self.below(root)}
        return [found[offset] for offset in sorted(found)]

    def related(self, one: Synset, other: Synset) -> bool:
        """Whether two synsets share a parent, or one is above the other."""
        siblings = bool(set(one.parents) & set(other.parents))
        return siblings or one in self.above(other) or other in self.above(one)

    def above(self, synset: Synset) -> list[Synset]:
        """Every synset above this one."""
        direct = [self.synsets[parent] for parent in synset.parents]
        return direct + [each for parent in direct for each in self.above(parent)]

    def is_unmistakable(self, synset: Synset) -> bool:
        """Whether the synset's first name is no verb or adjective, and first of all means this."""
        name = synset.names[0]
        return name not in self.other_words and self.senses.get(name, [""])[0] == synset.offset


def _lines(path: Path) -> list[str]:
    """The lines of a data file; those of its licence begin with a space."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith(" ")]


def _synset(line: str) -> Synset:
    """Parse a line of `data.noun`, as described in WordNet's manual page wndb(5WN)."""
    data, _, gloss = line.partition(" | ")
    fields = data.split()
    words = int(fields[3], 16)
    names = tuple(name.replace("_", " ") for name in fields[4 : 4 + 2 * words : 2])
    pointers = fields[5 + 2 * words :]
    parents = tuple(
        offset
        for symbol, offset in zip(pointers[::4], pointers[1::4], strict=False)
        if symbol in ("@", "@i")
    )
    return Synset(fields[0], names, parents, gloss.strip())
