"""URLs in recipes: which there are, and their secrets.

Secrets are masked wherever a URL is written or printed, and can be named as ${VARIABLE}.
"""

import ipaddress
import os
import re
from typing import Any
from urllib.parse import urlsplit

from dcr_ds.errors import UserError

MASK = "***"
# Schemes of object stores, and the packages with which fsspec reads them; credentials are those of the packages.
STORES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "hf": "huggingface_hub",
}
URL = re.compile(rf"(?:https?|{'|'.join(STORES)})://[^\s'\"<>]+", re.IGNORECASE)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # owner/name
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
SECRET_NAMES = re.compile(r"token|key|sig|secret|pass|pwd|auth|cred|session|jwt|code", re.IGNORECASE)
SECRET_VALUE = re.compile(r"(?=.*[0-9])[A-Za-z0-9_\-.~%+=/]{20,}")


def expand_variables(text: str, field: str) -> str:
    """Replace ${NAME} by the environment variable NAME.

    Raises:
        UserError: the variable is not set, or a secret of the text has been masked.
    """

    def value(match: re.Match[str]) -> str:
        if (secret := os.environ.get(match[1])) is None:
            raise UserError(f"{field}: the environment variable {match[1]} is not set, which ${{{match[1]}}} names")
        return secret

    if URL.match(text) and MASK in text:
        raise UserError(
            f"{field}: {text} has lost its secret, which is not written to files; give it again, or keep it in an "
            "environment variable and write ${NAME} in its place"
        )
    return VARIABLE.sub(value, text)


def refuse_other_variables(output: str) -> None:
    """Raise UserError for $NAME in the folder of runs: a folder of that name would be created."""
    if match := re.match(r"(?:.*/)?\$([A-Za-z_][A-Za-z0-9_]*)", output):
        raise UserError(f"output: {output}: write ${{{match[1]}}} for the environment variable {match[1]}")


def mask_secrets(text: str) -> str:
    """A text with the secrets of its URLs masked: passwords, and parameters that look like secrets."""
    return URL.sub(lambda match: _mask_url(match[0]), text)


def masked(values: Any) -> Any:
    """A nested value with the secrets of all URLs in it masked."""
    if isinstance(values, dict):
        return {key: masked(value) for key, value in values.items()}
    if isinstance(values, list):
        return [masked(value) for value in values]
    return mask_secrets(values) if isinstance(values, str) else values


def store_of(text: str) -> str | None:
    """The scheme of a URL of an object store; None for anything else, also for a folder named like one."""
    scheme, separator, _ = text.partition(":/")
    return scheme.lower() if separator and scheme.lower() in STORES else None


def refuse_store(folder: str, field: str) -> None:
    """Raise UserError for a file or folder to write to on an object store, or at another URL."""
    if store_of(folder):
        raise UserError(
            f"{field}: {mask_secrets(folder)} is on an object store, which cannot rename a folder in one step, so an "
            "interrupted run could leave half a checkpoint; write to a disk or a shared file system and copy the "
            "folder afterwards, or mount the store with a file system whose renames are atomic"
        )
    if "://" in folder:
        raise UserError(f"{field}: {mask_secrets(folder)} is a URL; name a path of this machine, without ://")


def is_local(url: str) -> bool:
    """Whether a URL is on this machine or its network: a private address, or a host name without a dot.

    Raises:
        ValueError: it is not a valid URL.
    """
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host


def _mask_url(url: str) -> str:
    head, separator, fragment = url.partition("#")
    head, question, query = head.partition("?")
    scheme, _, rest = head.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    name, colon, password = user.partition(":")
    if at and (colon or scheme.lower() not in STORES):  # a name alone is that of a container in abfs://NAME@ACCOUNT/…
        user = f"{name}:{_mask(password)}" if colon else _mask(user)
    parameters = "&".join(map(_mask_parameter, query.split("&"))) if query else ""
    return f"{scheme}://{user}{at}{host}{slash}{path}{question}{parameters}{separator}{fragment}"


def _mask_parameter(parameter: str) -> str:
    name, equals, value = parameter.partition("=")
    if not equals:
        return _mask(parameter) if SECRET_VALUE.fullmatch(parameter) else parameter
    is_secret = SECRET_NAMES.search(name) or SECRET_VALUE.fullmatch(value)
    return f"{name}={_mask(value)}" if is_secret else parameter


def _mask(secret: str) -> str:
    """A mask; variables stay, as their names are no secrets."""
    return secret if not secret or VARIABLE.fullmatch(secret) else MASK
