"""``harness run``: plan, train what no record answers yet, say how it went."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from harness.cli.exit_codes import TRACKING_INCOMPLETE, TRIALS_FAILED
from harness.cli.options import build_suite_from_options, resolve_devices, resolve_precision, suite_options
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.contract.record import Record
    from harness.contract.trial import Trial
    from harness.planning.plan import Cell
    from harness.running.schedule import Observers


@click.command()
@suite_options
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--workers", type=click.IntRange(min=0), default=0, help="Worker processes.  [default: one per GPU; two on a CPU]"
)
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
@click.option("--trial-seconds", type=click.FloatRange(min=0), default=0.0, help="Time limit of one trial; 0: none.")
@click.option(
    "--retry",
    is_flag=False,
    flag_value="all",
    metavar="[STATES]",
    help="Try again what ended so (failed,out_of_memory,timed_out,lost,edited); alone: all of it.",
)
@click.option("--no-mlflow", is_flag=True, help="Do not track with MLflow.")
@click.option("--allow-code-execution", is_flag=True, help="Let tasks run model-written code, in a sandbox.")
@click.option("-q", "--quiet", is_flag=True, help="Show failures and the final table only.")
@click.pass_obj
def run(
    block: tuple[str, ...], /, device: str, workers: int, pack: str, compiled: str, recomputes: bool,
    trial_seconds: float, retry: str | None, no_mlflow: bool, allow_code_execution: bool, quiet: bool, **options: Any,
) -> int:  # fmt: skip
    """Train and score methods on tasks. Finished trials are never run again; what did not finish may be."""
    from harness.planning.retry import Retry, parse_states

    asked = () if retry is None else parse_states(retry)
    from harness.running.process import kill, launch

    launched = launch()  # before anything else: it takes as long to load its libraries as this process does
    click.get_current_context().call_on_close(lambda: kill(launched))

    import torch

    from harness.planning.plan import pending, plan_cells
    from harness.planning.published import read_published
    from harness.planning.registry import build_registry
    from harness.results.catalogue import write_catalogue
    from harness.results.store import Store
    from harness.running.environment import conditions, describe_environment
    from harness.running.progress import Display
    from harness.running.schedule import Scheduler, Settings

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's "stop" is a Ctrl-C
    if no_mlflow:
        block = (*block, "trackers:mlflow")
    registry = build_registry(block)
    suite, data_dir = build_suite_from_options(registry, options)
    devices, threads = resolve_devices(device, workers)
    store = Store(options["results"])
    how: dict[str, Any] = {
        "pack": parse_pack(pack, devices[0]), "compiled": compiled, "recomputes": recomputes,
        "trial_seconds": trial_seconds, "allow_code_execution": allow_code_execution,
    }  # fmt: skip
    retries = Retry(conditions(devices, **how), asked)
    settings = Settings(
        devices=devices,
        threads=threads,
        retry=retries,
        **how,
        published=read_published(suite, registry),
        data_dir=data_dir,
        block=block,
        environment={
            **describe_environment(torch.device("cpu")),
            "command": shlex.join(["harness", *sys.argv[1:]]),
            "results_root": store.root,
            "sweep": suite.title or " ".join(suite.tasks),
        },
    )
    display = Display(quiet)
    scheduler = Scheduler(registry, store, settings, display, launched)
    known: dict[str, Record] = {}

    def look_up(trial: Trial) -> Record | None:
        if trial.id not in known and (record := store.read(trial.id)) is not None:
            known[trial.id] = record
        return known.get(trial.id)

    try:
        scheduler.start()
        cells = plan_cells(suite, registry, data_dir, resolve_precision(suite.precision, devices[0]))
        store.prepare()
        write_catalogue(store, registry, [cell.template for cell in cells])
        todo = pending(cells, look_up, retries.settles)
        with display:
            while todo:
                display.expect(len(todo))
                scheduler.run(todo)
                for trial in todo:
                    known.pop(trial.id, None)
                todo = pending(cells, look_up, retries.settles)
    finally:
        scheduler.close()
    records = finished(cells, look_up, retries.settles)
    click.echo(summary(scheduler.observers, records))
    where = "" if store.root == "results" else f" --results {shlex.quote(store.root)}"  # for commands to copy
    if display.total:
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
    if scheduler.observers.failures:
        complete = "" if failed or unscored else "results complete, "
        click.echo(
            f"harness: {complete}tracking incomplete (see the warnings); `harness track rebuild{where}` repairs it",
            err=True,
        )
    return TRIALS_FAILED if failed else TRACKING_INCOMPLETE if scheduler.observers.failures else 0


def parse_pack(text: str, device: str) -> int:
    """Return the most trials in a pack; 0: the worker measures. On a CPU packing saves nothing, so ``auto`` is 1."""
    if text in ("auto", "off"):
        return 0 if text == "auto" and device.startswith("cuda") else 1
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise UsageError(f"--pack {text!r}: give auto, off or a number of trials")


def finished(
    cells: Sequence[Cell], look_up: Callable[[Trial], Record | None], settles: Callable[[Record], bool]
) -> list[Record]:
    """Return the records of a sweep's trials."""
    from harness.planning.plan import wanted

    trials = [trial for cell in cells for trial in wanted(cell, look_up, settles)]
    return [record for trial in trials if (record := look_up(trial)) is not None]


def summary(observers: Observers, records: Sequence[Record]) -> str:
    """Return what plugins have to say about a finished sweep, usually a table.

    A plugin that fails here loses its own text only, and is counted as an observer that failed.
    """
    return "\n".join(str(text) for text in observers.call("harness_summarize", records=records) if text is not None)
