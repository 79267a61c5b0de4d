"""Keeps passwords and tokens out of what is written down and shown."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
LEAST_LENGTH = 8  # of a secret: shorter values stand in too many innocent texts
NAMED = re.compile(r"(?i)(token$|secret|passw|credential|api_?key|access_?key|private_?key)")
IN_URL = re.compile(r"(?<=://)[^/@\s'\"]+@")
IN_QUERY = re.compile(
    r"(?i)([\w-]*(?:token|secret|password|passwd|api[_-]?key|access[_-]?key|signature|sig)=)([^\s&'\"]+)"
)


def redact(value: Any) -> Any:
    """Return a value of plain JSON types without the secrets that its texts hold.

    What is taken for one: user and password of a URL, what follows a word like ``token=``, and the values of
    environment variables that are named like secrets.
    """
    return _redact(value, _from_environment())


def _from_environment() -> list[str]:
    """Return the values of variables named like secrets, the longest first."""
    values = {value for name, value in os.environ.items() if NAMED.search(name) and len(value) >= LEAST_LENGTH}
    values = {value for value in values if not value.startswith("/")}  # where one is kept, not what it is
    return sorted(values, key=len, reverse=True)


def _redact(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, HIDDEN)
        return IN_QUERY.sub(rf"\g<1>{HIDDEN}", IN_URL.sub(f"{HIDDEN}@", value))
    if isinstance(value, Mapping):
        return {_redact(key, secrets): _redact(each, secrets) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(each, secrets) for each in value]
    return value


class Redacting(logging.Formatter):
    """Formats log messages without secrets, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a message as text."""
        return str(redact(super().format(record)))
