"""``harness run``: plan, train what no record answers yet, say how it went."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from harness.cli.exit_codes import INTERRUPTED, TRACKING_INCOMPLETE, TRIALS_FAILED
from harness.cli.options import build_suite_from_options, shard_option, suite_options
from harness.errors import UsageError


@click.command()
@suite_options
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--workers", type=click.IntRange(min=0), default=0, help="Worker processes.  [default: one per GPU; two on a CPU]"
)
@click.option(
    "--executor",
    "executor_text",
    default="local",
    show_default=True,
    metavar="NAME[:SETTINGS]",
    help="Where workers run: `harness list executors`, e.g. ray:gpus=0.5.",
)
@click.option("--address", metavar="ADDRESS", help="Of the executor's cluster; short for its setting address=....")
@click.option("--pack", default="auto", show_default=True, help="Trials trained together: auto, off or a number.")
@click.option(
    "--compile",
    "compiled",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Compile the model where that saves time.",
)
@click.option("--recompute", "recomputes", is_flag=True, help="Keep no activations: less memory, a third more time.")
@shard_option
@click.option("--trial-seconds", type=click.FloatRange(min=0), default=0.0, help="Time limit of one trial; 0: none.")
@click.option(
    "--checkpoint-seconds",
    type=click.FloatRange(min=0.01),
    default=60.0,
    show_default=True,
    help="How often trials in training are saved, to go on there.",
)
@click.option(
    "--retry",
    is_flag=False,
    flag_value="all",
    metavar="[STATES]",
    help="Try again what ended so (failed,out_of_memory,timed_out,lost,edited); alone: all of it.",
)
@click.option("--no-mlflow", is_flag=True, help="Do not track with MLflow.")
@click.option("--allow-code-execution", is_flag=True, help="Let tasks run model-written code, in a sandbox.")
@click.option(
    "--export",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Then write the recommended adapter there, as `harness export best --format auto` does.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON instead of the final table.")
@click.option("-q", "--quiet", is_flag=True, help="Show failures and the final table only.")
@click.pass_obj
def run(
    block: tuple[str, ...], /, device: str, workers: int, pack: str, compiled: str, recomputes: bool,
    trial_seconds: float, checkpoint_seconds: float, retry: str | None, no_mlflow: bool, allow_code_execution: bool,
    quiet: bool, as_json: bool, executor_text: str, address: str | None, shard: int,
    export: Path | None, **options: Any,
) -> int:  # fmt: skip
    """Train and score methods on tasks. Finished trials are never run again; what did not finish may be."""
    from harness.planning.retry import parse_states

    asked = () if retry is None else parse_states(retry)
    from harness.running.local import LocalExecutor

    local = LocalExecutor()
    click.get_current_context().call_on_close(local.close)
    if is_local := executor_text == LocalExecutor.name and address is None:
        local.launch_ahead()  # before anything else: it takes as long to load its libraries as this process does

    from harness.planning.registry import build_registry
    from harness.planning.settings import read_executor
    from harness.results.store import Store
    from harness.running.leaving import ANSWER_SECONDS, leave_within
    from harness.running.progress import Display
    from harness.running.schedule import Terminated
    from harness.running.sweep import How, run_sweep

    def leave(*_: object) -> None:
        leave_within(ANSWER_SECONDS, INTERRUPTED, "harness: ended; finished trials are kept")
        raise Terminated  # a cluster's "stop" is a Ctrl-C with time to save

    signal.signal(signal.SIGTERM, leave)
    if no_mlflow:
        block = (*block, "trackers:mlflow")
    registry = build_registry(block)
    executor = local if is_local else read_executor(registry, executor_text, address)
    suite, data_dir = build_suite_from_options(registry, options)
    if export is not None:
        _check_export(export, suite.tasks)
    store = Store(options["results"])
    how = How(
        device=device, workers=workers, pack=pack, compiled=compiled, recomputes=recomputes,
        trial_seconds=trial_seconds, checkpoint_seconds=checkpoint_seconds,
        allow_code_execution=allow_code_execution, retry=asked, shard=shard,
    )  # fmt: skip
    command = {"command": shlex.join(["harness", *sys.argv[1:]])}
    outcome = run_sweep(suite, registry, store, how, Display(quiet), data_dir, block, command, executor)
    records, observers = outcome.records, outcome.observers
    told = outcome.summary()
    click.echo(json.dumps([each.to_json() for each in records], indent=1) if as_json else told)
    where = "" if store.root == "results" else f" --results {shlex.quote(store.root)}"  # for commands to copy
    if outcome.trained:
        click.echo(f"Records are in {store.root}. `harness leaderboard{where}` renders them as a page.", err=True)
    else:
        click.echo(f"Nothing to train: all {len(records)} trials are in {store.root}.", err=True)
    reported = [each for each in records if each.trial.purpose == "report"]
    failed = [each for each in reported if each.state != "complete"]
    unscored = [each for each in reported if each.state == "complete" and each.score is None]
    for each in failed:
        again = "" if each.state.is_final else f"; to try it again: --retry {each.state}"
        click.echo(
            f"harness: {each.trial.label} {each.state}: `harness results show {each.trial_id}{where}`{again}", err=True
        )
    for each in unscored:
        reason = each.reasons.get(each.main_metric, "the record gives no reason")
        click.echo(
            f"harness: {each.trial.label} has no {each.main_metric}: {reason}: "
            f"`harness results show {each.trial_id}{where}`",
            err=True,
        )
    if export is not None and len(failed) + len(unscored) < len(reported):
        from harness.cli.export import best_of, write

        best = best_of(registry, records)
        exported = write(registry, store, next(each for each in records if each.trial_id == best), export)
        for each in exported["notes"]:
            click.echo(each, err=True)
        click.echo(f"\n{exported['code']}", err=as_json)
    if observers.failures:
        complete = "" if failed or unscored else "results complete, "
        click.echo(
            f"harness: {complete}tracking incomplete (see the warnings); `harness track rebuild{where}` repairs it",
            err=True,
        )
    return TRIALS_FAILED if failed else TRACKING_INCOMPLETE if observers.failures else 0


def _check_export(folder: Path, tasks: Sequence[str]) -> None:
    """Refuse before anything trains what could not be written afterwards."""
    from harness.results.export import expect_new

    if len(tasks) > 1:
        raise UsageError(
            f"--export writes one adapter, and {', '.join(tasks)} have one each: leave it out, and use "
            "`harness export best --task NAME`"
        )
    expect_new(folder)
