"""Render chat templates within limits of time, memory and length: a template is code of whoever published the model.

Every rendering is limited, not only a trial, because a template can behave differently for each message.
"""

import resource
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from dcr_ds.errors import UserError
from dcr_ds.models.dates import dated

MAX_SECONDS = 2.0  # of CPU time; ordinary templates take less than a millisecond
MAX_BYTES = 1 << 30  # on top of what the process has
MAX_TEMPLATE = 1 << 20  # characters of a template
MAX_ADDED, MAX_FACTOR = 1_000_000, 16  # characters that a template may add, and how often it may repeat the messages
STATM = Path("/proc/self/statm")
Messages = Sequence[dict[str, str]]


class _TooSlow(Exception):
    """The template took more than MAX_SECONDS."""


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, add_generation_prompt: bool) -> str:
    """Render messages with the chat template of a tokenizer.

    Raises:
        UserError: the template is not valid Jinja, rejects the messages, fails, or exceeds a limit.
    """
    try:
        with _limits():
            text = str(
                tokenizer.apply_chat_template(
                    list(messages),
                    chat_template=dated(tokenizer.get_chat_template()),
                    add_generation_prompt=add_generation_prompt,
                    tokenize=False,
                )
            )
    except _TooSlow:
        raise UserError(
            f"model.chat_template: rendering took more than {MAX_SECONDS:g} seconds; use another template"
        ) from None
    except MemoryError:
        raise UserError(
            f"model.chat_template: rendering needs more than {MAX_BYTES >> 30} GiB of memory; use another template"
        ) from None
    except TemplateError as error:  # invalid Jinja, or it rejects these messages (a system role, for example)
        raise UserError(f"model.chat_template: cannot render these messages: {error}") from None
    except Exception as error:  # templates compute: division by zero, an index out of range, too deep a recursion
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise UserError(f"model.chat_template: cannot render these messages: {reason}") from None
    length = sum(len(message["content"]) for message in messages)
    if len(text) > MAX_ADDED + MAX_FACTOR * length:
        raise UserError(
            f"model.chat_template: it writes {len(text):,} characters for messages of {length:,}; use another template"
        )
    return text


def check_template(template: str, name: str) -> str:
    """Return a template, unless it is too long to be one."""
    if len(template) > MAX_TEMPLATE:
        raise UserError(f"{name}: a chat template of {len(template):,} characters; at most {MAX_TEMPLATE:,} are read")
    return template


@contextmanager
def _limits() -> Iterator[None]:
    with _limited_memory(), _limited_time():
        yield


@contextmanager
def _limited_time() -> Iterator[None]:
    """Raise _TooSlow in the main thread, the only one that receives signals, after MAX_SECONDS of its CPU time."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    start = time.thread_time()

    def check(signum: int, frame: object) -> None:
        if time.thread_time() - start > MAX_SECONDS:
            raise _TooSlow

    handler = signal.signal(signal.SIGALRM, check)
    timer = signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Let allocations fail that exceed the current address space by MAX_BYTES; no limit where the system has none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    lower = [bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY]
    try:
        limit = int(STATM.read_text().split()[0]) * resource.getpagesize() + MAX_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (min([limit, *lower]), hard))
    except (OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
