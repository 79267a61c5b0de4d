"""Tokenised examples as flat arrays of four bytes a token, kept on disk: made once for all workers, trials and runs.

A table's folder is named by a hash of the texts and of all that their tokens depend on, so it is never out of date, and
it may be deleted at any time. Tables are read memory-mapped: workers of one machine share them.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np

from harness.contract.task import Example

logger = logging.getLogger(__name__)

FEWEST = 10_000  # examples; fewer are tokenised again sooner than anybody would look for their files


class TokenTable(Sequence[Example]):
    """Examples in flat arrays.

    Attributes:
        ids: (N,) int32, the tokens of all examples.
        starts: (examples + 1,) int64, where each begins, and the end.
        labels: (N,) int32, one per token, or (examples,) int64 or float64, one per example.
        types: (N,) int8, which of a pair of texts each token is of; (0,) where nobody says.
    """

    ARRAYS = ("ids", "starts", "labels", "types")

    def __init__(self, ids: Any, starts: Any, labels: Any, types: Any) -> None:
        self.ids, self.starts, self.labels, self.types = ids, starts, labels, types

    @classmethod
    def of(cls, examples: Sequence[Example]) -> TokenTable:
        """Return examples as a table. All have one label per token or all have one, and types or none."""
        starts = np.cumsum([0, *(len(each.input_ids) for each in examples)], dtype=np.int64)
        if isinstance(examples[0].labels, (int, float)):
            labels = np.asarray([each.labels for each in examples])
            labels = labels.astype(np.result_type(labels, np.int64))
        else:
            labels = np.concatenate([np.asarray(each.labels, dtype=np.int32) for each in examples])
        ids = np.concatenate([np.asarray(each.input_ids, dtype=np.int32) for each in examples])
        types = [np.asarray(each.token_type_ids, np.int8) for each in examples if each.token_type_ids is not None]
        return cls(ids, starts, labels, np.concatenate(types) if types else np.zeros(0, np.int8))

    @classmethod
    def read(cls, folder: Path) -> TokenTable:
        """Return a table from its files, memory-mapped."""
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in cls.ARRAYS))

    def write(self, folder: Path) -> None:
        """Write the table's files, or none of them."""
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        unfinished.mkdir(parents=True, exist_ok=True)
        try:
            for name in self.ARRAYS:
                np.save(unfinished / f"{name}.npy", getattr(self, name), allow_pickle=False)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> list[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | list[Example]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(f"example {place} of {len(self)}")
        place %= len(self)
        part = slice(int(self.starts[place]), int(self.starts[place + 1]))
        labels = self.labels[part] if self.labels.dtype == np.int32 else self.labels[place].item()
        return Example(self.ids[part], labels, self.types[part] if len(self.types) else None)


def tokenised_once(
    texts: Sequence[str], settings: Sequence[Any], tokenizer: Any, encode: Callable[[], Sequence[Example]]
) -> Sequence[Example]:
    """Return ``encode()``, or what it returned before for the same texts, settings and tokenizer.

    Args:
        texts: Everything that is tokenised, and labels, as text; in order.
        settings: What else the examples depend on, in plain JSON types, such as the longest length.
        tokenizer: From ``transformers``; one that is not of the ``tokenizers`` library has no content to go by, and
            encodes anew.
        encode: Makes the examples. The file that defines it counts too: when it is changed, so may the tokens be.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if len(texts) < FEWEST or backend is None:
        return encode()
    from filelock import FileLock
    from platformdirs import user_cache_path

    digest = hashlib.sha256(_identity(tokenizer).encode() + Path(inspect.getfile(encode)).read_bytes())
    digest.update(json.dumps([*settings, len(texts)]).encode())
    for text in texts:
        content = text.encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    folder = user_cache_path("peft-harness") / "tokens" / digest.hexdigest()[:32]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # one worker tokenises, the others wait for it
            if not folder.is_dir():
                if not (examples := encode()):
                    return examples
                TokenTable.of(examples).write(folder)
            return TokenTable.read(folder)
    except (OSError, ValueError) as error:
        logger.warning("tokens cannot be kept in %s, so each worker makes them anew: %s", folder.parent, error)
        return encode()


@lru_cache(maxsize=4)
def _identity(tokenizer: Any) -> str:
    """Return all that a tokenizer's output depends on."""
    return json.dumps([tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map], default=str)
