"""What all tasks on users' data share: the tables, rows that are too long, slices by hash."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from harness import (
    DataError,
    DataKind,
    DataTask,
    Example,
    OwnRecipe,
    OwnRow,
    OwnTables,
    Source,
    Table,
    TaskContext,
    read_own,
)
from harness_benchmarks.tasks.instructions import subsample

logger = logging.getLogger(__name__)

MOST_NAMED = 5  # rows that a message names
UNLIMITED = 1_000_000  # tokens: what a tokenizer without a limit says is more


class OwnTask(DataTask):
    """A task on a user's rows. Subclasses say how rows become examples and scores."""

    seeded_data = False
    kind: ClassVar[DataKind]
    source = Source(
        licence="the user's",
        note="The user's own rows. Splits that are not given are made by a hash of what the model is given, so that "
        "rows which ask the same stay on one side.",
    )

    def tables(self, recipe: Any) -> Sequence[Table]:
        """Return the user's tables."""
        return list(recipe.tables().values())

    def rows(self, context: TaskContext) -> OwnTables:
        """Return the user's rows, checked and split."""
        return read_own(context.recipe, self.kind, context.data_dir)

    def check(self, context: TaskContext) -> None:
        """Refuse rows that are not what they should be, or longer than the model takes; say what a model misreads."""
        self.load(context)
        tables = self.rows(context)
        if said := misread([row for rows in tables.splits.values() for row in rows], context.tokenizer):
            logger.warning(said)


def misread(rows: Sequence[OwnRow], tokenizer: Any) -> str:
    """Return what there is to say about rows whose text holds a tokenizer's special tokens, or nothing.

    A tokenizer takes these for what they are in a template: the end of a turn or of the text, not its characters.
    """
    added = (str(each) for each in tokenizer.added_tokens_decoder.values() if each.special)
    names = sorted({*tokenizer.all_special_tokens, *added} - {""}, key=len, reverse=True)
    if not names:
        return ""
    name = re.compile("|".join(map(re.escape, names)))
    found = [(row.place, match[0]) for row in rows if (match := next(_matches(name, row), None))]
    if not found:
        return ""
    place, token = found[0]
    return (
        f"the text of {len(found)} rows holds what this model reads as a special token, not as its characters, e.g. "
        f"{token!r} ({place}): take it out, unless that is what it is there for"
    )


def _matches(name: re.Pattern[str], row: OwnRow) -> Iterator[re.Match[str]]:
    texts = (*row.texts, *(content for _, content in row.turns))
    return (match for text in texts if (match := name.search(text)))


def scored(rows: Sequence[OwnRow], recipe: OwnRecipe) -> list[OwnRow]:
    """Return the rows that are scored."""
    return subsample(rows, recipe.test_rows, lambda row: row.key)


def token_limit(context: TaskContext) -> int:
    """Return the most tokens of an example: the recipe's, the tokenizer's and the model's limits allow."""
    limits = [context.recipe.max_length]
    if context.tokenizer.model_max_length < UNLIMITED:
        limits.append(context.tokenizer.model_max_length)
    if context.base_model is not None:
        positions = getattr(context.base_model.config, "max_position_embeddings", None)
        if positions:
            # Models of RoBERTa's family count positions from behind the padding token's number.
            skipped = [
                module.padding_idx + 1
                for name, module in context.base_model.named_modules()
                if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
            ]
            limits.append(positions - max(skipped, default=0))
    return int(min(limits))


def fitting(
    rows: Sequence[OwnRow], examples: Sequence[Example], context: TaskContext, cut: Callable[[int], Sequence[Example]]
) -> tuple[list[OwnRow], list[Example]]:
    """Return rows and their examples, with what is too long refused, cut or left out as the recipe says.

    Args:
        rows: As read.
        examples: Of the rows, whole.
        context: Has the recipe, the tokenizer and the model.
        cut: Makes the examples anew, of at most so many tokens.

    Raises:
        DataError: Rows are too long and the recipe does not say what to do, or nothing is left.
    """
    limit, recipe = token_limit(context), context.recipe
    long = [place for place, each in enumerate(examples) if len(each.input_ids) > limit]
    if long and recipe.too_long == "refuse":
        named = "; ".join(f"{rows[i].place}: {len(examples[i].input_ids):,} tokens" for i in long[:MOST_NAMED])
        more = f" and {len(long) - MOST_NAMED} more" if len(long) > MOST_NAMED else ""
        longer = (
            f" --set max_length={max(len(examples[i].input_ids) for i in long)}," if limit == recipe.max_length else ""
        )
        raise DataError(
            f"data: {len(long)} rows are longer than {limit} tokens, {named}{more}; shorten them, or give{longer} "
            "--set too_long=cut or --set too_long=leave_out"
        )
    if long and recipe.too_long == "cut":
        examples = cut(limit)
    kept = [i for i in range(len(rows)) if i not in set(long)] if recipe.too_long == "leave_out" else range(len(rows))
    if not kept:
        raise DataError(f"data: every row is longer than {limit} tokens; shorten them, or give --set too_long=cut")
    return [rows[i] for i in kept], [examples[i] for i in kept]
