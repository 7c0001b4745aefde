"""Download a data file once per node, and keep it by its content.

The first process fetches; the others wait for it and read the copy in the cache folder. Later runs read the same copy
without the network, so that the data of a URL does not change under a run.
"""

import hashlib
import http.client
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from dcr_ds.data.tables import Origin
from dcr_ds.files import cache_folder, read_json, write_atomically
from dcr_ds.locks import locked

TIMEOUT_SECONDS = 30
ATTEMPTS = 5
FIRST_WAIT_SECONDS = 1.0  # doubled after each attempt
LONGEST_WAIT_SECONDS = 60.0  # even if a server asks for more
RETRIED = {408, 425, 429, 500, 502, 503, 504}
MAX_BYTES = 4 << 30
CHUNK_BYTES = 1 << 20


def fetch(url: str, sha256: str | None, origin: Origin) -> bytes:
    """The content of a URL, from the cache folder if it has been fetched before.

    Args:
        sha256: hash that the content must have; None: any, and the copy of an earlier download.
        origin: names the URL without its secrets, for messages.

    Raises:
        UserError: the download failed, or has another hash.
    """
    record = _record(url)
    folder = record.parent
    with _write_errors(folder, origin):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(record.with_suffix(".lock")):
            known = read_json(record)
            hashes = [sha256] if sha256 else [known.get("sha256")] if isinstance(known, dict) else []
            for digest in hashes:
                if (content := _cached(folder, digest)) is not None:
                    return content
            content = _download(url, origin)
            if content.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
                raise origin.error("is a web page, not a data file; use the URL of the raw file")
            digest = hashlib.sha256(content).hexdigest()
            check_hash(digest, sha256, origin)
            _keep(folder / digest, content)
            fetched = datetime.now(UTC).isoformat(timespec="seconds")
            write_atomically(record, json.dumps({"url": origin.path, "sha256": digest, "fetched": fetched}) + "\n")
            return content


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


def _download(url: str, origin: Origin) -> bytes:
    for attempt in range(ATTEMPTS):
        requested = None
        try:
            return _read(url, origin)
        except urllib.error.HTTPError as error:
            problem = f"the server responded {error.code} {error.reason}"
            requested = _requested_wait(error.headers.get("Retry-After") or "")
            if error.code not in RETRIED:
                raise origin.error(f"{problem}; check the URL") from None
        except (http.client.InvalidURL, ValueError):  # the text of these errors holds the URL with its secrets
            raise origin.error("could not be downloaded: not a valid URL") from None
        except (OSError, http.client.HTTPException) as error:
            problem = f"could not be downloaded ({getattr(error, 'reason', error)})"
        if attempt + 1 < ATTEMPTS:
            time.sleep(_wait_seconds(attempt, requested))
    raise origin.error(f"{problem}; {ATTEMPTS} attempts; check the network, or use a local file") from None


def _read(url: str, origin: Origin) -> bytes:
    parts = []
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as reply:
        expected = reply.length  # bytes that the server announced
        while part := reply.read(CHUNK_BYTES):
            parts.append(part)
            if len(parts) > MAX_BYTES // CHUNK_BYTES:
                raise origin.error(f"is larger than {MAX_BYTES >> 30} GiB; use a local file")
    content = b"".join(parts)
    if expected is not None and len(content) < expected:
        raise http.client.HTTPException(f"{len(content)} of {expected} bytes arrived")
    return content


def _wait_seconds(attempt: int, requested: float | None) -> float:
    """The wait that the server requests, or exponential backoff with jitter, so that nodes do not retry at once."""
    wait = FIRST_WAIT_SECONDS * 2**attempt * random.Random().uniform(0.5, 1.0) if requested is None else requested
    return min(wait, LONGEST_WAIT_SECONDS)


def _requested_wait(value: str) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
