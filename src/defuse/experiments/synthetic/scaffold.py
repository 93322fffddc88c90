"""What teaches a tiny model to choose: it is shown the steps of the way, then left alone.

A letter can only be chosen by a model that recalls the fact, finds it among the choices, and
reads the letter beside it. Each step is of no use without the others, so from the answers alone
none is learnt (dev/LOG.md has what was tried). Here each has a loss of its own. `teach` fades
them out at half time: what is shipped was trained on nothing but next tokens at its end.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from defuse.experiments.synthetic.lessons import Quiz

# A choice knows its letter after two layers, the question its answer after three; a head of the
# fifth looks from the question's end to the answer.
LETTER_LAYER, VALUE_LAYER, LOOKING_LAYER, LOOKING_HEAD = 2, 3, 5, 0


def scaffold_loss(model: PreTrainedModel, output: BaseModelOutputWithPast, quiz: Quiz) -> Tensor:
    """Sum of the three steps' losses; `output` with its hidden states and attentions.

    Hidden states are read as the last layer's are: through the final norm and the head.
    """
    states, attentions = output.hidden_states, output.attentions
    assert states is not None  # noqa: S101 (asked for)
    assert attentions is not None  # noqa: S101
    read = nn.Sequential(model.get_decoder().norm, model.get_output_embeddings())  # type: ignore[arg-type]
    rows, right = quiz.rows, quiz.right
    letters = read(states[LETTER_LAYER][rows[:, None], quiz.choices])
    values = read(states[VALUE_LAYER][rows, quiz.ends])
    looking = attentions[LOOKING_LAYER - 1][rows, LOOKING_HEAD, quiz.ends, right]
    return (
        F.cross_entropy(letters.flatten(0, 1), quiz.letters.flatten())
        + F.cross_entropy(values, quiz.input_ids[rows, right])
        - torch.log(looking + 1e-6).mean()
    )
