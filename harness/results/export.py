"""A finished trial as files that other programs load: the merged model, or a LoRA checkpoint of PEFT.

    merged   the whole model, ``W + delta_weight()`` in every adapted layer, as ``save_pretrained`` writes it
    own      what a method that attaches to the model writes itself
    peft     every ``delta_weight()`` as a product of two thin matrices, in PEFT's format

Neither knows any method. The second is exact where a method's update has a low rank, whatever made it. An update of
high rank has no such form: it is refused, or cut to a rank that the user names, and the loss is reported.

What is not here: training (``engine.training``), reading and writing records (``store``).
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from harness.bases import resolve
from harness.contract.adapter import PeftForm
from harness.contract.record import Record, State
from harness.contract.task import ModelKind
from harness.contract.trial import Trial
from harness.engine.trained import TrainedTrial
from harness.errors import RecordError, UsageError, writing
from harness.planning.registry import Registry
from harness.results.store import Store

NEGLIGIBLE = 1e-6  # of an update's Frobenius norm: a few roundings of float32, which is what updates are trained in
PEFT_CONFIG = "adapter_config.json"
FIRST_WIDTH = 40  # of the search for an update's range
SPARE = 8  # random vectors more than the rank, so that they span it well


def read_trained(registry: Registry, store: Store, record: Record) -> TrainedTrial:
    """Return the trial of a record, rebuilt.

    Raises:
        RecordError: The trial did not finish, or what it trained is not there or does not fit.
        DataError: The base model is not here, or is not the one that was trained.
    """
    trial = record.trial
    if record.state is not State.COMPLETE or "adapter" not in record.artifacts:
        raise RecordError(f"trial {trial.id} ended as {record.state} and left nothing to export; name a complete one")
    try:
        state = load(store.read_artifact(record.artifacts["adapter"]))
    except FileNotFoundError as error:
        raise RecordError(
            f"trial {trial.id}: its record names {record.artifacts['adapter']!r}, which is not in {store.root!r}; "
            "bring the file back, or delete the record and run the trial again"
        ) from error
    return TrainedTrial(trial, registry.method(trial.method), registry.task(trial.task)(), state)


def export_merged(trained: TrainedTrial, folder: Path) -> None:
    """Write the fine-tuned model in float32, with its tokenizer.

    Args:
        trained: The trial.
        folder: Where; new or empty.
    """
    expect_new(folder)
    trained.merged().save_pretrained(folder)
    trained.tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Factors:
    """A matrix as ``b @ a``: b (O, R), a (R, I), and how much of it is missing, as a fraction of its norm."""

    b: Tensor
    a: Tensor
    residual: float

    @property
    def rank(self) -> int:
        """Return R."""
        return self.a.shape[0]


def factorise(matrix: Tensor, rank: int | None = None) -> Factors | None:
    """Return a matrix (O, I) as a product of thin ones, or ``None`` if that needs more than half of full rank.

    The range of the matrix is searched with random vectors first, twice as many each time, so that a low rank costs
    a product with a thin matrix and no decomposition of the large one.

    Args:
        matrix: Any.
        rank: Cut to this rank, however much is lost; ``None``: the least that loses nothing but rounding.

    Source: Halko, Martinsson, Tropp, "Finding Structure with Randomness", arXiv:0909.4061, algorithm 4.1.
    """
    exact = matrix.double()
    norm = float(exact.norm())
    full, half = min(exact.shape), max(1, min(exact.shape) // 2)
    largest = full if rank is not None else min(full, half + SPARE)
    generator = torch.Generator().manual_seed(0)
    width = min(FIRST_WIDTH, largest)
    while True:
        probe = torch.randn(exact.shape[1], width, generator=generator, dtype=torch.float64)
        q = torch.linalg.qr(exact @ probe).Q
        core = q.T @ exact
        if width == full or float((exact - q @ core).norm()) <= NEGLIGIBLE / 2 * norm:
            break
        if width == largest:
            return None
        width = min(2 * width, largest)
    u, s, vh = torch.linalg.svd(core, full_matrices=False)
    if rank is None:
        lost = s.square().flip(0).cumsum(0).flip(0).sqrt()  # entry R: the norm of what rank R misses
        rank = max(1, int((lost > NEGLIGIBLE / 2 * norm).sum()))
        if rank > half:
            return None
    rank = min(rank, len(s))
    root = s[:rank].sqrt()
    b, a = (q @ u[:, :rank] * root).float().contiguous(), (root[:, None] * vh[:rank]).float().contiguous()
    residual = float((exact - b.double() @ a.double()).norm()) / norm if norm else 0.0
    return Factors(b, a, residual)


def export_peft(trained: TrainedTrial, folder: Path, rank: int | None = None) -> str:
    """Write the update as PEFT's LoRA checkpoint and return what it holds, in words.

    Args:
        trained: The trial.
        folder: Where; new or empty.
        rank: Cut every layer's update to this rank; ``None``: each layer's own rank, or a refusal.

    Raises:
        UsageError: The update's rank is too high for the format to make sense, and no rank was given.
    """
    trial = trained.trial
    if trained.is_private:
        return _export_own_peft(trained, folder, rank)
    if trained.task.model_kind is ModelKind.FROM_SCRATCH:
        raise UsageError(
            f"task {trial.task!r} starts from random weights, not held by a LoRA checkpoint; use --format merged"
        )
    _check_peft_adapts(trained)
    expect_new(folder)
    forms = trained.peft_forms() if rank is None else {}
    said = "as the method computes it" if forms else ""
    settings = dict(next(iter(forms.values())).settings) if forms else {}
    if not forms:
        forms, said = _factorised(trained, rank)
    # PEFT knows no weight that stands in several places.
    forms = {place: form for name, form in forms.items() for place in trained.places[name]}
    tensors = {
        f"base_model.model.{name}.{key}": value.clone()
        for name, form in forms.items()
        for key, value in form.tensors.items()
    }
    ranks = {name: form.rank for name, form in forms.items()}
    alphas = {name: form.alpha for name, form in forms.items()}
    for key, value in trained.whole_modules().items():
        tensors[f"base_model.model.{key}"] = value
    usual = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    transposed = any(not isinstance(trained.model.get_submodule(name), nn.Linear) for name in ranks)
    is_language_model = trained.task.model_kind is ModelKind.CAUSAL_LM
    config = {
        "peft_type": "LORA",
        # Told of a classifier, PEFT looks for a trained head.
        "task_type": "CAUSAL_LM" if is_language_model else "SEQ_CLS" if trained.whole else None,
        "base_model_name_or_path": base_model(trial),
        "inference_mode": True,
        "target_modules": list(ranks),
        "modules_to_save": trained.whole or None,
        "r": usual,
        "lora_alpha": alpha,
        "rank_pattern": {name: each for name, each in ranks.items() if each != usual},
        "alpha_pattern": {name: each for name, each in alphas.items() if each != alpha},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        **settings,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / PEFT_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    low, high = min(ranks.values()), max(ranks.values())
    summary = f"{len(ranks)} layers, rank {low if low == high else f'{low} to {high}'}; {said}"
    (folder / "README.md").write_text(_card(trial, summary), encoding="utf-8")
    return summary


def export_own(trained: TrainedTrial, folder: Path) -> str:
    """Write what a method that attaches writes itself, and return what that is, in words.

    Args:
        trained: The trial.
        folder: Where; new or empty.

    Raises:
        UsageError: The method has no format of its own.
    """
    expect_new(folder)
    folder.mkdir(parents=True, exist_ok=True)
    said = trained.export_own(folder)
    if not any(folder.iterdir()):
        raise UsageError(f"method {trained.trial.method!r}: its export_attached() wrote nothing; correct the method")
    return said


def is_peft(folder: Path) -> bool:
    """Return whether PEFT can load what is in a folder."""
    return (folder / PEFT_CONFIG).is_file()


def _export_own_peft(trained: TrainedTrial, folder: Path, rank: int | None) -> str:
    """Write the PEFT checkpoint that a method writes itself."""
    method = trained.trial.method
    if rank is not None:
        raise UsageError(f"--rank {rank} cuts an update of weights, and method {method!r} has none beside them")
    with TemporaryDirectory() as kept:
        said = export_own(trained, Path(kept) / "own")
        if not is_peft(Path(kept) / "own"):
            raise UsageError(f"method {method!r} writes files of its own, not those of PEFT; use --format own")
        expect_new(folder)
        shutil.copytree(Path(kept) / "own", folder, dirs_exist_ok=True)
    return said


def _factorised(trained: TrainedTrial, rank: int | None) -> tuple[dict[str, PeftForm], str]:
    """Return each layer's update as a product of two thin matrices, and how much is missing, in words."""
    forms: dict[str, PeftForm] = {}
    residuals: dict[str, float] = {}
    for name, update in trained.updates():
        factors = factorise(update, rank)
        if factors is None:
            raise UsageError(
                f"method {trained.trial.method!r}: the update of {name} ({' x '.join(map(str, update.shape))}) has a "
                f"rank above {max(1, min(update.shape) // 2)}, half of full rank, so LoRA's form would save nothing; "
                "use --format merged, or --rank N to cut it to rank N and lose the rest"
            )
        # A scale of alpha / rank = 1: the factors hold all of the update.
        tensors = {"lora_A.weight": factors.a, "lora_B.weight": factors.b}
        forms[name], residuals[name] = PeftForm(factors.rank, factors.rank, tensors), factors.residual
    worst = max(residuals, key=lambda name: residuals[name])
    return forms, f"largest part of an update that is missing: {residuals[worst]:.1e} of its Frobenius norm ({worst})"


def base_model(trial: Trial) -> str:
    """Return where other programs find a trial's base model: the absolute path of a local one, or its hub id."""
    path = Path(resolve(trial.model))
    return str(path.resolve()) if path.is_dir() else trial.model


def loading_code(trained: TrainedTrial, folder: Path, form: str) -> str:
    """Return Python that loads what was exported, without harness; of a method's own format, the names of its files."""
    recipe = trained.trial.build_recipe(trained.task)
    is_classifier = trained.task.model_kind in (ModelKind.CLASSIFICATION, ModelKind.REGRESSION)
    kind = "AutoModelForSequenceClassification" if is_classifier else "AutoModelForCausalLM"
    there = str(folder.resolve())
    if form == "own":
        return "\n".join(f"# {file.relative_to(folder)}" for file in sorted(folder.rglob("*")) if file.is_file())
    if form == "merged":
        return "\n".join(
            [
                f"from transformers import AutoTokenizer, {kind}",
                "",
                f"model = {kind}.from_pretrained({there!r})",
                f"tokenizer = AutoTokenizer.from_pretrained({there!r})",
            ]
        )
    base = base_model(trained.trial)
    head = "".join(f", {name}={value!r}" for name, value in trained.task.model_arguments(recipe).items())
    return "\n".join(
        [
            "from peft import PeftModel",
            f"from transformers import AutoConfig, AutoTokenizer, {kind}",
            "",
            f"config = AutoConfig.from_pretrained({base!r}{head})",
            f"base = {kind}.from_pretrained({base!r}, config=config)",
            f"model = PeftModel.from_pretrained(base, {there!r}).eval()",
            f"tokenizer = AutoTokenizer.from_pretrained({base!r})",
        ]
    )


# PEFT refuses to adapt these layers of these models: some of their kernels read the weight past the layer.
STATE_MODELS, STATE_LAYER = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}, "out_proj"
# In a model whose experts are stacked in one tensor, PEFT takes every layer of such a name for an expert's.
EXPERT_LAYERS = {"gate_proj", "up_proj", "down_proj", "gate", "w1", "w2", "w3"}


def _check_peft_adapts(trained: TrainedTrial) -> None:
    kind = trained.model.config.get_text_config().model_type
    taken = {STATE_LAYER} if {kind, trained.model.config.model_type} & STATE_MODELS else set()
    if trained.has_stacked_experts:
        taken |= EXPERT_LAYERS
    if refused := [name for name in trained.places if name.rpartition(".")[2] in taken]:
        raise UsageError(
            f"PEFT cannot adapt {refused[0]} of a {kind} model, which the trial did: it refuses that layer, or takes "
            "it for one of an expert; use --format merged"
        )


def _card(trial: Trial, summary: str) -> str:
    """Return the model card of a PEFT checkpoint."""
    settings = ", ".join(f"{key}={value}" for key, value in trial.config.items()) or "none"
    return "\n".join(
        [
            "---",
            "library_name: peft",
            f"base_model: {json.dumps(trial.model)}",
            "---",
            "",
            f"# {trial.task} with {trial.method}",
            "",
            f"The weight update of harness trial `{trial.id}`, as a LoRA checkpoint of PEFT: {summary}.",
            "",
            f"* base model: {trial.model}, revision {trial.model_revision}",
            f"* settings: {settings}",
            f"* learning rate {trial.learning_rate:g}, seed {trial.seed}, scale {trial.scale}",
            "",
            "    PeftModel.from_pretrained(model, folder)  # model: the base model above; folder: this one",
            "",
        ]
    )


def expect_new(folder: Path) -> None:
    """Check that a folder can be written, and that nothing would be overwritten."""
    with writing(folder):
        if folder.is_file():
            raise UsageError(f"{str(folder)!r} is a file; give a new folder")
        is_there = folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"{str(folder)!r} is there and not empty; give a new folder")
        (folder / ".probe").touch()
        (folder / ".probe").unlink()
        if not is_there:
            folder.rmdir()


@contextmanager
def whole_or_nothing(folder: Path) -> Iterator[None]:
    """Write into a new or empty folder; what is there when it cannot be written whole, is taken away again.

    Raises:
        UsageError: The folder holds something, or what is done within fails for the file system's reasons.
    """
    expect_new(folder)
    try:
        with writing(folder):
            try:
                yield
            except SafetensorError as error:
                raise OSError(str(error)) from error
    except BaseException:
        for each in folder.glob("*"):
            shutil.rmtree(each, ignore_errors=True) if each.is_dir() else each.unlink(missing_ok=True)
        raise


def readable(folder: Path) -> None:
    """Give weights the permissions that the files beside them have: safetensors makes them for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o666 & ~mask)
