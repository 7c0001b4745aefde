"""Download a data file once per node, and keep it by its content.

The first process fetches; the others wait for it and read the copy in the cache folder. Later runs ask the server
whether the file has changed, and read the copy if it has not, or if the server cannot be reached.
"""

import hashlib
import http.client
import random
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from dcr_ds.data.object_store import MAX_BYTES, Answer, fetch_object
from dcr_ds.data.tables import Origin
from dcr_ds.errors import UserError
from dcr_ds.files import cache_folder, read_object, write_json
from dcr_ds.recipe.urls import store_of
from dcr_ds.retries import requested_wait

TIMEOUT_SECONDS = 30
ATTEMPTS = 5
ATTEMPTS_TO_CONNECT = 3  # an address that is wrong, or no network
FIRST_WAIT_SECONDS = 1.0  # doubled after each attempt
LONGEST_WAIT_SECONDS = 60.0  # even if a server asks for more
FRESH_SECONDS = 600.0  # within which a copy is read without asking the server: the ranks of a run start together
RETRIED = {408, 425, 429, 500, 502, 503, 504}
CHUNK_BYTES = 1 << 20
VALIDATORS = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}  # of an answer, and of the next request


def fetch(url: str, sha256: str | None, origin: Origin) -> bytes:
    """The content of a URL, from the cache folder if it has been fetched before and has not changed.

    Args:
        sha256: hash that the content must have; a copy with this hash is read without asking the server.
        origin: names the URL without its secrets, for messages.

    Raises:
        UserError: the download failed, or has another hash.
    """
    record = _record(url)
    folder = record.parent
    with _write_errors(folder, origin):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(record.with_suffix(".lock")):
            known = read_object(record)
            copy = _cached(folder, sha256 or known.get("sha256"))
            if copy is not None and (sha256 or _is_fresh(known)):
                return copy
            content, validators = _fetch_changed(url, origin, known, copy)
            if content is None:
                assert copy is not None  # only then the server is asked for changes
                write_json(record, known | {"checked": time.time()})
                return copy
            digest = hashlib.sha256(content).hexdigest()
            check_hash(digest, sha256, origin)
            _keep(folder / digest, content)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            facts = {"url": origin.path, "sha256": digest, "fetched": now, "checked": time.time()}
            write_json(record, facts | {"validators": validators})
            return content


def _fetch_changed(url: str, origin: Origin, known: dict[str, Any], copy: bytes | None) -> Answer:
    """What the server sends, or that nothing has changed where it cannot be reached and there is a copy."""
    validators = known.get("validators") if copy is not None else None
    request = fetch_object if store_of(url) else _download
    try:
        answer = request(url, origin, validators if isinstance(validators, dict) else {})
    except UserError as error:
        if copy is None:
            raise
        print(f"{error}. The copy of {known.get('fetched')} is used", file=sys.stderr)
        return Answer(None, {})
    if answer.content and answer.content.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise origin.error("is a web page, not a data file; use the URL of the raw file")
    return answer


def _is_fresh(known: dict[str, Any]) -> bool:
    checked = known.get("checked")
    return isinstance(checked, float) and 0 <= time.time() - checked < FRESH_SECONDS


def forget(url: str) -> None:
    """Fetch a URL again the next time: its content cannot be read."""
    _record(url).unlink(missing_ok=True)


def check_hash(digest: str, expected: str | None, origin: Origin) -> None:
    """Raise a UserError unless a content has the hash that the recipe expects."""
    if expected is not None and digest != expected:
        raise origin.error(f"has the SHA-256 {digest}, but sha256 in the recipe is {expected}; use the right file")


def _record(url: str) -> Path:
    """The file that names the kept content of a URL."""
    return cache_folder() / "downloads" / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.json"


def _cached(folder: Path, digest: object) -> bytes | None:
    """The kept content with a hash; None if there is none, or it is damaged."""
    if not isinstance(digest, str) or not digest.isalnum() or not (folder / digest).is_file():
        return None
    content = (folder / digest).read_bytes()
    return content if hashlib.sha256(content).hexdigest() == digest else None


def _keep(file: Path, content: bytes) -> None:
    partial = file.with_name(f"{file.name}.partial")
    partial.write_bytes(content)
    partial.replace(file)


@contextmanager
def _write_errors(folder: Path, origin: Origin) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise origin.error(
            f"cannot be kept in {folder} ({error.strerror or error}); set DCR_DS_CACHE to another folder"
        ) from None


def _download(url: str, origin: Origin, validators: dict[str, str]) -> Answer:
    headers = {VALIDATORS[name]: str(value) for name, value in validators.items() if name in VALIDATORS}
    request = urllib.request.Request(url, headers=headers)
    for attempt in range(ATTEMPTS):
        requested = None
        try:
            return _read(request, origin)
        except urllib.error.HTTPError as error:
            if error.code == 304:
                return Answer(None, {})
            problem = f"the server responded {error.code} {error.reason}"
            requested = requested_wait(error.headers)
            if error.code not in RETRIED:
                raise origin.error(f"{problem}; check the URL") from None
        except (http.client.InvalidURL, ValueError):  # the text of these errors holds the URL with its secrets
            raise origin.error("could not be downloaded: not a valid URL") from None
        except (OSError, http.client.HTTPException) as error:
            problem = f"could not be downloaded ({getattr(error, 'reason', error)})"
            if attempt + 1 == ATTEMPTS_TO_CONNECT:
                break
        if attempt + 1 < ATTEMPTS:
            time.sleep(_wait_seconds(attempt, requested))
    raise origin.error(f"{problem}; {attempt + 1} attempts; check the network, or use a local file") from None


def _read(request: urllib.request.Request, origin: Origin) -> Answer:
    parts = []
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as reply:
        expected = reply.length  # bytes that the server announced
        while part := reply.read(CHUNK_BYTES):
            parts.append(part)
            if len(parts) > MAX_BYTES // CHUNK_BYTES:
                raise origin.error(f"is larger than {MAX_BYTES >> 30} GiB; use a local file")
    content = b"".join(parts)
    if expected is not None and len(content) < expected:
        raise http.client.HTTPException(f"{len(content)} of {expected} bytes arrived")
    return Answer(content, {name: reply.headers[name] for name in VALIDATORS if reply.headers.get(name)})


def _wait_seconds(attempt: int, requested: float | None) -> float:
    """The wait that the server requests, or exponential backoff with jitter, so that nodes do not retry at once."""
    wait = FIRST_WAIT_SECONDS * 2**attempt * random.Random().uniform(0.5, 1.0) if requested is None else requested
    return min(wait, LONGEST_WAIT_SECONDS)
