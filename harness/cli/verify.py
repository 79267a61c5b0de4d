"""``harness verify``: whether records are what was written, follow from their items, and come out again."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.options import data_dir_option
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.contract.record import Record
    from harness.contract.task import Task
    from harness.planning.registry import Registry

NOT_VERIFIED = 1


@click.command()
@click.argument("where", metavar="RECORD|ROOT", default="results")
@click.option(
    "--signers",
    type=click.Path(path_type=Path),
    help="OpenSSH's file of allowed signers: every record must be signed by one of them.",
)
@click.option("--retrain", is_flag=True, help="Train the trial again here, and say whether it gives the same score.")
@click.option("--device", default="auto", show_default=True, help="For --retrain: auto, cpu, cuda or cuda:N.")
@click.option("--allow-code-execution", is_flag=True, help="Let tasks run model-written code, in a sandbox.")
@data_dir_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def verify(
    block: tuple[str, ...], /, where: str, signers: Path | None, retrain: bool, device: str, allow_code_execution: bool,
    data_dir: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Check digests and signatures of records, recompute their metrics from items, and train one again on request."""
    from harness.planning.registry import build_registry
    from harness.results.signing import read_signatures
    from harness.results.store import RECORD_NAME, Store
    from harness.results.verify import compare
    from harness.results.verify import verify as findings

    root, _, name = where.rstrip("/").rpartition("/")
    match = RECORD_NAME.fullmatch(name)
    store = Store((root or ".") if match else where)
    ids = [match[1]] if match else sorted(store.ids())
    if not ids:
        raise UsageError(f"no records in {where!r}; name a result root, or one record's .json file in it")
    if match and not store.ids() & {match[1]}:
        raise UsageError(f"there is no record {where!r}; name a result root, or one record's .json file in it")
    if retrain and len(ids) != 1:
        raise UsageError(f"--retrain trains one trial, and {where!r} holds {len(ids)}; name its .json file")
    registry, bad = build_registry(block), 0

    def task(name: str) -> type[Task] | None:
        try:
            return registry.task(name)
        except UsageError:  # of a plug-in that is not here: its metrics are means of their items, or not recomputed
            return None

    signatures = None if signers is None else read_signatures(store, signers)
    for problem in signatures.problems if signatures else ():
        click.echo(f"harness: {problem}", err=True)
    told: dict[str, Any] = {"records": []}
    for finding in findings(store, ids, task, signatures):
        bad += finding.is_bad
        told["records"].append({**asdict(finding), "is_bad": finding.is_bad})
        if not as_json:
            click.echo("\n    ".join([f"{finding.trial_id}  {finding.verdict}", *finding.notes]))
    click.echo(f"{len(ids)} records, {bad} not to be believed", err=True)
    if retrain and not bad:
        record = store.read(ids[0])
        assert record is not None
        _expect_the_same(registry, record, data_dir)
        same, said = compare(record, train_again(record, block, device, data_dir, allow_code_execution))
        told["retrained"] = {"is_reproduced": same, "notes": said}
        if not as_json:
            click.echo(f"{ids[0]}  {'reproduced' if same else 'not reproduced'}\n    {said}")
        bad += not same
    if as_json:
        click.echo(json.dumps(told, indent=1))
    return NOT_VERIFIED if bad else 0


def _expect_the_same(registry: Registry, record: Record, data_dir: Path | None) -> None:
    """Refuse to train again what is not the record's trial here: another score would say nothing about the record.

    Raises:
        UsageError: Data, model, method or task are not there, or not those that the record's trial had.
    """
    from harness.data.tables import identify_tables
    from harness.engine.model import choose_model

    trial = record.trial
    task = registry.task(trial.task)()
    recipe = trial.build_recipe(task)
    there = {
        "data": (trial.data, identify_tables(task.tables(recipe), data_dir)),
        "model": (trial.model_revision, choose_model(trial.model, trial.model_revision, task, recipe).revision),
    }
    for kind, name in (("method", registry.method(trial.method).name), ("task", trial.task)):
        here = registry.origin(kind, name).identity
        there[kind] = (trial.plugins.get(kind, here), here)
    for what, (recorded, found) in there.items():
        if recorded != found:
            raise UsageError(
                f"{record.trial_id}: its {what} is not here, so it cannot be trained again: the record has {recorded}, "
                f"here is {found}"
            )


def train_again(
    record: Record, block: tuple[str, ...], device: str, data_dir: Path | None, allow_code_execution: bool
) -> Record:
    """Return the record of a record's trial, trained here and now in a folder that is gone afterwards."""
    import torch

    from harness.planning.registry import build_registry
    from harness.results.store import Store
    from harness.running.devices import resolve_devices
    from harness.running.environment import describe_environment
    from harness.running.local import LocalExecutor
    from harness.running.schedule import Scheduler, Settings

    def watch(*_: Any) -> None:
        return

    registry = build_registry((*block, "trackers:mlflow"))
    devices, threads = resolve_devices(device, 1)
    with tempfile.TemporaryDirectory(prefix="harness-verify-") as folder:
        store = Store(folder)
        store.prepare()
        settings = Settings(
            executor=LocalExecutor(), devices=devices, threads=threads, pack=1, data_dir=data_dir,
            block=(*block, "trackers:mlflow"), allow_code_execution=allow_code_execution,
            environment={**describe_environment(torch.device("cpu")), "results_root": folder, "sweep": "verify"},
        )  # fmt: skip
        scheduler = Scheduler(registry, store, settings, watch)
        try:
            scheduler.run([record.trial])
        finally:
            scheduler.close()
        again = store.read(record.trial_id)
    assert again is not None
    return again
