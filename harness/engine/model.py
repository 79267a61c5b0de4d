"""Base models: which is meant, and loading it, with weights or without.

What is not here: its layers (``layers``), what it does with a text (``probe``, ``behaviour``).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.bases import resolve
from harness.contract.task import ModelKind, Task
from harness.data.hub import is_offline
from harness.engine.layers import trained_modules
from harness.engine.probe import use_cache
from harness.errors import ConfigError, DataError, HarnessError, UsageError

# Endings of files that decide what a model folder computes: weights, configuration, words of the tokenizer.
IDENTIFYING = (".safetensors", ".bin", ".json", ".txt", ".model", ".tiktoken", ".jinja")
# float64 is for comparisons in which rounding must not decide; users choose among the others.
logger = logging.getLogger(__name__)
NO_CODE = {"trust_remote_code": False}  # said outright: otherwise transformers asks, and takes a yes from anywhere
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class ModelChoice:
    """A base model as a trial names it, and what the task wants of it.

    Attributes:
        name: Hub id, local path, shipped base, or the task's name for a model trained from scratch.
        revision: Pinned hub revision, or the content hash of local files.
    """

    name: str
    revision: str


def choose_model(name: str, revision: str | None, task: Task, recipe: Any) -> ModelChoice:
    """Return the model with its revision pinned: a commit for a hub model, a content hash for local files.

    Raises:
        DataError: There is no such model here and the hub cannot be reached.
    """
    if task.model_kind is ModelKind.FROM_SCRATCH:
        shape = {k: v for k, v in task.model_config(recipe).to_dict().items() if k != "transformers_version"}
        tokenizer = choose_model(task.tokenizer_name(recipe), None, Task(), recipe)
        content = json.dumps([shape, tokenizer.revision], sort_keys=True, default=str)
        return ModelChoice(f"from-scratch/{task.name}", hashlib.sha256(content.encode()).hexdigest()[:16])
    folder = Path(resolve(name))
    if folder.is_dir():
        digest = hashlib.sha256()
        weights = sorted(each for each in folder.iterdir() if each.suffix in IDENTIFYING)
        if not any(each.name == "config.json" for each in weights):
            raise DataError(f"model folder {name!r} has no config.json; give a folder written by save_pretrained")
        endings = {each.suffix for each in weights}
        if ".bin" in endings and ".safetensors" not in endings:
            raise DataError(
                f"model folder {name!r} has its weights in pickles (.bin), and loading a pickle runs whatever it says; "
                "save it as safetensors: save_pretrained(folder, safe_serialization=True)"
            )
        for each in weights:
            with each.open("rb") as file:
                digest.update(each.name.encode() + hashlib.file_digest(file, "sha256").digest())
        return ModelChoice(name, digest.hexdigest()[:16])
    from transformers.utils.hub import cached_file

    is_offline()
    try:
        path = cached_file(name, "config.json", revision=revision)
    except OSError as error:
        raise DataError(
            f"model {name!r} is not a folder here, and not to be had from the hub ({str(error).splitlines()[0]}). "
            "Give a folder written by save_pretrained, or the name of a shipped base (`harness base list`)."
        ) from error
    assert path is not None
    return ModelChoice(name, Path(path).parent.name)  # the hub's cache keeps files below snapshots/<commit>/


def load_tokenizer(choice: ModelChoice, task: Task, recipe: Any) -> Any:
    """Return the model's tokenizer; a from-scratch model uses the one its task names."""
    from transformers import AutoTokenizer

    name = task.tokenizer_name(recipe) if task.model_kind is ModelKind.FROM_SCRATCH else choice.name
    with _explaining(f"the tokenizer of model {name!r} cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(resolve(name), **NO_CODE, **_revision(choice, name))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _revision(choice: ModelChoice, name: str) -> dict[str, str]:
    """Return the hub revision to load; none for local folders, whose content the hash already pins."""
    if Path(resolve(name)).is_dir():
        return {}
    is_offline()
    return {"revision": choice.revision} if name == choice.name else {}


def _load_config(choice: ModelChoice, task: Task, recipe: Any) -> Any:
    from transformers import AutoConfig

    if task.model_kind is ModelKind.FROM_SCRATCH:
        config = task.model_config(recipe)
    else:
        arguments = dict(task.model_arguments(recipe))
        with _explaining(f"the configuration of model {choice.name!r} cannot be read"):
            config = AutoConfig.from_pretrained(
                resolve(choice.name), **arguments, **NO_CODE, **_revision(choice, choice.name)
            )
    use_cache(config, False)
    return config


def _auto_class(task: Task) -> Any:
    import transformers

    language_model = task.model_kind in (ModelKind.CAUSAL_LM, ModelKind.FROM_SCRATCH)
    return transformers.AutoModelForCausalLM if language_model else transformers.AutoModelForSequenceClassification


def build_on_meta(choice: ModelChoice, task: Task, recipe: Any) -> nn.Module:
    """Return the model without weights, for its layer shapes.

    Raises:
        ConfigError: The task's kind of model cannot be made of it.
        DataError: Its configuration cannot be read.
    """
    config = _load_config(choice, task, recipe)
    wanted = _auto_class(task)
    if wanted.__name__ == "AutoModelForCausalLM" and config.is_encoder_decoder:
        raise ConfigError(
            f"model {choice.name!r} is an encoder-decoder ({config.model_type}), and task {task.name!r} trains a "
            "language model of one text; take a causal language model"
        )
    with _explaining(f"task {task.name!r}: no {wanted.__name__} can be made of model {choice.name!r}", ConfigError):
        with torch.device("meta"):
            model: nn.Module = wanted.from_config(config, **NO_CODE)
    return model


@contextmanager
def _explaining(what: str, kind: type[UsageError] = DataError) -> Iterator[None]:
    """Turn whatever a library raises at a stranger's files into one line."""
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) < 300 else f"{reason[:300]}..."
        raise kind(f"{what} ({type(error).__name__}: {reason}); take another model") from error


def load_model(
    choice: ModelChoice, task: Task, recipe: Any, precision: str, device: torch.device
) -> tuple[nn.Module, list[str]]:
    """Return the frozen base model on a device, and the names of parameters that its checkpoint did not have.

    A from-scratch model's random weights come from a fixed seed: they are part of the base, the same for every trial.

    Raises:
        DataError: The checkpoint lacks weights of a module that the task does not train.
    """
    dtype = DTYPES[precision]
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        if task.model_kind is ModelKind.FROM_SCRATCH:
            model = _auto_class(task).from_config(_load_config(choice, task, recipe), **NO_CODE).to(dtype)
            fresh = [name for name, _ in model.named_parameters()]
        else:
            with _report_held():
                model, report = _auto_class(task).from_pretrained(
                    resolve(choice.name),
                    config=_load_config(choice, task, recipe),
                    dtype=dtype,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # judged here: a head of other classes is drawn anew
                    use_safetensors=True,  # other weights are pickles, and loading a pickle runs what it says
                    **NO_CODE,
                    **_revision(choice, choice.name),
                )
            others = {name: (found, wanted) for name, found, wanted in report["mismatched_keys"]}
            fresh = sorted({*report["missing_keys"], *others})
    finally:
        torch.random.set_rng_state(state)
    if task.model_kind is not ModelKind.FROM_SCRATCH:
        trained = trained_modules(model, task.trains)
        left = [name for name in fresh if not any(name.startswith(f"{module}.") for module in trained)]
        if left:
            raise DataError(
                f"model {choice.name!r} has no weights for {', '.join(left)}, and task {task.name!r} trains only "
                f"{', '.join(trained) or 'adapters'}: they would stay random; add their modules to the task's `trains`"
            )
        for name, (found, wanted) in others.items():
            logger.warning(
                "model %s: %s has the shape %s in the checkpoint, and %s for task %r: each trial draws its own",
                choice.name, name, tuple(found), tuple(wanted), task.name,
            )  # fmt: skip
    model = model.to(device).requires_grad_(False)
    return model.eval(), fresh


@contextmanager
def _report_held() -> Iterator[None]:
    """Keep transformers' report of missing weights from the terminal: what is missing is judged here.

    Where loading fails, its message speaks of the report, so it is shown.
    """
    logger, held = logging.getLogger("transformers.modeling_utils"), list[logging.LogRecord]()

    def hold(record: logging.LogRecord) -> bool:
        is_report = "LOAD REPORT" in record.getMessage()
        held.extend([record] if is_report else [])
        return not is_report

    logger.addFilter(hold)
    try:
        yield
    except Exception:
        logger.removeFilter(hold)
        for record in held:
            logger.handle(record)
        raise
    finally:
        logger.removeFilter(hold)


def is_causal(model: nn.Module) -> bool:
    """Return whether no attention of the model looks ahead, so that padding behind a text needs no mask."""
    flags: list[object] = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    return bool(flags) and all(flag is True for flag in flags)


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
