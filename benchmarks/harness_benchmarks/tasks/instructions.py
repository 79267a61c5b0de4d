"""What the instruction-following tasks share: prompts, the loss on the response only, written answers, slices by hash.

No task is registered here. The prompt is Stanford Alpaca's, which LLM-Adapters, MetaMath, PiSSA, MiLoRA and MELoRA use.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from harness import IGNORE, DataError, Example, TaskContext, generate, setting, tokenised_once
from harness_benchmarks.forgetting import ForgettingRecipe

Row = TypeVar("Row")

WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


@dataclass(frozen=True, kw_only=True)
class AnswersRecipe(ForgettingRecipe):
    """A recipe with the sizes of what is held out, answered and measured. Its defaults are what a full run takes."""

    held_out: int = setting(500, "training rows kept for validation", minimum=1)
    limit: int | Literal["all"] = setting("all", "evaluation items per set", kind=int, formerly=0, minimum=1)
    evaluation_batch_size: int = setting(32, "prompts per batch when evaluating", minimum=1)


class Question(NamedTuple):
    """A question to be answered: its prompt as token ids, and the answer to match."""

    prompt: Sequence[int]
    answer: str


class Split(NamedTuple):
    """What is scored: sets of questions by name, on how many windows of WikiText forgetting is measured.

    And of a validation split the rows as training examples.
    """

    questions: Mapping[str, Sequence[Question]]
    forgetting_windows: int = 0
    examples: Sequence[Example] = ()


def instruction_prompt(instruction: str, given: str = "") -> str:
    """Return the prompt of an instruction and its optional input."""
    template = WITH_INPUT if given else WITHOUT_INPUT
    return template.format(instruction=instruction, input=given)


def prompt_tokens(prompt: str, tokenizer: Any) -> list[int]:
    """Return a prompt's token ids, with the tokenizer's beginning-of-text token and without its end-of-text token."""
    tokens: list[int] = tokenizer(prompt)["input_ids"]
    if tokens and tokens[-1] == tokenizer.eos_token_id:  # some tokenizers end every text
        tokens = tokens[:-1]
    return tokens


def encode_turns(turns: Iterable[tuple[str, str]], tokenizer: Any, max_length: int) -> Example | None:
    """Return one training example of (prompt, response) turns; each response ends with the end-of-text token.

    Args:
        turns: At least one. The loss is on the responses only.
        tokenizer: Of the base model.
        max_length: Tokens; what is longer is cut at the end.

    Returns:
        ``None`` where the cut leaves no token that carries loss.
    """
    ids: list[int] = []
    labels: list[int] = []
    for prompt, response in turns:
        asked = (
            prompt_tokens(prompt, tokenizer) if not ids else tokenizer(prompt, add_special_tokens=False)["input_ids"]
        )
        answer = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids += [*asked, *answer]
        labels += [*([IGNORE] * len(asked)), *answer]
    ids, labels = ids[:max_length], labels[:max_length]
    return Example(ids, labels) if any(label != IGNORE for label in labels) else None


def encode_all(
    conversations: Sequence[Sequence[tuple[str, str]]], tokenizer: Any, max_length: int
) -> Sequence[Example]:
    """Return the training examples of conversations, without those that ``max_length`` leaves no response.

    Raises:
        DataError: None is left.
    """

    def encode() -> list[Example]:
        encoded = [encode_turns(turns, tokenizer, max_length) for turns in conversations]
        return [example for example in encoded if example is not None]

    examples = tokenised_once([json.dumps(turns) for turns in conversations], [max_length], tokenizer, encode)
    if not examples:
        raise DataError(
            f"of {len(conversations)} examples none has a response within max_length={max_length} tokens; "
            f"give a larger one, e.g. --set max_length={2 * max_length}"
        )
    return examples


def write_answers(model: Any, context: TaskContext, questions: Sequence[Question]) -> list[str]:
    """Return what a model writes after each prompt, greedily, as the recipe's sizes say."""
    recipe, tokenizer = context.recipe, context.tokenizer
    prompts = [question.prompt for question in questions]
    outputs = generate(model, tokenizer, prompts, recipe.max_new_tokens, recipe.evaluation_batch_size)
    return [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in outputs]


def same(text: str) -> str:
    """Return a text's key for finding it again in another table: case and white space do not count."""
    return " ".join(text.lower().split())


def split_off(rows: Sequence[Row], count: int, key: Callable[[Row], str]) -> tuple[list[Row], list[Row]]:
    """Split off the rows of the ``count`` keys with the smallest hash, the same ones in every run and order of rows.

    Rows that share a key stay on one side, so that nothing held out is trained on.

    Returns:
        The rest, and the rows split off, both in the data's order.

    Raises:
        DataError: Nothing would be left.
    """
    distinct = sorted({key(row) for row in rows}, key=_hash)
    if len(distinct) <= count:
        raise DataError(
            f"of {len(distinct)} different rows {count} are to be set apart, for validation or as shots, which leaves "
            f"none; give a smaller number (--set held_out=N, shots=N) or more rows"
        )
    chosen = set(distinct[:count])
    return [row for row in rows if key(row) not in chosen], [row for row in rows if key(row) in chosen]


def subsample(rows: Sequence[Row], limit: int | Literal["all"], key: Callable[[Row], str]) -> list[Row]:
    """Return ``limit`` rows by smallest hash, in the data's order; or all of them.

    A larger limit contains every smaller one.
    """
    if limit == "all" or limit >= len(rows):
        return list(rows)
    order = sorted(range(len(rows)), key=lambda place: (_hash(key(rows[place])), place))
    return [rows[place] for place in sorted(order[:limit])]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def text_of(row: Mapping[str, Any], *names: str) -> str:
    """Return fields of a row as text; a field that is not there raises ``DataError`` naming it and those that are."""
    for name in names:
        if name not in row:
            raise DataError(f"data: a row has no field {name!r}; it has {', '.join(row)}")
    return "\n".join(str(row[name] or "") for name in names)
