"""Turns as a model reads them: by its tokenizer's chat template, or plainly where it has none.

A conversation becomes pieces of text, each with or without loss; each piece is tokenised by itself, as it is when the
model writes: first the prompt is read, then the answer follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from harness import IGNORE, DataError, Example

Turns = Sequence[tuple[str, str]]
PLAIN = {"system": "{}\n\n", "user": "### User:\n{}\n\n", "assistant": "{}"}
ANSWER = "### Assistant:\n"  # what comes before an answer
AFTER = "\n\n"  # what comes after one, if more follows


class Piece(NamedTuple):
    """A part of a conversation."""

    text: str
    trains: bool


def resolve_template(template: str, tokenizer: Any) -> str:
    """Return ``chat`` or ``plain``: what ``auto`` means for a tokenizer.

    Raises:
        DataError: The chat template is asked for, and there is none.
    """
    has = bool(tokenizer.chat_template)
    if template == "chat" and not has:
        raise DataError("template=chat: this model's tokenizer has no chat template; give --set template=plain")
    return ("chat" if has else "plain") if template == "auto" else template


def pieces(turns: Turns, tokenizer: Any, template: str) -> list[Piece]:
    """Return a conversation in pieces; those of the assistant carry loss.

    Raises:
        DataError: The chat template refuses the turns, or writes them differently when more follow.
    """
    if template == "plain":
        return _plain(turns, tokenizer)
    messages = [{"role": role, "content": content} for role, content in turns]
    found: list[Piece] = []
    done = ""
    for place, (role, _) in enumerate(turns):
        if role != "assistant":
            continue
        before = _render(messages[:place], tokenizer, prompting=True)
        after = _render(messages[: place + 1], tokenizer, prompting=False)
        if not before.startswith(done) or not after.startswith(before):
            raise DataError(
                f"the chat template writes what comes before turn {place + 1} differently once more follows, so what "
                "the assistant's turns are cannot be told; give --set template=plain, or one answer a row"
            )
        found += [Piece(before[len(done) :], False), Piece(after[len(before) :], True)]
        done = after
    return found


def _render(messages: Sequence[Any], tokenizer: Any, prompting: bool) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompting)
    except (TemplateError, ValueError) as error:
        raise DataError(f"the chat template refuses these turns: {error}") from error
    return text


def _plain(turns: Turns, tokenizer: Any) -> list[Piece]:
    found: list[Piece] = []
    asked = ""
    for role, content in turns:
        if role == "assistant":
            found += [Piece(asked + ANSWER, False), Piece(content + tokenizer.eos_token, True)]
            asked = AFTER
        else:
            asked += PLAIN[role].format(content)
    return found


def beginning(tokenizer: Any, template: str) -> list[int]:
    """Return the tokens before the first piece: a chat template writes its own, else the tokenizer's usual ones."""
    if template != "plain":
        return []
    return [token for token in tokenizer("")["input_ids"] if token != tokenizer.eos_token_id]


def encode_pieces(parts: Sequence[Piece], tokenizer: Any, template: str) -> Example:
    """Return pieces as one example."""
    ids = beginning(tokenizer, template)
    labels = [IGNORE] * len(ids)
    for piece in parts:
        tokens = tokenizer(piece.text, add_special_tokens=False)["input_ids"]
        ids += tokens
        labels += tokens if piece.trains else [IGNORE] * len(tokens)
    return Example(ids, labels)


def prompt_of(parts: Sequence[Piece], tokenizer: Any, template: str) -> list[int]:
    """Return the tokens after which the model is to write the last answer."""
    return list(encode_pieces(parts[:-1], tokenizer, template).input_ids)
