"""The bodies of HTTP replies: whole, unpacked and of limited size. Redirects are not followed."""

import ssl
import zlib
from http.client import HTTPException
from typing import Any
from urllib.parse import urljoin
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, build_opener

from dcr_ds.recipe.urls import mask_secrets

MAX_BYTES = 1 << 26
REDIRECTS = {301, 302, 303, 307, 308}
_WBITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class Unreadable(Exception):
    """A body that is too long, or packed in a way that was not asked for."""


class _NoRedirects(HTTPRedirectHandler):
    """A redirected POST would become a GET without the request, or be sent elsewhere with the prompts."""

    def redirect_request(self, *_: Any) -> None:
        return None


def opener(local: bool) -> OpenerDirector:
    """Local servers are contacted directly, without the proxies of the environment."""
    return build_opener(_NoRedirects, *([ProxyHandler({})] if local else []))


def read_body(response: Any) -> bytes:
    """The body of a response or of an HTTPError.

    Raises:
        HTTPException: the connection ended before the body did.
        Unreadable: the body is too long, or cannot be unpacked.
    """
    body = response.read(MAX_BYTES + 1)
    if len(body) <= MAX_BYTES and response.length:  # bytes that were announced and did not come
        raise HTTPException(f"it was closed after {len(body):,} bytes of a reply")
    encoding = (response.headers.get("Content-Encoding") or "identity").strip().lower()
    if encoding != "identity" and body:
        body = _unpacked(body, encoding)
    if len(body) > MAX_BYTES:
        raise Unreadable(f"a reply of more than {MAX_BYTES:,} bytes")
    return body


def redirect_problem(url: str, headers: Any) -> str:
    """Where a server redirects `url` to, and what to give in place of it: perhaps that, but not a page to log in."""
    target = urljoin(url, headers.get("Location") or "")
    base = target.removesuffix("/chat/completions")
    if base != target != url:
        return f"the server redirects to {mask_secrets(base)}; give that as the url"
    return f"the server redirects to {mask_secrets(target)}; give a url at which it answers without a redirect"


def tls_problem(reason: object) -> str | None:
    """Why https does not work with a server, if that would be so at every attempt."""
    if isinstance(reason, ssl.SSLCertVerificationError):
        advice = "set SSL_CERT_FILE to the certificate of its authority"
        return f"the certificate of the server is not trusted ({reason.verify_message}); {advice}"
    if isinstance(reason, ssl.SSLError) and reason.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return "the server does not speak https; write http:// in the url"
    return None


def _unpacked(body: bytes, encoding: str) -> bytes:
    """Some proxies pack replies although this was not asked for."""
    if encoding not in _WBITS:
        raise Unreadable(f"a reply that is packed with {encoding[:20]!r}; turn that off in the server or its proxy")
    try:
        return zlib.decompressobj(_WBITS[encoding]).decompress(body, MAX_BYTES + 1)
    except zlib.error as error:
        raise Unreadable(f"a reply that is not valid {encoding} ({error})") from None
