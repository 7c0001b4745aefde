"""Ollama's Modelfile: which GGUF file, how a conversation is rendered, and where an answer stops.

Ollama renders conversations with a template of Go, not with the Jinja template of the tokenizer. Most chat templates
write the same text around each message; that text is read from renderings, and the Go template is used only if it
gives the same text as the Jinja template on a longer conversation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFReader
from transformers import PreTrainedTokenizerBase

from dcr_ds.errors import UserError
from dcr_ds.files import read_object, write_atomically
from dcr_ds.models.chat import turn_end_ids
from dcr_ds.models.rendering import render
from dcr_ds.models.tokenizer import load_tokenizer

ADDS_BOS = "tokenizer.ggml.add_bos_token"
SYSTEM, FIRST, ANSWER, SECOND, ANSWER_2, THIRD = (f"Content{name}End" for name in ("S", "U1", "A1", "U2", "A2", "U3"))
CONVERSATION = (("user", FIRST), ("assistant", ANSWER), ("user", SECOND), ("assistant", ANSWER_2), ("user", THIRD))
NO_TEMPLATE = "no TEMPLATE: the chat template writes more than the same text around each message; Ollama chooses one"
NO_SYSTEM = "the chat template has no system message, so Ollama leaves one out"
Render = Callable[[Sequence[tuple[str, str]]], str]


@dataclass(frozen=True)
class Frame:
    """What a chat template writes around the contents of messages.

    Attributes:
        start: before the first user message, without a system message.
        system: before a system message; None: the template rejects or changes one.
        after_system: from a system message to the first user message.
        answered: from a user message to an answer in the conversation.
        prompted: from the last user message to the answer that is to be generated.
        next_turn: from an answer to the next user message.
    """

    start: str
    system: str | None
    after_system: str
    answered: str
    prompted: str
    next_turn: str

    def rendered(self, turns: Sequence[tuple[str, str]]) -> str:
        """A conversation whose last turn is the user's."""
        has_system = turns[0][0] == "system"
        text = f"{self.system}{turns[0][1]}{self.after_system}" if has_system else self.start
        for number, (role, content) in enumerate(turns[has_system:], 1 + has_system):
            after_user = self.prompted if number == len(turns) else self.answered
            text += content + (after_user if role == "user" else self.next_turn)
        return text

    def in_go(self) -> str | None:
        """The Go template of Ollama; None if a text cannot be written in one."""
        texts = (self.start, self.system or "", self.after_system, self.answered, self.prompted, self.next_turn)
        if any(mark in text for text in texts for mark in ("{{", "}}", '"""')):
            return None
        if not all(character.isprintable() or character in "\n\t" for text in texts for character in text):
            return None  # Ollama's parser drops such characters
        start, after_user = self.start, self.prompted
        if self.system is not None:
            with_system = f"{self.system}{_go('.System')}{self.after_system}"
            start = f"{_go('if .System')}{with_system}{_go('else')}{start}{_go('end')}"
        if self.answered != self.prompted:
            is_last = _go("if eq (len (slice $.Messages $i)) 1")
            after_user = f"{is_last}{self.prompted}{_go('else')}{self.answered}{_go('end')}"
        user = _go('if eq .Role "user"') + _go(".Content") + after_user
        answer = _go('else if eq .Role "assistant"') + _go(".Content") + self.next_turn
        return f"{start}{_go('range $i, $_ := .Messages')}{user}{answer}{_go('end')}{_go('end')}"


def write_modelfile(model: Path, file: Path) -> str:
    """Write the Modelfile of a GGUF file next to it.

    Args:
        model: the folder that was converted, with the tokenizer and chat template of the run.

    Returns: a note on what the Modelfile cannot say, or "".
    """
    tokenizer = load_tokenizer(model)
    frame = frame_of(tokenizer, _adds_bos(file))
    template = frame.in_go() if frame else None
    note = NO_TEMPLATE if template is None else NO_SYSTEM if frame and frame.system is None else ""
    lines = [f"FROM ./{file.name}"]
    lines += [f"# {note}"] if note else []
    lines += [f'TEMPLATE """{template}"""'] if template is not None else []
    lines += [f'PARAMETER stop "{token}"' for token in _stops(tokenizer, model)]
    write_atomically(file.with_name("Modelfile"), "\n".join(lines) + "\n")
    return note


def frame_of(tokenizer: PreTrainedTokenizerBase, adds_bos: bool) -> Frame | None:
    """What the chat template of a tokenizer writes around messages; None if it is not the same for all turns.

    Args:
        adds_bos: whether llama.cpp puts a BOS token before a prompt, which is then left out here.
    """
    bos = str(tokenizer.bos_token) if adds_bos and tokenizer.bos_token else ""

    def rendered(turns: Sequence[tuple[str, str]]) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return render(tokenizer, messages, add_generation_prompt=True).removeprefix(bos)

    start, *around = _between(rendered(CONVERSATION), [content for _, content in CONVERSATION])
    if not around:
        return None
    answered, next_turn, _, _, prompted = around
    frame = Frame(start, None, "", answered, prompted, next_turn)
    turns = [("system", SYSTEM), *CONVERSATION]
    try:
        system, *after = _between(rendered(turns[:2]), [SYSTEM, FIRST])
        frame = Frame(start, system, after[0], answered, prompted, next_turn) if after else frame
    except UserError:  # the template rejects a system message
        pass
    checked = [list(CONVERSATION[:length]) for length in (1, 3, 5)]
    checked += [turns[:2], turns] if frame.system is not None else []
    return frame if all(frame.rendered(turns) == rendered(turns) for turns in checked) else None


def _go(action: str) -> str:
    return f"{{{{ {action} }}}}"


def _between(text: str, contents: Sequence[str]) -> list[str]:
    """The texts before, between and after contents that follow each other; the whole text if they do not."""
    parts: list[str] = []
    for content in contents:
        before, found, after = text.partition(content)
        if not found:
            return ["".join(parts) + text]
        parts.append(before)
        text = after
    return [*parts, text]


def _stops(tokenizer: PreTrainedTokenizerBase, model: Path) -> list[str]:
    """The tokens that end an answer, by the chat template and by generation_config.json."""
    ends = read_object(model / "generation_config.json").get("eos_token_id")
    ids = [*turn_end_ids(tokenizer), *(ends if isinstance(ends, list) else [] if ends is None else [ends])]
    return [str(token) for token in tokenizer.convert_ids_to_tokens(list(dict.fromkeys(ids)))]


def _adds_bos(file: Path) -> bool:
    field = GGUFReader(file).fields.get(ADDS_BOS)
    return bool(field and field.contents())
