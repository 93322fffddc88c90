"""The table of `defuse tofu` says what cannot be read."""

from dataclasses import replace

import pytest

from defuse.evaluate.tasks.tofu.ask import Answered
from defuse.evaluate.tasks.tofu.names import NameScore
from defuse.evaluate.tasks.tofu.part import TofuAnswers
from defuse.experiments.tofu.recipe import TofuRecipe
from defuse.experiments.tofu.table import make_rows, markdown, unreadable_sentences
from defuse.statistics import Interval

UNLEARN = {"method": {"name": "rmu"}, "topic": {"coefficient": 1.0, "weight": 1.0}}


def answers(plain: float, control: float, forget: float) -> TofuAnswers:
    """The same of three questions in each set."""
    one = [Answered(f"{i}", "x", plain, -2.0, (-3.0, -4.0), "x", 1.0) for i in range(3)]
    names = ("forget", "retain", "real_authors", "world_facts")
    return TofuAnswers(
        {str(name): one for name in names}, [NameScore(f"{i}", forget, control) for i in range(3)]
    )


def test_a_model_that_any_name_harms_is_said_not_to_be_readable() -> None:
    recipe = TofuRecipe(model="m", output="out", unlearn=UNLEARN)
    found: dict[tuple[str, int | None], TofuAnswers] = {
        ("reference", 1): answers(-1.0, -1.1, -1.2),
        ("none", 1): answers(-1.0, -1.9, -1.8),
    }
    reference, unlearned = make_rows(recipe, found)
    assert reference.any_name is None
    assert unlearned.added is not None
    assert unlearned.added.value == pytest.approx(-0.2)  # looks robust
    assert unlearned.any_name is not None
    assert unlearned.any_name.value == pytest.approx(0.8)
    (said,) = unreadable_sentences([reference, unlearned])
    assert said.startswith("unlearned: none: what unlearning adds to a forgotten name's harm")
    assert said in markdown([reference, unlearned])
    sound = replace(unlearned, any_name=Interval(0.1, -0.1, 0.3))
    assert not list(unreadable_sentences([reference, sound]))
