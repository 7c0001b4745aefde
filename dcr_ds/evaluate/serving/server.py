"""Start a server of a model, wait until it is ready, and end it however the evaluation ends."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn
from urllib.request import ProxyHandler, build_opener

from dcr_ds.engine.launcher import free_port
from dcr_ds.errors import ServerFailed, UserError
from dcr_ds.evaluate.serving.command import HOST
from dcr_ds.files import parse_json
from dcr_ds.progress import heartbeat
from dcr_ds.recipe.engines import fill

GUARD = Path(__file__).parent / "guard.py"
PORT_ATTEMPTS = 3  # another process may take a free port before the server does
POLL_SECONDS = 0.5
PROGRESS_SECONDS = 30.0
ANSWER_SECONDS = 10.0  # to list the models
OTHER_MODEL_SECONDS = 20.0  # a server that lists another model does not start to list ours
CLOSING_SECONDS = 1.0  # a server that ends closes its connections before its port
END_SECONDS = 30.0  # more than the guard takes
BY_A_SIGNAL = 128  # exit codes from here on: a signal ended the server
SHOWN_LINES, SHOWN_CHARACTERS = 12, 2000  # of the log
# Variables of a launcher, which describe this process and not the server, and those that would send usage data.
RANK_VARIABLES = re.compile(
    r"(?:LOCAL_|GROUP_|ROLE_|CROSS_)?(?:RANK|WORLD_SIZE|SIZE)|MASTER_(?:ADDR|PORT)|TORCHELASTIC_\w+"
)
OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
_ERROR = re.compile(r"\b\w*(?:Error|Exception)\b.*:")
_opener = build_opener(ProxyHandler({}))


class _PortTaken(Exception):
    """The server ended, and another process listens on its port."""


class Server:
    """A server of one model. While entered, it runs and is ready.

    Args:
        words: its command, with {port}.
        model: the folder that it serves, and its name in requests.
        log: file for its output.
        minutes: time that it has to become ready.

    Raises:
        UserError: the server ends by itself while it starts, as after a wrong option, or serves another model.
        ServerFailed: a signal ends it, it is not ready in time, or it ends while it is used.
    """

    def __init__(self, words: Sequence[str], model: Path, log: Path, minutes: float) -> None:
        self.words = list(words)
        self.model = model
        self.log = log
        self.seconds = 60 * minutes
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Base URL of its API."""
        return f"http://{HOST}:{self._port}/v1"

    def __enter__(self) -> "Server":
        for attempt in range(PORT_ATTEMPTS):
            try:
                self._start(free_port())
                self._wait_until_ready()
                return self
            except _PortTaken:
                if attempt + 1 == PORT_ATTEMPTS:
                    raise ServerFailed(self._described("ended: other processes take its ports")) from None
            except BaseException:
                self._end()
                raise
        raise AssertionError

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        code = self._code_if_ended() if isinstance(error, UserError) else None
        self._end()
        if code is not None:
            raise ServerFailed(
                self._described(
                    f"ended while it was used ({_ending(code)}); answers are kept, and the same command resumes"
                )
            ) from None

    def _start(self, port: int) -> None:
        self._port = port
        self.log.parent.mkdir(parents=True, exist_ok=True)
        words = fill(self.words, {"host": HOST, "port": port})
        print(f"server: {' '.join(words)}\nserver: log: {self.log}", file=sys.stderr, flush=True)
        environment = {name: value for name, value in os.environ.items() if not RANK_VARIABLES.fullmatch(name)}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(GUARD), *words],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment | OFFLINE,
                start_new_session=True,
            )

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        start = printed = time.monotonic()
        while True:
            listed = self._listed_models()
            code, now = self._process.poll(), time.monotonic()
            if code is not None:
                self._raise_ended(code)
            if listed and str(self.model) in listed:
                break
            if listed and now - start > OTHER_MODEL_SECONDS:
                raise UserError(self._described(f"serves {listed[0]!r}; it must serve {{model}} under that name"))
            if now - start > self.seconds:
                raise ServerFailed(
                    self._described(
                        f"was not ready after {self.seconds / 60:g} minutes; raise evaluate.server_minutes "
                        "(dcr-ds evaluate: --server-minutes)"
                    )
                )
            if now - printed >= PROGRESS_SECONDS:
                printed = now
                last = (self._log_lines() or ["no output yet"])[-1]
                print(f"server: starting for {now - start:.0f} s: {last[:150]}", file=sys.stderr, flush=True)
            heartbeat("the start of a server")
            time.sleep(POLL_SECONDS)
        print(f"server: ready after {now - start:.0f} s", file=sys.stderr, flush=True)

    def _listed_models(self) -> list[str] | None:
        """The models that the server lists; None while it does not answer."""
        try:
            with _opener.open(f"{self.url}/models", timeout=ANSWER_SECONDS) as response:
                models = parse_json(response.read(1 << 20))["data"]
            return [str(model["id"]) for model in models]
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _code_if_ended(self) -> int | None:
        """The exit code of a server that does not listen any more, once the guard has ended the rest of it."""
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(CLOSING_SECONDS)
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(0 if self._is_listening() else END_SECONDS)
        return None

    def _is_listening(self) -> bool:
        try:
            with socket.create_connection((HOST, self._port), timeout=1):
                return True
        except OSError:
            return False

    def _raise_ended(self, code: int) -> NoReturn:
        if self._is_listening():
            raise _PortTaken
        problem = self._described(f"ended before it was ready ({_ending(code)})")
        raise ServerFailed(problem) if code >= BY_A_SIGNAL or code < 0 else UserError(problem)

    def _end(self) -> None:
        """End the server and everything that it started; the guard does so once its standard input is closed."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _described(self, problem: str) -> str:
        """A problem with the command, and the end of the log."""
        lines = self._log_lines()
        shown = lines[-SHOWN_LINES:]
        first = next((line for line in lines if _ERROR.search(line)), None)
        if first is not None and first not in shown:
            shown = [first, "…", *shown]
        text = "\n".join(f"  | {line[:300]}" for line in shown)[-SHOWN_CHARACTERS:] or "  | (no output)"
        return f"the server {self.words[0]} {problem}. The end of its log, {self.log}:\n{text}"

    def _log_lines(self) -> list[str]:
        try:
            text = self.log.read_bytes()[-(1 << 20) :].decode(errors="replace")
        except OSError:
            return []
        plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
        return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


def _ending(code: int) -> str:
    return f"exit code {code}" if 0 <= code < BY_A_SIGNAL else f"signal {code - BY_A_SIGNAL if code > 0 else -code}"
