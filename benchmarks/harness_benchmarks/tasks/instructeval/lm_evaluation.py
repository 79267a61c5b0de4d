"""Scoring an in-memory model with EleutherAI's lm-eval, over rows in memory and the task files beside this module.

Nothing is downloaded: rows come from the harness, metrics from lm-eval's own accuracy or from ``scoring``. ``lm_eval``
is imported when it is used, since it comes with an extra.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from harness import DataError, UsageError, continuations

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """What one lm-eval task scores.

    Attributes:
        file: Name of the task file, without ``.yaml``.
        name: Of the task, unique in a run.
        rows: To be scored.
        shots: Rows that can stand in the prompt.
        num_shots: How many of them do.
        max_new_tokens: Longest output in tokens; auto: as the file says.
    """

    file: str
    name: str
    rows: Sequence[Row]
    shots: Sequence[Row] = ()
    num_shots: int = 0
    max_new_tokens: int | Literal["auto"] = "auto"

    @cached_property
    def task(self) -> Any:
        """Return lm-eval's task. It writes its prompts once, however many models it scores."""
        from lm_eval.api.task import ConfigurableTask

        class PreparedTask(ConfigurableTask):
            _instances: Any = ()

            def build_all_requests(self, **options: Any) -> None:
                if not self._instances:
                    super().build_all_requests(**options)
                for each in self._instances:
                    each.resps, each.filtered_resps = [], {}

        return PreparedTask(config=task_config(self))


def require_lm_eval() -> None:
    """Check that lm-eval is installed.

    Raises:
        UsageError: It is not; the message says how to install it.
    """
    if find_spec("lm_eval") is None:
        raise UsageError(
            "instructeval: scoring needs lm-eval, which is not installed; `pip install 'peft-harness[evaluation]'`"
        )


def task_config(part: Part) -> dict[str, Any]:
    """Return the configuration of one lm-eval task: its file, with its rows and number of shots filled in."""
    from datasets import Dataset, DatasetDict

    if part.num_shots > len(part.shots):
        raise DataError(f"{part.name}: {part.num_shots} shots are asked for, and there are {len(part.shots)}")
    tables = {"test": Dataset.from_list([dict(row) for row in part.rows])}
    if part.shots:
        tables["shots"] = Dataset.from_list([dict(row) for row in part.shots])
    config = read_task_file(part.file)
    if not part.shots:  # no table to draw them from
        config.pop("fewshot_split", None)
        config.pop("fewshot_config", None)
    if part.max_new_tokens != "auto" and "generation_kwargs" in config:
        config["generation_kwargs"] = {**config["generation_kwargs"], "max_gen_toks": part.max_new_tokens}
    return {
        **config,
        "task": part.name,
        "num_fewshot": part.num_shots,
        "custom_dataset": lambda **_: DatasetDict(tables),
    }


def read_task_file(name: str) -> dict[str, Any]:
    """Return a task file as plain values; ``!function module.name`` is a function of this folder."""
    import yaml  # type: ignore[import-untyped]

    class Loader(yaml.SafeLoader):
        pass

    def function(loader: Any, node: Any) -> Any:
        module, _, attribute = loader.construct_scalar(node).rpartition(".")
        return getattr(import_module(f"{__package__}.{module}"), attribute)

    Loader.add_constructor("!function", function)
    text = (Path(__file__).with_name(f"{name}.yaml")).read_text(encoding="utf-8")
    result: dict[str, Any] = yaml.load(text, Loader)  # noqa: S506 - derived from SafeLoader
    return result


def samples(
    model: Any,
    tokenizer: Any,
    parts: Sequence[Part],
    batch_size: int,
    allow_code_execution: bool = False,
) -> dict[str, list[dict[str, Any]]]:
    """Return each part's samples as lm-eval logs them, one per row and in the rows' order: outputs and metrics.

    Args:
        model: A causal language model from ``transformers``, in evaluation mode.
        tokenizer: Its tokenizer.
        parts: What to score; all prompts of one kind are batched together.
        batch_size: Prompts per batch.
        allow_code_execution: Needed for task files that run what the model wrote.
    """
    require_lm_eval()
    with _quiet():
        from lm_eval.evaluator import evaluate

        # `evaluate`, not `simple_evaluate`: that one reseeds every global generator, in the middle of training.
        results = evaluate(
            _language_model(model, tokenizer, batch_size),
            {part.name: part.task for part in parts},
            bootstrap_iters=0,
            confirm_run_unsafe_code=allow_code_execution,
        )
    return {part.name: sorted(results["samples"][part.name], key=lambda each: int(each["doc_id"])) for part in parts}


def _language_model(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """Return lm-eval's model, whose tokens are chosen by the harness's decoding: the same ones, and faster on a GPU."""
    from lm_eval.models.huggingface import HFLM

    class InMemory(HFLM):
        def _model_generate(
            self, context: Tensor, max_length: int, stop: list[str], attention_mask: Tensor, **options: Any
        ) -> Tensor:
            assert not options["do_sample"], "the task files of this folder ask for greedy decoding"
            length = max_length - context.shape[1]
            return torch.cat([context, continuations(model, tokenizer, context, attention_mask, length, stop=stop)], 1)

    return InMemory(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's advice about command lines out of the logs."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
