"""Answers in the files of other programs: which form a table has, and its prompts and answers.

Read are the samples of lm-eval, the logs of inspect, the artifacts of JailbreakBench, the results of HarmBench, the
outputs of AlpacaEval, and conversations. A form is recognised by its content, not by the name of the file.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from dcr_ds.data.columns import cell_text, optional_text, required_text
from dcr_ds.data.formats import MAX_BYTES, MAX_RATIO, SMALL_BYTES, parse_table
from dcr_ds.data.messages import as_list, checked_messages, context_of
from dcr_ds.data.rows import LeftOut
from dcr_ds.data.tables import Origin, Parsed, Row, Table, kind_of, table_of
from dcr_ds.transcript import transcript

COPIED_OF_INSPECT = ("epoch", "target", "scores", "metadata")
ANSWER_OF_LM_EVAL = ("arguments", "resps", "filtered_resps")  # not copied
CONVERT = "convert it with `inspect log convert --to json`"


class Cells(NamedTuple):
    """The columns of one answer by our names, and the columns of its row that are copied to the verdict."""

    id: str | None
    prompt: str
    completion: str
    finish: str | None
    others: dict[str, Any]


class Form(NamedTuple):
    """A form of another program: its name, the columns that it is recognised by, and how a row is read."""

    name: str
    columns: tuple[str, ...]
    reader: Callable[[], Callable[[Row], list[Cells] | LeftOut]]  # makes the reader of the rows of one file


def parse_answers(content: bytes, filename: str, origin: Origin) -> Table:
    """Parse a file of answers: a table, or a file of one of the forms."""
    if filename.lower().endswith(".eval"):
        return _parse_eval(content, origin)
    return parse_table(content, filename, origin, _rows_of_object)


def form_of(table: Table) -> Form | None:
    """The form of a table that has no columns `prompt` and `completion`; None if none is recognised."""
    return next((form for form in FORMS if all(column in table.columns for column in form.columns)), None)


def _rows_of_object(value: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of a log of inspect, an artifact of JailbreakBench or results of HarmBench; None for other objects."""
    if isinstance(value.get("eval"), dict) and "version" in value:
        return value.get("samples") or []
    if isinstance(value.get("jailbreaks"), list):
        return value["jailbreaks"]
    cases = [(behavior, case) for behavior, items in value.items() if isinstance(items, list) for case in items]
    if cases and all(isinstance(case, dict) and {"test_case", "generation"} <= case.keys() for _, case in cases):
        numbers: dict[str, int] = {}
        rows = []
        for behavior, case in cases:
            numbers[behavior] = numbers.get(behavior, -1) + 1
            rows.append({"id": f"{behavior}-{numbers[behavior]}", "behavior_id": behavior, **case})
        return rows
    return None


def _parse_eval(content: bytes, origin: Origin) -> Table:
    """The samples in an .eval file of inspect, a zip archive with a JSON file for each, in the order of their ids."""
    limit = min(MAX_BYTES, max(MAX_RATIO * len(content), SMALL_BYTES))
    parsed: list[Parsed] = []
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [name for name in archive.namelist() if name.startswith("samples/") and name.endswith(".json")]
            if sum(archive.getinfo(name).file_size for name in names) > limit:
                raise origin.error(f"unpacks from {len(content):,} bytes to more than {limit:,}, which is no log")
            for name in names:
                with archive.open(name) as stream:
                    parsed.append((name, _sample(stream.read(archive.getinfo(name).file_size + 1))))
    except NotImplementedError:  # a compression that this version of Python does not have
        raise origin.error(f"is packed in a way that cannot be read here; {CONVERT}") from None
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, ValueError, RuntimeError) as error:
        raise origin.error(f"not a complete log of inspect ({error}); copy it again, or {CONVERT}") from None
    if not parsed:
        raise origin.error("contains no samples: the evaluation ended before its first answer, or keeps no samples")
    parsed.sort(key=lambda item: _order(item[1]))
    return table_of(parsed, origin)


def _sample(text: bytes) -> dict[str, Any] | str:
    """A sample, or why it cannot be read."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"not valid JSON ({error})"
    return value if isinstance(value, dict) else f"a sample must be an object, this is {kind_of(value)}"


def _order(sample: dict[str, Any] | str) -> tuple[str, int, str]:
    """By epoch, then by id, numbers before texts."""
    if isinstance(sample, str):
        return ("~", 0, "")
    identity = sample.get("id")
    number = identity if isinstance(identity, int) else -1
    return (cell_text(sample.get("epoch")).zfill(6), number, cell_text(identity))


# One function per form


def _lm_eval() -> Callable[[Row], list[Cells] | LeftOut]:
    """Reads samples of lm-eval; those of a document are written once per filter, and read once.

    Another document or answer of the same number, as in joined files of two tasks or models, is another answer.
    """
    known: set[str] = set()

    def read(row: Row) -> list[Cells] | LeftOut:
        document = cell_text(row.cells.get("doc_id", row.number))
        replies = _replies(row)
        key = repr([document, row.cells.get("doc"), replies])
        if key in known:
            return LeftOut("the same answer under another filter")
        known.add(key)
        prompt = asked(_without_prefix(_argument(row.cells.get("arguments"))), "arguments", row)
        others = {name: value for name, value in row.cells.items() if name not in ANSWER_OF_LM_EVAL}
        ids = [document] if len(replies) == 1 else [f"{document}-{number}" for number in range(len(replies))]
        return [Cells(key, prompt, reply, None, others) for key, reply in zip(ids, replies, strict=True)]

    return read


def _replies(row: Row) -> list[str]:
    """The answers in `resps`, or in `filtered_resps` if that is missing: a list of texts, or of lists of texts."""
    column = "resps" if row.cells.get("resps") else "filtered_resps"
    value: Any = row.cells.get(column)
    replies = value if isinstance(value, list) else [value]
    if replies and all(isinstance(reply, list) for reply in replies):
        replies = [reply for part in replies for reply in part]
    if replies and all(isinstance(reply, str) for reply in replies):
        return [_text(reply, column, row) for reply in replies]
    raise row.error(
        "'resps' holds no texts: samples of multiple-choice tasks are scores; judge a task that generates answers"
    )


def _argument(value: Any) -> Any:
    """The prompt in `arguments`: {"gen_args_0": {"arg_0": prompt}}, or [[prompt, settings]]."""
    while isinstance(value, dict | list) and value:
        if isinstance(value, list) and isinstance(value[0], dict) and "role" in value[0]:
            return value
        value = next(iter(value.values())) if isinstance(value, dict) else value[0]
    return value


def _without_prefix(argument: Any) -> Any:
    """Messages without the start of the answer that a task gives the model (`gen_prefix`)."""
    messages = as_list(argument)
    if isinstance(messages, list) and len(messages) > 1 and isinstance(messages[-1], dict):
        return messages[:-1] if messages[-1].get("role") == "assistant" else messages
    return argument


def _inspect(row: Row) -> list[Cells] | LeftOut:
    """A sample of inspect: `input` is text or messages, and every choice (mostly one) is an answer."""
    output = row.cells.get("output")
    found = output.get("choices") if isinstance(output, dict) else None
    choices = [choice for choice in found if _has_message(choice)] if isinstance(found, list) else []
    if not choices:
        return LeftOut("without an answer: the sample ended with an error or a limit")
    epoch, identity = row.cells.get("epoch", 1), cell_text(row.cells.get("id", row.number))
    key = identity if epoch == 1 else f"{identity}-epoch-{epoch}"
    others: dict[str, Any] = {name: row.cells[name] for name in COPIED_OF_INSPECT if name in row.cells}
    prompt = asked(_attached(row.cells.get("input"), row), "input", row)
    ids = [key] if len(choices) == 1 else [f"{key}-{number}" for number in range(len(choices))]
    return [Cells(name, prompt, *_of_choice(choice, row), others) for name, choice in zip(ids, choices, strict=True)]


def _has_message(choice: Any) -> bool:
    return isinstance(choice, dict) and isinstance(choice.get("message"), dict)


def _of_choice(choice: dict[str, Any], row: Row) -> tuple[str, str | None]:
    """The answer in a choice of inspect, and why it ended."""
    content = choice["message"].get("content")
    if isinstance(content, list):  # parts; reasoning is not part of the answer
        parts = (part for part in content if isinstance(part, dict) and part.get("type", "text") == "text")
        content = "".join(str(part.get("text", "")) for part in parts)
    if not isinstance(content, str | None):
        raise row.error(f"the content of 'output' must be text, this is {kind_of(content)}")
    stop = choice.get("stop_reason")
    return _text(_attached(content or "", row), "output", row), stop if isinstance(stop, str) else None


def _attached(value: Any, row: Row) -> Any:
    """A text of a sample; a long one may be kept in its attachments."""
    attachments = row.cells.get("attachments")
    if not isinstance(value, str) or not isinstance(attachments, dict):
        return value
    return attachments.get(value.removeprefix("attachment://"), value)


def _jailbreakbench(row: Row) -> list[Cells] | LeftOut:
    """A jailbreak: the prompt of the attack, and the response. Where the attack gave no prompt, both are null."""
    if row.cells.get("prompt") is None or row.cells.get("response") is None:
        return LeftOut("the attack has no prompt or no response")
    return [_plain(row, row.cells.get("index"), "prompt", "response")]


def _harmbench(row: Row) -> list[Cells] | LeftOut:
    """A test case, and its generation; test cases of images are bad rows."""
    if not isinstance(row.cells.get("test_case"), str):
        raise row.error(
            f"'test_case' must be text, this is {kind_of(row.cells.get('test_case'))}; images are not judged"
        )
    return [_plain(row, row.cells.get("id"), "test_case", "generation")]


def _alpaca_eval(row: Row) -> list[Cells] | LeftOut:
    """An instruction, its input if there is one, and the output of a model, which `generator` names."""
    cells = _plain(row, row.cells.get("id"), "instruction", "output")
    text = row.cells.get("input")
    return [cells._replace(prompt=f"{cells.prompt}\n\n{text}") if isinstance(text, str) and text.strip() else cells]


def _conversation(column: str) -> Callable[[Row], list[Cells] | LeftOut]:
    """Reads conversations that end with the answer."""

    def read(row: Row) -> list[Cells] | LeftOut:
        *context, request, answer = checked_messages(row.cells.get(column), column, row)
        return [_cells(row, transcript(context, request["content"]), answer["content"], (column,))]

    return read


def _response(prompt: str) -> Callable[[Row], list[Cells] | LeftOut]:
    """Reads answers in the column `response` to requests that are texts or messages."""

    def read(row: Row) -> list[Cells] | LeftOut:
        answer = required_text(row, "response", may_be_empty=True)
        return [_cells(row, asked(row.cells.get(prompt), prompt, row), answer, (prompt, "response"))]

    return read


def _cells(row: Row, prompt: str, completion: str, used: tuple[str, ...]) -> Cells:
    others = {name: value for name, value in row.cells.items() if name not in ("id", *used)}
    return Cells(optional_text(row, "id"), prompt, completion, finish_reason(row), others)


def finish_reason(row: Row) -> str | None:
    """Why an answer ended, in the column `finish`, or in `finish_reason` as in OpenAI's API."""
    return optional_text(row, "finish" if "finish" in row.cells else "finish_reason")


def _plain(row: Row, key: Any, prompt: str, completion: str) -> Cells:
    texts = [required_text(row, column, may_be_empty=True) for column in (prompt, completion)]
    others = {name: value for name, value in row.cells.items() if name not in ("id", prompt, completion)}
    return Cells(None if key is None else cell_text(key), texts[0], texts[1], None, others)


def asked(value: Any, column: str, row: Row) -> str:
    """What a judge reads as the request in a value: text, or messages (a list, or its JSON) with the earlier turns."""
    moved = Row(row.origin, row.place, row.number, {column: value})
    *context, last = context_of(moved, column)
    return transcript(context, last["content"])


def _text(text: str, column: str, row: Row) -> str:
    return required_text(Row(row.origin, row.place, row.number, {column: text}), column, may_be_empty=True)


FORMS = (
    Form("samples of lm-eval", ("doc", "arguments"), _lm_eval),
    Form("a log of inspect", ("input", "output", "epoch"), lambda: _inspect),
    Form("an artifact of JailbreakBench", ("goal", "prompt", "response"), lambda: _jailbreakbench),
    Form("results of HarmBench", ("test_case", "generation"), lambda: _harmbench),
    Form("outputs of AlpacaEval", ("instruction", "output"), lambda: _alpaca_eval),
    Form("prompts and responses", ("prompt", "response"), lambda: _response("prompt")),
    Form("messages and responses", ("messages", "response"), lambda: _response("messages")),
    Form("conversations", ("messages",), lambda: _conversation("messages")),
    Form("conversations of ShareGPT", ("conversations",), lambda: _conversation("conversations")),
)
