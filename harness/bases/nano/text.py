"""The text that ``nano`` learns from, as tokens: the standard library and random UUIDs."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.bases.nano import recipe
from harness.errors import DataError

# Never trained on, under any Python version: the yardstick for text.
HELD_OUT_MODULES = ("bisect", "fnmatch", "graphlib", "heapq", "shlex", "statistics", "textwrap")
# Tables and test suites, or missing from many systems' Python packages.
EXCLUDED_MODULES = (
    "distutils",
    "encodings",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "tkinter",
    "turtle",
    "turtledemo",
)
EXCLUDED_FOLDERS = ("test", "tests", "site-packages", "dist-packages", "__pycache__")
LEAST_CORPUS_BYTES = 2_000_000

SEPARATORS = (" ", "\n", "\t", "=", ",", ":", "|", ": ", " -> ", " => ")


def standard_library() -> Iterator[tuple[str, bytes]]:
    """Yield the name and source of every module of the standard library, sorted by name."""
    root = Path(sysconfig.get_path("stdlib"))
    for name in sorted(set(sys.stdlib_module_names).difference(EXCLUDED_MODULES)):
        files = [root / f"{name}.py", *sorted((root / name).rglob("*.py"))]
        for file in files:
            inside = file.relative_to(root)
            if file.is_file() and not set(inside.parts).intersection(EXCLUDED_FOLDERS):
                yield inside.as_posix(), file.read_bytes()


def held_out_text() -> bytes:
    """Return the source of the held-out modules, as this Python has it."""
    return b"".join(text for name, text in standard_library() if name.removesuffix(".py") in HELD_OUT_MODULES)


def uuid_document(generator: np.random.Generator) -> str:
    """Write a random pair of UUIDs, one UUID over and over, or a table of pairs of which some come again.

    The repetitions are the lesson that teaches copying: with pairs and tables alone, 10,000 steps did not.
    """

    def fresh() -> str:
        return str(uuid.UUID(bytes=generator.bytes(16), version=4))

    separator = SEPARATORS[generator.integers(len(SEPARATORS))]
    shape = generator.choice(["pair", "repetition", "table"], p=[0.3, 0.4, 0.3])
    if shape == "pair":
        return fresh() + separator + fresh()
    if shape == "repetition":
        return separator.join([fresh()] * int(generator.integers(2, 6)))
    lines = [fresh() + separator + fresh() for _ in range(generator.integers(2, 4))]
    lines += [lines[row] for row in generator.integers(len(lines), size=generator.integers(1, 4))]
    return "\n".join(lines)


@dataclass(frozen=True)
class Corpus:
    """What ``nano`` learns from, as tokens.

    Attributes:
        streams: By kind, the int16 tokens of all documents in a row, each ``<|bos|> ... <|eos|>``.
        starts: By kind, where a row may begin in its stream.
        size_bytes: Bytes of standard-library text.
        sha256: Hash of that text; equal hashes mean equal training data.
    """

    streams: Mapping[str, Tensor]
    starts: Mapping[str, Tensor]
    size_bytes: int
    sha256: str

    @classmethod
    def read(cls, seed: int, steps: int) -> Corpus:
        """Read the standard library and draw enough UUID documents for ``steps`` steps.

        Raises:
            DataError: This Python came without the source of its standard library.
        """
        from pydoc_data.topics import topics

        source = [text for name, text in standard_library() if name.removesuffix(".py") not in HELD_OUT_MODULES]
        documentation = [topics[topic].encode() for topic in sorted(topics)]
        text = b"".join(source + documentation)
        if len(text) < LEAST_CORPUS_BYTES:
            raise DataError(
                f"nano: only {len(text)} bytes of standard-library source under "
                f"{sysconfig.get_path('stdlib')}; the recipe needs {LEAST_CORPUS_BYTES} or more. "
                "Use a Python that was installed with its .py files."
            )
        generator = np.random.default_rng(seed)
        # About five passes over 32k rows: more random digits than a million parameters can learn by heart.
        needed = min(steps * recipe.ROWS["uuid"], 32_768) * recipe.TOKENS
        uuids: list[bytes] = []
        while needed > 0:
            uuids.append(uuid_document(generator).encode())
            needed -= len(uuids[-1]) + 2
        streams = {"source": _stream(source), "documentation": _stream(documentation), "uuid": _stream(uuids)}
        starts = {kind: torch.arange(len(stream) - recipe.TOKENS) for kind, stream in streams.items()}
        # UUID rows begin where a document does, half of them after its <|bos|>: so do prompts.
        heads = (streams["uuid"][: -recipe.TOKENS - 1] == recipe.BOS).nonzero().flatten()
        starts["uuid"] = torch.cat([heads, heads + 1])
        return cls(streams, starts, len(text), hashlib.sha256(text).hexdigest())

    def rows(self, generator: torch.Generator) -> Tensor:
        """Draw the rows of one step: int64, (B, T)."""
        drawn = []
        for kind, count in recipe.ROWS.items():
            starts = self.starts[kind]
            first = starts[torch.randint(len(starts), (count,), generator=generator)]
            drawn.append(self.streams[kind][first[:, None] + torch.arange(recipe.TOKENS)])
        return torch.cat(drawn).long()


def _stream(documents: list[bytes]) -> Tensor:
    """Concatenate documents as int16 tokens, each between ``<|bos|>`` and ``<|eos|>``."""
    head, tail = np.array([recipe.BOS], np.int16), np.array([recipe.EOS], np.int16)
    pieces = [part for document in documents for part in (head, np.frombuffer(document, np.uint8), tail)]
    return torch.from_numpy(np.concatenate(pieces, dtype=np.int16))
