"""The knob: a constant added to the logits of the first tokens of refusal openings, at the first answer token.

It moves a model along its own curve of compliance against refusal and needs no training: the front that a method has
to lie above, since almost any change of the tendency to refuse gives the same trade-off (arXiv 2602.02132).

With p(s) the probability of a first token s in the set S, the constant c makes it p(s)·eᶜ / Z and that of every other
token p(t) / Z, where Z = 1 + p(S)(eᶜ − 1). All openings begin in S, but so do other answers: dcr_ds/discernment/knob.py
has the formula of the refusal log-odds, which move by exactly c where there are none.
"""

from transformers import PreTrainedTokenizerBase

from dcr_ds.data.records import ConversationSet
from dcr_ds.diagnose.openings import Openings, find_openings
from dcr_ds.errors import UserError
from dcr_ds.judges.strings import published_phrases
from dcr_ds.models.chat import PROMPT_END_TOKENS, encode_prompt
from dcr_ds.reasoning import open_block


def knob_settings(openings: Openings, strength: float) -> dict:
    """The settings of the hook: the constant and the tokens that it is added to, with their texts."""
    tokens = sorted(openings.first_tokens, key=lambda first: first.token)
    return {
        "strength": strength,
        "tokens": [first.token for first in tokens],
        "texts": [first.text for first in tokens],
    }


def knob_openings(tokenizer: PreTrainedTokenizerBase, refusals: ConversationSet, ordinary: ConversationSet) -> Openings:
    """The refusal openings, as evaluation finds them.

    Raises:
        UserError: there are none, or the chat template writes something before each answer, or opens a block of
            reasoning in the prompt, so that generation does not begin with the answer.
    """
    openings = find_openings(
        tokenizer, [row.response for row in refusals.rows], [row.response for row in ordinary.rows], published_phrases()
    )
    before = tokenizer.decode(list(openings.lead))
    before = before or open_block(str(tokenizer.decode(encode_prompt(tokenizer, "a")[-PROMPT_END_TOKENS:])))
    if before:
        raise UserError(
            f"knob: the chat template writes {before!r} before each answer, so that generation does not begin with the "
            "answer; set the variable of the template that puts it into the prompt, such as --chat-template-kwargs "
            "'{\"enable_thinking\": false}'"
        )
    return openings
