"""How long a server asks to wait before the same request is sent again."""

import re
import time
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_SECONDS = re.compile(_NUMBER)
_DURATION = re.compile(rf"({_NUMBER})\s*(ms|s|m|h)")  # 3s, 250ms, 1m30s


def requested_wait(headers: Message) -> float | None:
    """Seconds by the header retry-after-ms or Retry-After; None if there is none, or it cannot be read.

    Retry-After is a number of seconds or a date by RFC 9110 (10.2.3). Servers also write a duration with units, or a
    date as in ISO 8601.
    """
    milliseconds = (headers.get("retry-after-ms") or "").strip()
    if _SECONDS.fullmatch(milliseconds):
        return float(milliseconds) / 1000
    value = (headers.get("Retry-After") or "").strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    if parts := _DURATION.findall(value.lower()):
        is_whole = not _DURATION.sub("", value.lower()).strip()
        return sum(float(number) * _UNITS[unit] for number, unit in parts) if is_whole else None
    date = _date(value)
    return None if date is None else max(0.0, date.timestamp() - time.time())


def _date(value: str) -> datetime | None:
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            date = parse(value)
            return date if date.tzinfo else date.replace(tzinfo=UTC)
        except (ValueError, TypeError, OverflowError):
            continue
    return None
