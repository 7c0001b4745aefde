"""Attacks: published ways to ask for harmful things so that a model refuses less, applied to any benchmark.

attacks.yaml declares them. An attacked benchmark is a benchmark of its own, named `<benchmark>+<attack>`: the same
prompts with the same ids, asked in another way.
"""

from functools import cache
from pathlib import Path

import yaml
from pydantic import Field

from dcr_ds.data.records import Prompt
from dcr_ds.recipe import Section

FILE = Path(__file__).parent / "attacks.yaml"
PROMPT = "{prompt}"


class Attack(Section):
    """One attack of attacks.yaml, and its name."""

    name: str
    title: str
    template: str = Field(PROMPT, pattern=r"\{prompt\}", description="what the user says")
    opening: str = Field("", description="first words of the answer, which the model continues")
    judged: str = Field(PROMPT, pattern=r"\{prompt\}", description="what judges read as the request")
    source: str

    def sent(self, prompt: Prompt) -> str:
        """What the user says in place of the prompt."""
        return self.template.replace(PROMPT, prompt.prompt)

    def request(self, prompt: Prompt) -> str:
        """What judges read: the plain prompt, as people would judge its answer."""
        return self.judged.replace(PROMPT, prompt.prompt)


def conversation(prompt: Prompt, attack: Attack | None) -> tuple[dict[str, str], ...]:
    """The messages that a model answers: the last one under the attack, earlier turns as they are."""
    if attack is None:
        return prompt.messages
    return (*prompt.context, {"role": "user", "content": attack.sent(prompt)})


@cache
def attacks() -> dict[str, Attack]:
    """All attacks by name."""
    declared = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {name: Attack(name=name, **fields) for name, fields in declared.items()}
