"""Failures of a request to an endpoint that do not end it: they are temporary, or about a field of the request."""

from dcr_ds.models.replies import Completion


class Temporary(Exception):
    """A temporary failure; `wait_seconds` is the wait that the server asks for, if any."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class Failed(Temporary):
    """The server is up and failed at this request; `reply` is what it sent all the same."""

    def __init__(self, reason: str, wait_seconds: float | None = None, reply: Completion | None = None) -> None:
        super().__init__(reason, wait_seconds)
        self.reply = reply


class FullContext(Temporary):
    """The server failed all requests at this time, as its context cannot hold so many."""


class FieldRefused(Exception):
    """The server does not accept a field of the request."""
