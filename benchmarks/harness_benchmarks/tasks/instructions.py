"""What the instruction-following tasks share: prompts, the loss on the response only, written answers, slices by hash.

No task is registered here. The prompt is Stanford Alpaca's, which LLM-Adapters, MetaMath, PiSSA, MiLoRA and MELoRA use.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple, TypeVar

from harness import IGNORE, DataError, Example, TaskContext, generate, setting, tokenised_once
from harness_benchmarks.forgetting import ForgettingRecipe

Row = TypeVar("Row")

AT_ONCE = 4096  # conversations that are tokenised together: lists of tokens take many times the memory of their text

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


def prompts_tokens(prompts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Return prompts' token ids, with the tokenizer's beginning-of-text token and without its end-of-text token."""
    # Some tokenizers end every text.
    return [ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids for ids in _tokens(prompts, tokenizer, True)]


def _tokens(texts: Sequence[str], tokenizer: Any, special: bool) -> list[list[int]]:
    """Return texts' token ids. Together, fast tokenizers take them with all their threads."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=special)["input_ids"]
    return ids


def encode_turns(
    conversations: Sequence[Sequence[tuple[str, str]]], tokenizer: Any, max_length: int
) -> list[Example | None]:
    """Return a training example of each conversation of (prompt, response) turns.

    Each response ends with the end-of-text token, and the loss is on the responses only.

    Args:
        conversations: Of at least one turn each.
        tokenizer: Of the base model.
        max_length: Tokens; what is longer is cut at the end.

    Returns:
        ``None`` where the cut leaves no token that carries loss.
    """
    firsts = iter(prompts_tokens([turns[0][0] for turns in conversations], tokenizer))
    later = iter(_tokens([prompt for turns in conversations for prompt, _ in turns[1:]], tokenizer, False))
    responses = iter(_tokens([response for turns in conversations for _, response in turns], tokenizer, False))
    examples: list[Example | None] = []
    for turns in conversations:
        ids: list[int] = []
        labels: list[int] = []
        for turn in range(len(turns)):
            asked = next(later if turn else firsts)
            answer = [*next(responses), tokenizer.eos_token_id]
            ids += [*asked, *answer]
            labels += [*([IGNORE] * len(asked)), *answer]
        ids, labels = ids[:max_length], labels[:max_length]
        examples.append(Example(ids, labels) if any(label != IGNORE for label in labels) else None)
    return examples


def encode_all(
    conversations: Sequence[Sequence[tuple[str, str]]], tokenizer: Any, max_length: int
) -> Sequence[Example]:
    """Return the training examples of conversations, without those that ``max_length`` leaves no response.

    Raises:
        DataError: None is left.
    """

    def encode() -> list[Example]:
        parts = (conversations[start : start + AT_ONCE] for start in range(0, len(conversations), AT_ONCE))
        encoded = chain.from_iterable(encode_turns(part, tokenizer, max_length) for part in parts)
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
