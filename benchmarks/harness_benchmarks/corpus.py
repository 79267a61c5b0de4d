"""Text corpora for language modelling: documents in a shuffled order, packed into windows of equal length.

    Corpus      where the files are: C4-format JSON lines (one object with ``text`` per line), on the hub or in a folder
    Documents   their texts, shuffled, without end; can be stopped and resumed exactly
    Windows     token windows of equal length, no padding, documents joined by the end-of-text token
    WindowCache the same as training examples, tokenised once however many trials read them

Files are read one after the other and line by line, so that 300 GB of C4 need not fit anywhere. One document in a
hundred, chosen by its content, is held out of training: learning rates are chosen on those.

What is not here: scoring (the tasks).
"""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import tempfile
import weakref
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from harness import ConfigError, DataError, Example, Source, local_files, require

HELD_OUT = 100  # one document in so many is validation data
BUFFER = 10_000  # documents among which the next one is drawn
BATCH = 32  # documents tokenised together
HUB = "hf://datasets/"


@dataclass(frozen=True)
class Corpus:
    """Where a corpus is.

    Attributes:
        source: Hub id, pinned revision, local folder.
        hub_files: ``{split: (pattern with {}, number of files)}`` on the hub; empty if it is not there.
    """

    source: Source
    hub_files: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def files(self, split: str, data_dir: Path | None, folders: Sequence[str] = ()) -> list[str]:
        """Return paths or URLs of a split's files, in a fixed order.

        Args:
            split: ``train`` or ``validation``.
            data_dir: Local tables, or ``None`` for the hub.
            folders: Below ``data_dir``, in place of the source's own.

        Raises:
            DataError: They are not there.
        """
        if data_dir is None:
            return self._hub_urls(split)
        found: list[str] = []
        for folder in folders or (self.source.folder,):
            source = replace(self.source, folder=folder)
            require(source, [split], data_dir)
            found += map(str, local_files(source, split, data_dir))
        return found

    def _hub_urls(self, split: str) -> list[str]:
        wanted = f"give --data-dir (or HARNESS_DATA_DIR) with {self.source.folder}/{split}.jsonl(.gz)"
        if split not in self.hub_files:
            raise DataError(f"data: this corpus is not on the hub in a form that can be pinned; {wanted}")
        if os.environ.get("HF_HUB_OFFLINE") == "1":
            raise DataError(f"data: offline, so {self.source.hub_id!r} cannot be had; {wanted}")
        pattern, count = self.hub_files[split]
        root = f"{HUB}{self.source.hub_id}@{self.source.revision}"
        return [f"{root}/{pattern.format(number)}" for number in range(count)]


def read_texts(url: str) -> Iterator[str]:
    """Yield the texts of one file of JSON lines, gzipped or not. A hub file is fetched whole, into the hub's cache.

    Raises:
        DataError: It cannot be read, or a line has no text; the message names file and line.
    """
    line_number = 0
    try:
        path = _fetch(url) if url.startswith(HUB) else Path(url)
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for line in lines:
                line_number += 1
                yield json.loads(line)["text"]
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        where = f", line {line_number}" if line_number else ""
        raise DataError(
            f"data: {url}{where}: {type(error).__name__}: {error}. "
            "Each line must be a JSON object with a field 'text'; check the file, or the network"
        ) from error


def _fetch(url: str) -> Path:
    from huggingface_hub import hf_hub_download

    repository, _, rest = url.removeprefix(HUB).partition("@")
    revision, _, name = rest.partition("/")
    return Path(hf_hub_download(repository, name, repo_type="dataset", revision=revision))


def is_held_out(text: str) -> bool:
    """Return whether a document of the training files is kept for validation. Its content alone decides."""
    return zlib.crc32(text.encode()) % HELD_OUT == 0


class Documents(Iterator[str]):
    """Training documents in an order that depends on the seed alone: files shuffled, then texts within a buffer.

    Endless: after the last document of the last file comes the next epoch, in another order.

    Args:
        files: Paths or URLs.
        seed: Of the order.
        buffer: Documents among which the next one is drawn.
        state: From ``state()`` of another one over the same files: goes on right after it.
    """

    def __init__(
        self, files: Sequence[str], seed: int, buffer: int = BUFFER, state: Mapping[str, Any] | None = None
    ) -> None:
        self._files, self._seed, self._size = list(files), seed, buffer
        self._random = random.Random(seed)  # noqa: S311 - reproducible data, not cryptography
        self._epoch = self._file = self._line = 0
        self._buffer: list[str] = []
        if state is not None:
            self._epoch, self._file, self._line = state["epoch"], state["file"], state["line"]
            self._buffer = list(state["buffer"])
            version, numbers, gauss = state["random"]
            self._random.setstate((version, tuple(numbers), gauss))
        self._open()

    def state(self) -> dict[str, Any]:
        """Return where it stands, as plain JSON types."""
        version, numbers, gauss = self._random.getstate()
        return {
            "epoch": self._epoch, "file": self._file, "line": self._line, "buffer": list(self._buffer),
            "random": [version, list(numbers), gauss],
        }  # fmt: skip

    def __next__(self) -> str:
        """Return the next document."""
        self._fill()
        if not self._buffer:
            self._epoch, self._file, self._line = self._epoch + 1, 0, 0
            self._open()
            self._fill()
        if not self._buffer:
            raise DataError(f"data: no training document in {', '.join(self._files)}; every one is held out or missing")
        chosen = self._random.randrange(len(self._buffer))
        self._buffer[chosen], self._buffer[-1] = self._buffer[-1], self._buffer[chosen]
        return self._buffer.pop()

    def _open(self) -> None:
        """Start reading where ``_file`` and ``_line`` say, in this epoch's order of files."""
        order = random.Random(f"{self._seed}, epoch {self._epoch}").sample(self._files, len(self._files))  # noqa: S311
        self._order = order
        self._lines = islice(read_texts(order[self._file]), self._line, None) if self._file < len(order) else iter(())

    def _fill(self) -> None:
        """Read until the buffer is full or the epoch's files end."""
        while len(self._buffer) < self._size and self._file < len(self._order):
            text = next(self._lines, None)
            if text is None:
                self._file, self._line = self._file + 1, 0
                if self._file < len(self._order):
                    self._lines = read_texts(self._order[self._file])
                continue
            self._line += 1
            if not is_held_out(text):
                self._buffer.append(text)


class Windows(Iterator[list[int]]):
    """Windows of ``length`` tokens cut out of documents joined by the end-of-text token.

    Args:
        documents: Texts; where they end, an incomplete last window is dropped.
        tokenizer: From ``transformers``.
        length: Tokens per window.
        pending: Tokens that come before the next document, from ``state()``.
    """

    def __init__(self, documents: Iterator[str], tokenizer: Any, length: int, pending: Sequence[int] = ()) -> None:
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"tokenizer {tokenizer.name_or_path!r} has no end-of-text token to put between documents")
        self._documents, self._tokenizer, self._length = documents, tokenizer, length
        self._pending = deque(pending)

    def state(self) -> dict[str, Any]:
        """Return where it stands, as plain JSON types: resume with ``Windows.resume``."""
        assert isinstance(self._documents, Documents)
        return {"documents": self._documents.state(), "pending": list(self._pending)}

    @classmethod
    def resume(
        cls,
        state: Mapping[str, Any],
        files: Sequence[str],
        seed: int,
        tokenizer: Any,
        length: int,
        buffer: int = BUFFER,
    ) -> Windows:
        """Return windows that go on right after those whose ``state()`` this is."""
        return cls(Documents(files, seed, buffer, state["documents"]), tokenizer, length, state["pending"])

    def __next__(self) -> list[int]:
        """Return the next window."""
        while len(self._pending) < self._length:
            texts = list(islice(self._documents, BATCH))
            if not texts:
                raise StopIteration
            for tokens in self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
                self._pending += [*tokens, self._tokenizer.eos_token_id]
        return [self._pending.popleft() for _ in range(self._length)]


class WindowCache(Iterable[Example]):
    """Training examples, endless, in the windows' order. Every iterator starts at the first one.

    Windows are made when first asked for and then kept in a temporary file: the methods that train on the same seed
    share one pass of the tokenizer.
    """

    def __init__(self, windows: Windows, length: int) -> None:
        self._windows, self._bytes, self._made = windows, 4 * length, 0
        self._file = tempfile.TemporaryFile()  # lives as long as this object
        weakref.finalize(self, self._file.close)

    def __iter__(self) -> Iterator[Example]:
        """Yield every window from the first on."""
        number = 0
        while True:
            yield self.example(number)
            number += 1

    def example(self, number: int) -> Example:
        """Return window ``number``, from 0."""
        while self._made <= number:
            self._file.seek(0, os.SEEK_END)
            self._file.write(np.asarray(next(self._windows), dtype=np.int32).tobytes())
            self._made += 1
        self._file.seek(number * self._bytes)
        tokens: list[int] = np.frombuffer(self._file.read(self._bytes), dtype=np.int32).tolist()
        return Example(tokens, tokens)


def documents_of(windows: Sequence[Example], end_of_text: int) -> list[int]:
    """Return, for each of consecutive windows, the number of the document in which it starts."""
    numbers, number = [], 0
    for window in windows:
        numbers.append(number)
        number += sum(token == end_of_text for token in window.input_ids)
    return numbers


def perplexity(losses: Sequence[float]) -> float:
    """Return the perplexity of equally long windows, given their losses in nats a token."""
    return math.exp(sum(losses) / len(losses))


def validation_windows(
    files: Sequence[str], tokenizer: Any, length: int, count: int, held_out: bool = False
) -> list[Example]:
    """Return the first ``count`` windows of files in their order; fewer where the text ends before.

    Args:
        files: Paths or URLs.
        tokenizer: From ``transformers``.
        length: Tokens per window.
        count: Most windows.
        held_out: Only the documents that training leaves out.

    Raises:
        DataError: Not even one window.
    """
    texts = (text for url in files for text in read_texts(url) if not held_out or is_held_out(text))
    windows = list(islice(Windows(texts, tokenizer, length), count))
    if not windows:
        which = "held-out documents (one in a hundred)" if held_out else "documents"
        raise DataError(f"data: the {which} of {', '.join(files)} are shorter than one window of {length} tokens")
    return [Example(window, window) for window in windows]
