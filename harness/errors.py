"""Every error that the harness raises on purpose.

A message names the thing, the value, what was allowed, and what to do. The command line prints the message alone,
without a traceback, and exits with the error's ``exit_code``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class HarnessError(Exception):
    """A foreseeable problem, explained to the user. Exit code 1."""

    exit_code = 1


class UsageError(HarnessError):
    """The request itself is wrong: an unknown name, a bad value, an unreachable budget. Exit code 2."""

    exit_code = 2


class ConfigError(UsageError):
    """A method's configuration is invalid, or cannot be applied to a layer of the model."""


class BudgetError(UsageError):
    """A parameter budget cannot be read, or cannot be reached within the tolerance."""


class DataError(UsageError):
    """A model or a data set is not there, or not what it should be."""


class PluginLoadError(UsageError):
    """A plugin is broken, or two plugins claim one name."""


class RecordError(HarnessError):
    """A record on disk cannot be read, or would be overwritten."""


class TrialError(HarnessError):
    """A trial cannot be what was planned."""


class ChangedBaseError(TrialError):
    """A method wrote to the pretrained weights that others train over."""


class TrialDivergedError(HarnessError):
    """A trial's loss became NaN or infinite."""


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Say in one line that a place which the user named cannot be written.

    Raises:
        UsageError: What is done within fails for the file system's reasons.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {str(path)!r}: {error.strerror or error}; name another place") from error
