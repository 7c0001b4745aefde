"""Chat templates that loop, fail or write gigabytes: one message, in bounded time and memory."""

import gc
import resource
import signal
import time

import pytest
from tiny import TEMPLATE, make_tokenizer

from dcr_ds.errors import UserError
from dcr_ds.models import rendering
from dcr_ds.models.chat import encode_conversation, encode_prompt
from dcr_ds.models.tokenizer import load_tokenizer

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}"
HOSTILE = {
    "loops": LOOP + "{% endfor %}{% endfor %}",
    "loops that write": LOOP + "{{ 'x' * 999 }}{% endfor %}{% endfor %}",
    "loops in one message only": "{% if 'twice' in messages[0]['content'] %}"
    + LOOP
    + "{% endfor %}{% endfor %}{% endif %}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a number without end": "{{ 9 ** (9 ** 9) }}",
    "gigabytes": "{{ 'x' * 10 ** 11 }}",
    "gigabytes by a filter": "{{ 'x' | center(9 * 10 ** 10) }}",
    "gigabytes by replacement": "{{ ('x' * 10 ** 6) | replace('x', 'y' * 10 ** 6) }}",
    "a list without end": "{% set a = namespace(b=[1]) %}{% for i in range(99) %}{% set a.b = a.b + a.b %}{% endfor %}",
    "megabytes": "{{ 'x' * 10 ** 7 }}",
    "division by zero": "{{ 1 / 0 }}",
    "a range too long": "{% for a in range(10 ** 9) %}{% endfor %}",
    "a type": "{{ 'a' + 1 }}",
    "nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "not Jinja": "{% if %}",
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # raised in a destructor, and then again
@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_end_with_one_message(template, monkeypatch):
    monkeypatch.setattr(rendering, "MAX_SECONDS", 0.2)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template + TEMPLATE
    before = signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS)
    timer = signal.getitimer(signal.ITIMER_REAL)  # of pytest-timeout
    gc.collect()  # what is freed meanwhile, as garbage of earlier tests, may be taken besides MAX_BYTES
    peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(UserError, match=r"^model\.chat_template: "):
        encode_prompt(tokenizer, "say it twice")
    assert time.thread_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 2 * rendering.MAX_BYTES >> 10
    assert (signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == pytest.approx(timer, abs=60)


def test_long_dialogues_are_rendered():
    messages = [{"role": ("user", "assistant")[turn % 2], "content": f"turn {turn} " * 50} for turn in range(400)]
    assert encode_conversation(make_tokenizer(), messages).num_supervised > 400


def test_a_template_of_megabytes_is_refused(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE + " " * rendering.MAX_TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path}: a chat template of "):
        load_tokenizer(tmp_path)
