"""The url of an endpoint, and its key."""

import os
from urllib.parse import urlsplit

from dcr_ds.errors import UserError
from dcr_ds.recipe.urls import is_local, mask_secrets


def is_local_endpoint(url: str) -> bool:
    """Whether a url is on this machine or its network: a private address, or a host name without a dot.

    Raises:
        UserError: not the url of an endpoint.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"{mask_secrets(url)!r} is not a valid url ({error})") from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise UserError(f"{mask_secrets(url)!r} is not the url of an endpoint; example: http://localhost:8000/v1")
    if parts.username is not None:
        raise UserError("the endpoint's url contains a user name; put the key into an environment variable")
    return is_local(url)


def read_key(name: str, url: str, needed: bool) -> str:
    """The key in the environment variable `name`; "" if there is none and none is needed.

    Raises:
        UserError: no key, or one that cannot be sent.
    """
    key = os.environ.get(name, "").strip()
    if needed and not key:
        raise UserError(f"{url}: no key; set the environment variable {name} (to any word if the server needs no key)")
    if not (key.isascii() and key.isprintable()):  # http.client would print the key in its error
        raise UserError(f"the environment variable {name} contains characters that are not valid in a key")
    return key
