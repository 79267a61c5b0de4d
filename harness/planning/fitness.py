"""Whether a base model can serve a task at all, found before anything trains.

    architecture   no token sees those that follow, no text its padding: run with made-up weights
    tokenizer      the special tokens that batches and texts need
    positions      no text is longer than the model can take

What is not here: whether methods fit its layers (``plan``), what is found out by running a model (``engine``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from harness.bases import resolve
from harness.contract.task import ModelKind, Task, TaskContext
from harness.engine.behaviour import check_behaviour, check_gradients, position_limit
from harness.engine.losses import check_loss
from harness.engine.model import ModelChoice, load_tokenizer
from harness.engine.probe import stand_in
from harness.errors import ConfigError, HarnessError


def check_fitness(choice: ModelChoice, task: Task, recipe: Any, skeleton: nn.Module) -> int | None:
    """Refuse a base model that cannot serve a task, whatever its data: a task may count on the rest.

    Args:
        choice: The model, as the user named it.
        task: The task.
        recipe: Its recipe, resolved.
        skeleton: The model without weights.

    Returns:
        How many tokens of a text the model can take; ``None``: no limit is known.

    Raises:
        ConfigError: Names the model, what is wrong with it, and what to do.
    """
    model = stand_in(skeleton)
    limit = None  # a worker tries it with its weights
    if model is not None:
        try:
            check_behaviour(model, task.model_kind)
            check_gradients(model)
            if task.model_kind in (ModelKind.CAUSAL_LM, ModelKind.FROM_SCRATCH):
                check_loss(model)
            limit = position_limit(model)
        except ConfigError as error:
            raise ConfigError(f"task {task.name!r}, model {choice.name!r}: {error}") from error
    _check_tokens(choice, task, recipe)
    return limit


def _check_tokens(choice: ModelChoice, task: Task, recipe: Any) -> None:
    """Check that there is a token to fill batches with, and one that ends a text."""
    if _names_tokens(choice, task, recipe):
        return
    tokenizer = load_tokenizer(choice, task, recipe)
    missing = [] if tokenizer.pad_token is not None else ["pad_token (or eos_token or unk_token in its place)"]
    if task.model_kind in (ModelKind.CAUSAL_LM, ModelKind.FROM_SCRATCH) and tokenizer.eos_token is None:
        missing.insert(0, "eos_token")
    if missing:
        raise ConfigError(
            f"task {task.name!r}, model {choice.name!r}: its tokenizer has no {' and no '.join(missing)}; name the "
            "tokens in the model's tokenizer_config.json"
        )


def _names_tokens(choice: ModelChoice, task: Task, recipe: Any) -> bool:
    """Return whether a local tokenizer's own settings name both tokens. Loading a large one can take ten seconds."""
    name = task.tokenizer_name(recipe) if task.model_kind is ModelKind.FROM_SCRATCH else choice.name
    try:
        settings = json.loads((Path(resolve(name)) / "tokenizer_config.json").read_text(encoding="utf-8"))
        return bool(settings["pad_token"] and settings["eos_token"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_positions(
    limit: int | None, choice: ModelChoice, task: Task, recipe: Any, data_dir: Path | None
) -> None:  # fmt: skip
    """Read the task's texts where some could be too long for the model, and refuse those that are.

    Args:
        limit: As ``check_fitness`` returned it.
        choice: The model, as the user named it.
        task: The task.
        recipe: Its recipe, resolved.
        data_dir: Local tables, or ``None``.

    Raises:
        ConfigError: A text is longer than the limit.
    """
    if limit is None or limit >= recipe.max_length:
        return
    context = TaskContext(tokenizer=load_tokenizer(choice, task, recipe), recipe=recipe, seed=0, data_dir=data_dir)
    try:
        data = task.load(context)
    except HarnessError:
        raise
    except Exception:  # noqa: BLE001 - what is wrong with the data or the task is said when the trial runs
        return
    if not isinstance(data.train, Sequence):
        return
    longest = max((len(example.input_ids) for example in data.train), default=0)
    if longest > limit:
        raise ConfigError(
            f"task {task.name!r}, model {choice.name!r}: the longest text has {longest} tokens, and the model only "
            f"{limit} positions; cut the texts with --set max_length={limit}, where the task does that, or take a "
            "model with more positions"
        )
