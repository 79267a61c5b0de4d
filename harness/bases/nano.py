"""The recipe of ``nano``, the shipped base model: a byte-level LLaMA of about 0.9 million parameters.

Read top to bottom: the recipe (architecture, optimiser, mixture), the tokenizer, the text it learns from, the
training loop, the yardstick, and ``build``, which does it all and says how close the result is to the
shipped one.

The text is on every machine that has Python: the source and documentation of the standard library. A fifth of
the diet is UUID-shaped strings drawn at random, because a base that already knows what a UUID looks like, and
how to copy one, leaves a fine-tuning method only the memorising to do. The standard library differs between
Python versions, so a rebuild is close to the shipped model, not identical; ``BuildReport`` says how close.

What is not here: finding the shipped files (``harness.bases``) and the command line.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import sys
import sysconfig
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from harness.bases import shipped_bases
from harness.errors import DataError, UsageError

# --- the recipe -----------------------------------------------------------------------------------

PAD, BOS, EOS = 256, 257, 258
SPECIAL_TOKENS = {PAD: "<|pad|>", BOS: "<|bos|>", EOS: "<|eos|>"}

# Layer sizes are divisible by 2, 4, 8, 16, 32, 64 and 128, so that block-diagonal methods fit every layer.
ARCHITECTURE: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 259,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.05,  # half of 1/sqrt(hidden); the usual 0.02 is for wide models
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}

STEPS = 10_000
ROWS = {"source": 38, "documentation": 13, "uuid": 13}  # rows of one step, by what they are cut from
TOKENS = 512  # length of a row
LEARNING_RATE = 3e-3
WARMUP_STEPS = 300
WEIGHT_DECAY = 0.1
BETAS = (0.9, 0.95)
GRADIENT_NORM = 1.0

LICENCE = (
    "The weights are under Apache-2.0, like the rest of the package. They were trained on the source and "
    "documentation of Python's standard library (PSF License Agreement) and on random strings; the package "
    "ships none of that text."
)

# --- the tokenizer --------------------------------------------------------------------------------


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
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS.values()])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": SPECIAL_TOKENS[PAD],
        "bos_token": SPECIAL_TOKENS[BOS],
        "eos_token": SPECIAL_TOKENS[EOS],
        "padding_side": "left",  # generation continues at the right edge
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": ARCHITECTURE["max_position_embeddings"],
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _byte_letters() -> dict[int, str]:
    """Give the printable letter that stands for each byte in a ByteLevel vocabulary.

    Printable Latin-1 bytes stand for themselves; the others take the letters from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters.update({byte: chr(0x100 + order) for order, byte in enumerate(hidden)})
    return letters


# --- the text -------------------------------------------------------------------------------------

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
        needed = min(steps * ROWS["uuid"], 32_768) * TOKENS
        uuids: list[bytes] = []
        while needed > 0:
            uuids.append(uuid_document(generator).encode())
            needed -= len(uuids[-1]) + 2
        streams = {"source": _stream(source), "documentation": _stream(documentation), "uuid": _stream(uuids)}
        starts = {kind: torch.arange(len(stream) - TOKENS) for kind, stream in streams.items()}
        # UUID rows begin where a document does, half of them after its <|bos|>: so do prompts.
        heads = (streams["uuid"][: -TOKENS - 1] == BOS).nonzero().flatten()
        starts["uuid"] = torch.cat([heads, heads + 1])
        return cls(streams, starts, len(text), hashlib.sha256(text).hexdigest())

    def rows(self, generator: torch.Generator) -> Tensor:
        """Draw the rows of one step: int64, (B, T)."""
        drawn = []
        for kind, count in ROWS.items():
            starts = self.starts[kind]
            first = starts[torch.randint(len(starts), (count,), generator=generator)]
            drawn.append(self.streams[kind][first[:, None] + torch.arange(TOKENS)])
        return torch.cat(drawn).long()


def _stream(documents: list[bytes]) -> Tensor:
    """Concatenate documents as int16 tokens, each between ``<|bos|>`` and ``<|eos|>``."""
    head, tail = np.array([BOS], np.int16), np.array([EOS], np.int16)
    pieces = [part for document in documents for part in (head, np.frombuffer(document, np.uint8), tail)]
    return torch.from_numpy(np.concatenate(pieces, dtype=np.int16))


# --- training -------------------------------------------------------------------------------------


def untrained(seed: int) -> Any:
    """Return a freshly initialised ``LlamaForCausalLM`` of the recipe, in float32 on the CPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(LlamaConfig(**ARCHITECTURE))
    return model.float()


def learning_rate_at(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero. ``step`` counts from 0."""
    warmup = min(WARMUP_STEPS, steps // 10)
    if step < warmup:
        return LEARNING_RATE * (step + 1) / warmup
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def train(
    model: Any, corpus: Corpus, device: torch.device, seed: int, steps: int, report: Callable[[str], None]
) -> list[tuple[int, float]]:
    """Train ``model`` in place.

    Matrix products run in bfloat16 on a GPU, in float32 on a CPU; weights and optimiser are float32 on both.

    Returns:
        (step, training loss in bits per token), about a hundred of them.
    """
    model.to(device).train()
    on_gpu = device.type == "cuda"
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    vectors = [weight for weight in model.parameters() if weight.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=BETAS,
        fused=on_gpu,
    )

    def loss_of(rows: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())

    compiled = loss_of
    if on_gpu and steps >= 1000:
        # A step of so small a model is mostly kernel launches: captured in a CUDA graph, it is three times faster.
        torch.compiler.reset()  # graphs captured by an earlier build in this process would break this one
        compiled = torch.compile(loss_of, mode="reduce-overhead")
    generator = torch.Generator().manual_seed(seed)
    history: list[tuple[int, float]] = []
    every = max(1, steps // 100)
    began = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps)
        loss = compiled(corpus.rows(generator).to(device, non_blocking=True))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % every == 0 or step == steps - 1:
            history.append((step, round(loss.item() / math.log(2), 4)))
            pace = (step + 1) / (time.perf_counter() - began)
            report(f"step {step + 1}/{steps}: {history[-1][1]:.3f} bits per token, {pace:.1f} steps a second")
    model.eval()
    return history


# --- the yardstick --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quality:
    """How well a byte-level model predicts what it was not trained on, in bits per byte; lower is better.

    Attributes:
        text: The held-out modules of the standard library.
        uuid: Random UUIDs, hyphens included. The floor is 122 / 36 = 3.39, for 122 of the bits are random.
        hex_digit: The 30 digits of a UUID that are uniformly random: 4 at best.
        copy: The second of two equal UUIDs, side by side: 0 at best.
    """

    text: float
    uuid: float
    hex_digit: float
    copy: float


# Where a UUID of version 4 is not uniform: always '4', and one of '89ab'.
VERSION_DIGIT, VARIANT_DIGIT = 14, 19


@torch.no_grad()
def quality(model: Any, pairs: int = 128) -> Quality:
    """Measure a byte-level causal language model, in float32 on the device it is on.

    Args:
        model: Anything with ``model(input_ids=...).logits`` over the tokens of this file.
        pairs: UUID pairs to score; always the same ones for the same number.
    """
    device = next(model.parameters()).device

    def bits(rows: Tensor) -> Tensor:
        """Bits of each token after the first: (B, T) to (B, T - 1)."""
        chunks = []
        for chunk in torch.split(rows.to(device), 16):
            logits = model(input_ids=chunk[:, :-1], use_cache=False).logits.float()
            chunks.append(functional.cross_entropy(logits.transpose(1, 2), chunk[:, 1:], reduction="none"))
        return torch.cat(chunks).double().cpu() / math.log(2)

    def with_bos(texts: list[bytes]) -> Tensor:
        return torch.tensor([[BOS, *text] for text in texts])

    text = held_out_text()
    pieces = [text[start : start + TOKENS - 1] for start in range(0, len(text) - TOKENS, TOKENS - 1)]
    generator = np.random.default_rng(2**32)  # beyond any seed one would train with
    drawn = [str(uuid.UUID(bytes=generator.bytes(16), version=4)) for _ in range(2 * pairs)]
    keys, values = drawn[:pairs], drawn[pairs:]
    strangers = bits(with_bos([f"{key} {value}".encode() for key, value in zip(keys, values, strict=True)]))
    copies = bits(with_bos([f"{key} {key}".encode() for key in keys]))
    first, second = strangers[:, :36], strangers[:, 37:]
    hyphens = [at for at, letter in enumerate(keys[0]) if letter == "-"]
    uniform = [at for at in range(36) if at not in (*hyphens, VERSION_DIGIT, VARIANT_DIGIT)]
    return Quality(
        text=bits(with_bos(pieces)).mean().item(),
        uuid=torch.cat([first, second]).mean().item(),
        hex_digit=torch.cat([first, second])[:, uniform].mean().item(),
        copy=copies[:, 37:].mean().item(),
    )


# --- build ----------------------------------------------------------------------------------------

# Full rebuilds with another seed were seen 0.05 from the shipped model; one cut to a tenth of the steps, 0.3 or more.
CLOSE_BITS_PER_BYTE = 0.1


@dataclass(frozen=True)
class BuildReport:
    """What ``build`` made, beside the shipped model.

    Attributes:
        folder: Where it was written.
        sha256: Hash of the built ``model.safetensors``.
        train_seconds: Wall time of the training loop.
        built: Quality of the built model.
        shipped: Quality of the shipped model, on the same text; None if none is shipped.
        largest_difference: Largest absolute difference of any weight; None if none is shipped.
        mean_difference: Mean absolute difference over all weights; None if none is shipped. Two trainings may
            reach equal quality with unlike weights, so this tells identical from not, and no more.
    """

    folder: Path
    sha256: str
    train_seconds: float
    built: Quality
    shipped: Quality | None
    largest_difference: float | None
    mean_difference: float | None

    @property
    def closeness(self) -> str:
        """``bit-identical``, ``close`` (every quality within 0.1 bits), ``far`` or ``nothing shipped``."""
        if self.shipped is None:
            return "nothing shipped"
        if self.largest_difference == 0:
            return "bit-identical"
        shipped = asdict(self.shipped)
        gap = max(abs(value - shipped[name]) for name, value in asdict(self.built).items())
        return "close" if gap <= CLOSE_BITS_PER_BYTE else "far"

    def __str__(self) -> str:
        """The lines that the command line prints."""
        lines = [f"nano built in {self.folder} ({self.train_seconds:.0f} s of training): {self.closeness}"]
        for name, built in asdict(self.built).items():
            beside = "" if self.shipped is None else f", shipped {getattr(self.shipped, name):.3f}"
            lines.append(f"  {name}: {built:.3f} bits per byte{beside}")
        if self.shipped is not None:
            largest, mean = self.largest_difference, self.mean_difference
            lines.append(f"  weights differ by {largest:.3g} at most, by {mean:.3g} on average")
        return "\n".join(lines)


def build(
    output: Path,
    device: str | None = None,
    seed: int = 0,
    steps: int = STEPS,
    report: Callable[[str], None] = lambda line: None,
) -> BuildReport:
    """Train ``nano`` from this machine's standard library and compare it with the shipped one.

    Args:
        output: A folder that is new or empty.
        device: A torch device such as ``cpu`` or ``cuda``; by default a GPU where there is one.
        seed: Of the initial weights, of the UUIDs and of the order of the rows.
        steps: Optimiser steps, 1 or more. The default takes minutes on a data-centre GPU, hours on a CPU.
        report: Called with a line of progress now and then.

    Raises:
        UsageError: ``output`` holds files, or ``steps`` is below 1.
        DataError: This Python came without the source of its standard library.
    """
    if steps < 1:
        raise UsageError(f"steps={steps} is not allowed; give 1 or more")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} is not an empty folder; name a new one, so that no model is overwritten")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    corpus = Corpus.read(seed, steps)
    report(f"{corpus.size_bytes} bytes of standard library, Python {platform.python_version()}, on {place}")
    model = untrained(seed)
    began = time.perf_counter()
    history = train(model, corpus, place, seed, steps, report)
    train_seconds = time.perf_counter() - began
    model.cpu()

    output.mkdir(parents=True, exist_ok=True)
    _write_json(output / "config.json", {**ARCHITECTURE, "torch_dtype": "float32"})
    write_tokenizer(output)
    weights = {name: weight.detach().contiguous() for name, weight in model.state_dict().items()}
    from safetensors.torch import save_file

    save_file(weights, str(output / "model.safetensors"), metadata={"format": "pt"})
    sha256 = hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()
    measured = quality(model)
    _write_json(
        output / "provenance.json",
        {
            "name": "nano",
            "command": f"harness base build nano --seed {seed} --steps {steps}",
            "sha256": sha256,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "licence": LICENCE,
            "recipe": recipe(seed, steps),
            "data": {
                "source": "source of the standard library and pydoc topics, of the Python below",
                "size_bytes": corpus.size_bytes,
                "sha256": corpus.sha256,
                "uuid": "random version-4 UUIDs drawn from the seed: pairs, repetitions, tables with look-ups",
                "held_out_sha256": hashlib.sha256(held_out_text()).hexdigest(),
            },
            "environment": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": _transformers_version(),
                "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
            },
            "train_seconds": round(train_seconds, 1),
            "train_bits_per_token": history,
            "bits_per_byte": {name: round(value, 4) for name, value in asdict(measured).items()},
        },
    )
    return compare(output, model, sha256, train_seconds, measured)


def compare(folder: Path, model: Any, sha256: str, train_seconds: float, measured: Quality) -> BuildReport:
    """Set a built model beside the shipped one."""
    shipped_folder = shipped_bases().get("nano")
    if shipped_folder is None:
        return BuildReport(folder, sha256, train_seconds, measured, None, None, None)
    from transformers import AutoModelForCausalLM

    shipped: Any = AutoModelForCausalLM.from_pretrained(shipped_folder)
    shipped = shipped.float().eval()
    theirs = shipped.state_dict()
    gaps = torch.cat([(weight - theirs[name]).abs().flatten() for name, weight in model.state_dict().items()])
    return BuildReport(folder, sha256, train_seconds, measured, quality(shipped), gaps.max().item(), gaps.mean().item())


def recipe(seed: int, steps: int) -> dict[str, Any]:
    """Return everything that decides the weights besides the text, for the provenance file."""
    return {
        "seed": seed,
        "steps": steps,
        "rows_per_step": ROWS,
        "tokens_per_row": TOKENS,
        "optimizer": "AdamW",
        "betas": BETAS,
        "learning_rate": LEARNING_RATE,
        "schedule": "linear warm-up, cosine to zero",
        "warmup_steps": WARMUP_STEPS,
        "weight_decay": WEIGHT_DECAY,
        "gradient_norm": GRADIENT_NORM,
        "precision": "bfloat16 autocast on a GPU, float32 on a CPU; float32 weights",
    }


def _transformers_version() -> str:
    import transformers

    return str(transformers.__version__)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
