"""Records and boards to the whole view."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness import __version__
from harness.contract.record import Record
from harness.results.catalogue import Catalogue
from harness.results.findings import Findings
from harness_leaderboard.boards.across import Across
from harness_leaderboard.boards.family import build_families
from harness_leaderboard.boards.model import Board
from harness_leaderboard.boards.notes import distinct_values
from harness_leaderboard.view.analyses import analysis_pages
from harness_leaderboard.view.board import board_view
from harness_leaderboard.view.model import SiteView
from harness_leaderboard.view.overview import family_view, overview, standings
from harness_leaderboard.view.pages import method_pages, task_pages
from harness_leaderboard.view.trials import Files, trial_shards


def site_view(
    records: Sequence[Record],
    boards: Sequence[Board],
    across: Sequence[Across] = (),
    *,
    catalogue: Catalogue | None = None,
    passed_over: Mapping[str, str] | None = None,
    links: Mapping[str, Files] | None = None,
    findings: Sequence[Findings] = (),
) -> SiteView:
    """Return everything that there is to show.

    Args:
        records: All of them, in order of trial id.
        boards: Built from them.
        across: The same across budgets.
        catalogue: What methods and tasks say about themselves.
        passed_over: Files among the records that are none, and why.
        links: Where the files of each trial are, as seen from the site; a trial that is not here is not linked.
        findings: Of analyses.
    """
    known = catalogue or {"methods": {}, "tasks": {}}
    views = tuple(board_view(board) for board in boards)
    files = {
        trial_id: f"boards/{view.slug}.html"
        for board, view in zip(boards, views, strict=True)
        for trial_id in _trial_ids(board)
    }
    return SiteView(
        overview=overview(boards, views),
        boards=views,
        families=tuple(family_view(each) for each in build_families(boards)),
        standings=standings(boards),
        methods=tuple(method_pages(boards, views, known)),
        tasks=tuple(task_pages(boards, views, across, records, known)),
        analyses=tuple(analysis_pages(findings, {record.trial_id for record in records})),
        trials=trial_shards(records, known, links or {}, files),
        record_count=len(records),
        passed_over=tuple(f"{path}: {why}" for path, why in sorted((passed_over or {}).items())),
        provenance=_provenance(records),
        environment=distinct_values(records),
        version=__version__,
    )


def _trial_ids(board: Board) -> list[str]:
    reported = [record.trial_id for row in board.all_rows for record in row.records]
    others = [each.trial_id for each in board.tuning] + [each.trial_id for each in board.failures]
    return [*reported, *others]


def _provenance(records: Iterable[Record]) -> Mapping[str, Mapping[str, int]]:
    """Return the distinct data, base models and plugins, and how many records hold each."""
    counts: dict[str, dict[str, int]] = {}
    for record in records:
        trial = record.trial
        facts: dict[str, Any] = {
            f"data of {trial.task}": trial.data or "not recorded",
            f"revision of {trial.model}": trial.model_revision or "not recorded",
            "precision": trial.precision,
            **({"weights of the base kept in": trial.quantize} if trial.quantize else {}),
            "record schema": str(record.schema_version),
            **{f"plugin of {kind} {getattr(trial, kind, kind)}": name for kind, name in trial.plugins.items()},
        }
        for key, value in facts.items():
            values = counts.setdefault(key, {})
            values[str(value)] = values.get(str(value), 0) + 1
    return {key: dict(sorted(counts[key].items())) for key in sorted(counts)}
