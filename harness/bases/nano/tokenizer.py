"""The tokenizer of ``nano``: a token for every byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.bases.nano import recipe


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer that maps every byte of UTF-8 text to the token of the same number.

    It is a byte-level BPE without a single merge, so ``AutoTokenizer`` loads it offline and runs no code of
    ours. It adds no special token by itself, and reads ``<|eos|>`` in a text as seven bytes, not as the end.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = _byte_letters()
    tokenizer = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in letters.items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in recipe.SPECIAL_TOKENS.values()]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": recipe.SPECIAL_TOKENS[recipe.PAD],
        "bos_token": recipe.SPECIAL_TOKENS[recipe.BOS],
        "eos_token": recipe.SPECIAL_TOKENS[recipe.EOS],
        "padding_side": "left",  # generation continues at the right edge
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": recipe.ARCHITECTURE["max_position_embeddings"],
    }
    write_json(folder / "tokenizer_config.json", settings)


def _byte_letters() -> dict[int, str]:
    """Give the printable letter that stands for each byte in a ByteLevel vocabulary.

    Printable Latin-1 bytes stand for themselves; the others take the letters from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters.update({byte: chr(0x100 + order) for order, byte in enumerate(hidden)})
    return letters


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file for people to read."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
