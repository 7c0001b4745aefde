"""Read a data file from an object store (s3://, gs://, az://, hf://) through fsspec."""

import importlib.util
from typing import NamedTuple

from dcr_ds.data.tables import Origin
from dcr_ds.errors import UserError, first_line
from dcr_ds.recipe.urls import STORES, mask_secrets, store_of

VERSION = "version"  # name of the validator, which changes with the object
MAX_BYTES = 4 << 30


class Answer(NamedTuple):
    """What a server sent; the content is None if it has not changed."""

    content: bytes | None
    validators: dict[str, str]


def fetch_object(url: str, origin: Origin, validators: dict[str, str]) -> Answer:
    """The content of an object, or that its version is still that of `validators`.

    Retries and credentials are those of the package of the store; credentials come from its own variables and files.

    Raises:
        UserError: the package is not installed, or the object is missing, too large or cannot be read.
    """
    package = STORES[store_of(url) or ""]
    if importlib.util.find_spec(package) is None:
        raise origin.error(f"needs the package {package}, which the extra `stores` installs: pip install {package}")
    import fsspec

    try:
        store, path = fsspec.core.url_to_fs(url)
        version, size = str(store.ukey(path)), store.info(path).get("size") or 0
        if size > MAX_BYTES:
            raise origin.error(f"is larger than {MAX_BYTES >> 30} GiB; use a local file")
        is_known = validators.get(VERSION) == version
        return Answer(None if is_known else store.cat_file(path), {VERSION: version})
    except UserError:
        raise
    except FileNotFoundError:
        raise origin.error("no such object; check the bucket and the path") from None
    except Exception as error:  # botocore, gcsfs, azure and aiohttp all raise exceptions of their own
        reason = first_line(error)[:200]
        raise origin.error(
            f"could not be read ({mask_secrets(reason)}); check the credentials of {package} and the network, or use "
            "a local file"
        ) from None
