"""The command line: the group of all commands, and how errors become messages and exit codes.

Each command, or group of commands, is the module of its name; ``list`` and ``describe`` are in ``catalogue``.
Modules import what is heavy inside their functions, so that ``harness --help`` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

import click

from harness import __version__
from harness.cli import analyse, base, catalogue, check, data, export, new, plan, results, run, sign, track, verify
from harness.cli.exit_codes import INTERRUPTED, TRACKING_INCOMPLETE, TRIALS_FAILED
from harness.errors import HarnessError, PluginLoadError
from harness.running.leaving import ANSWER_SECONDS, leave, leave_within, stay

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

__all__ = ["INTERRUPTED", "TRACKING_INCOMPLETE", "TRIALS_FAILED", "app", "main"]

WORDS = "harness: interrupted; finished trials are kept, run the same command to go on"

logger = logging.getLogger(__name__)


class Commands(click.Group):
    """The built-in commands and those of other packages, from entry points of group ``harness.commands``."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return all names, without importing anything."""
        return sorted({*super().list_commands(context), *others().names})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return a command, importing it on first use. One that does not load says so when it is used."""
        built_in = super().get_command(context, name)
        if built_in is not None:
            return built_in
        found = [each for each in others() if each.name == name]
        if not found:
            return None
        try:
            command = found[0].load()
            if not isinstance(command, click.Command):
                raise TypeError(f"it is a {type(command).__name__}, not a click.Command")
        except Exception as error:  # noqa: BLE001  whatever a stranger's module raises
            return broken(found[0], error)
        return command


def others() -> EntryPoints:
    """Return the commands of other packages, not yet imported."""
    from importlib import metadata  # takes a fifth of a built-in command's start, which never comes here

    return metadata.entry_points(group="harness.commands")


def broken(point: EntryPoint, error: Exception) -> click.Command:
    """Return a stand-in for a command that does not load, so that the other commands and the help still work."""
    distribution = point.dist.name if point.dist else "unknown"
    version = point.dist.version if point.dist else "0"
    what = " ".join(f"{type(error).__name__}: {error}".split())

    def explain() -> None:
        logger.debug("", exc_info=error)
        raise PluginLoadError(
            f"command {point.name!r} (entry point {point.name!r} of {distribution} {version}, {point.value}) "
            f"does not load: {what}. Fix or reinstall it, or remove it: pip uninstall {distribution}."
        )

    return click.Command(
        point.name,
        callback=explain,
        short_help=f"(does not load: {what})",
        add_help_option=False,  # `--help`, too, gets the message
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


@click.group(
    cls=Commands,
    commands=[
        run.run, plan.plan, catalogue.list_, catalogue.describe, check.check,
        results.results, export.export, analyse.analyse, track.track, new.new, data.data, base.base,
        sign.sign, verify.verify,
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)  # fmt: skip
@click.version_option(__version__, prog_name="harness")
@click.option(
    "--block", multiple=True, metavar="PLUGIN", help="Leave a plugin or distribution out (also HARNESS_BLOCK=a,b)."
)
@click.option("-v", "--verbose", is_flag=True, help="Log what happens inside, with tracebacks.")
@click.pass_context
def app(context: click.Context, block: tuple[str, ...], verbose: bool) -> None:
    """Compare parameter-efficient fine-tuning methods fairly: same budget, same tuning, several seeds.

    \b
    harness run --methods all --task uuid     train and score every method on a task
    harness leaderboard                       render the results as a page
    harness list methods                      see what there is
    """  # noqa: D301  click wants the character itself, before lines to be kept
    from harness.running.redaction import Redacting

    handler = logging.StreamHandler()
    handler.setFormatter(Redacting("%(levelname)s %(name)s: %(message)s"))
    handler.addFilter(_Once())
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING,
        handlers=[handler],
    )
    context.obj = block


class _Once(logging.Filter):
    """Lets each warning through once: several workers may have the same one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        text = record.getMessage()
        is_new = text not in self.seen
        self.seen.add(text)
        return is_new


def answer(*_: object) -> NoReturn:
    """Answer Ctrl-C, whatever is going on."""
    leave_within(ANSWER_SECONDS, INTERRUPTED, WORDS)
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; foreseeable errors print one message and no traceback."""
    # Libraries make a million objects that stay: looking for garbage among them takes longer than making a plan,
    # and the interpreter would do so once more as it ends.
    thresholds = gc.get_threshold()
    gc.set_threshold(1_000_000)
    atexit.register(gc.freeze)
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, answer)
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except HarnessError as error:
        from harness.running.redaction import redact

        click.echo(redact(f"harness: {error}"), err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        stay()
        click.echo(WORDS, err=True)
        leave(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away, e.g. `| head`
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123
        sys.exit(0)
    except OSError as error:  # a full disk, a network that is away: named, and on request where it arose
        from harness.running.redaction import redact

        logger.debug("", exc_info=True)
        click.echo(redact(f"harness: {type(error).__name__}: {error} (`harness -v ...` shows where)"), err=True)
        sys.exit(HarnessError.exit_code)
    finally:
        gc.set_threshold(*thresholds)
        if signal.getsignal(signal.SIGINT) is answer:
            signal.signal(signal.SIGINT, before)
