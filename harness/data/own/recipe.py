"""What a trial must know of its user's data: fields of its recipe, so that a worker reads the same rows again.

Paths are relative to the data folder, which decides nothing: the content does, whose hash is in the trial (``data``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.contract.setting import setting
from harness.contract.task import Recipe, Source, Table


@dataclass(frozen=True, kw_only=True)
class OwnRecipe(Recipe):
    """A recipe on data that a user brings. The command line fills in the first seven fields from what it finds."""

    splits: tuple[str, ...] = ()  # "train=folder/train", ..., or "all=file.csv" where the splits are to be made
    hub_id: str = setting("", "data set on the hub; empty: local files")
    hub_config: str = setting("", "its configuration")
    hub_revision: str = setting("", "its pinned commit")
    columns: tuple[str, ...] = ()  # "prompt=question", ...
    labels: tuple[str, ...] = ()  # of a classification, in the order of the model's outputs
    metric_source: str = setting("", "module of `evaluate` that gives the main metric, and after ':' its key")
    validation_fraction: float = setting(
        0.1, "share of the rows that choices are made on, where there is no such split", minimum=0.01, maximum=0.45
    )
    test_fraction: float = setting(
        0.1, "share of the rows that are scored, where there is no such split", minimum=0.01, maximum=0.45
    )
    too_long: str = setting(
        "refuse", "what to do with rows longer than max_length tokens", choices=("refuse", "cut", "leave_out")
    )
    test_rows: int | Literal["all"] = setting(
        "all", "most rows to score, chosen by their hash", kind=int, formerly=0, minimum=1
    )

    def tables(self) -> dict[str, Table]:
        """Return where each split is read; ``all`` stands for one table that splits are made of."""
        found: dict[str, Table] = {}
        for each in self.splits:
            split, _, path = each.partition("=")
            if self.hub_id:
                source = Source(self.hub_id, self.hub_config, self.hub_revision, "the user's")
                found[split] = Table(source, path)
            else:
                folder, _, name = path.rpartition("/")
                is_file = "." in name
                found[split] = Table(Source(folder=path if is_file else folder or ".", licence="the user's"), name)
        return found

    def roles(self) -> dict[str, str]:
        """Return the column of each role, e.g. ``{"prompt": "question"}``."""
        return dict(each.split("=", 1) for each in self.columns)
