"""The contract of a method: what a plugin author subclasses.

A *method* says what to put on each linear layer of a frozen model and how to train it. What it puts there is an
*adapter*, a small module that sees the layer's input and the frozen layer's output. The pretrained weight is never
changed: whatever a method does to it (subtract a component, merge an update into it) is written as a correction to
``base_output``. This is what lets many methods, seeds and learning rates train over one resident base model.

Shape letters, the same in every file: ``B`` batch, ``T`` tokens, ``I`` in-features, ``O`` out-features, ``R`` rank.

What is not here: adapters (``adapter``), finding methods (``planning.registry``), solving their size for a budget
(``planning.budget``), training (``engine.training``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.contract.adapter import Adapter
from harness.contract.setting import MethodConfig

ADAPTED = "_harness_adapted_layers"  # the attribute of an attached model that names them


class Purpose(StrEnum):
    """What a task trains for. Papers choose some of a method's settings by it."""

    FINE_TUNING = "fine_tuning"  # a pretrained model learns a task or a domain
    MEMORISING = "memorising"  # it stores what it is shown, which nothing that it knows helps with
    PRETRAINING = "pretraining"  # a fresh model learns a language


@dataclass(frozen=True, kw_only=True)
class MethodTraits:
    """What the harness has to know about a method without running it.

    Attributes:
        in_all: Whether ``--methods all`` includes it (``--methods everything`` always does).
        budget_knob: The integer field of ``Config`` that the budget solver sets. ``None``: the size is fixed.
        reference: Trains outside every budget and is shown apart (full fine-tuning).
        trains: It has parameters of its own. If not, a trial trains a task's head or, without one, does no step.
        mergeable: ``W + delta_weight()`` reproduces the adapter's output.
        identity_at_init: The adapted layer equals the pretrained one before the first step.
        learning_rate_factor: Where the method's paper puts its learning rate, as a multiple of LoRA's on the same task.
            The learning-rate grid is centred there.
        check_config: ``Config`` fields for the conformance kit's tiny layers (e.g. a short merge period).
    """

    in_all: bool = True
    budget_knob: str | None = "r"
    reference: bool = False
    trains: bool = True
    mergeable: bool = True
    identity_at_init: bool = True
    learning_rate_factor: float = 1.0
    check_config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """What a data- or gradient-driven initialisation may use.

    Attributes:
        model: The pretrained model with no adapter active. Restore whatever you change.
        batches: Of the first few updates, cut to what fits, in the model's own input format; iterate at will.
        loss: Returns the share of one of these batches in its update's mean training loss, with gradients enabled.
        weight_gradients: Returns, per adapted layer, the loss gradient with respect to the pretrained weight (O, I),
            averaged over these updates.
        generator: The trial's source of randomness, on the CPU.
    """

    model: nn.Module
    batches: Sequence[Any]
    loss: Callable[[Any], Tensor]
    weight_gradients: Callable[[], Mapping[str, Tensor]]
    generator: torch.Generator


@dataclass(frozen=True)
class TrialContext:
    """What is known of a trial before it is built; the argument of ``Method.resolve``.

    Attributes:
        purpose: What the task trains for, see ``Purpose``; ``None``: no task is known.
        total_steps: Updates the trial will do; ``None``: known once the data is read.
    """

    purpose: Purpose | None = None
    total_steps: int | None = None


@dataclass(frozen=True)
class StepInfo:
    """Where training stands after an optimizer step; the argument of ``Method.after_step``.

    Attributes:
        step: Updates done so far, from 1 to ``total_steps``.
        total_steps: Updates the trial will do.
        adapters: The trial's adapters by layer name. Change their tensors in place.
        optimizer: The trial's AdamW; ``optimizer.state[parameter]`` has ``exp_avg``, ``exp_avg_sq`` and ``step``.
            Gradients of the step are still there.
        generator: The trial's source of randomness, on the CPU.
    """

    step: int
    total_steps: int
    adapters: Mapping[str, Any]
    optimizer: torch.optim.Optimizer
    generator: torch.Generator


class Method:
    """A fine-tuning method. Subclass it, name it, and register it with ``harness_register_methods``.

    An instance keeps no state: whatever changes in training lives on the adapters.

    Class attributes:
        name: Lower-case slug, e.g. ``"dora"``.
        title: How the paper writes it, e.g. ``"DoRA"``.
        paper: URL of the paper.
        citation: Authors, title, venue, year.
        formula: Trainable parameters of one layer in words, e.g. ``"r (I + O)"``.
        Config: Frozen dataclass of settings, all with defaults (see ``MethodConfig`` and ``setting``).
        traits: See ``MethodTraits``.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    paper: ClassVar[str]
    citation: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    Config: ClassVar[type[Any]] = MethodConfig
    traits: ClassVar[MethodTraits] = MethodTraits()

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        """Return the exact number of trainable parameters on one layer: the paper's formula, no torch needed.

        Raises:
            ConfigError: The configuration cannot be applied to a layer of this shape.
        """
        raise NotImplementedError

    def final_parameters(self, in_features: int, out_features: int) -> int:
        """Return how many of them are left when training ends, where a method prunes: what a budget is matched to."""
        return self.trainable_parameters(in_features, out_features)

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> Adapter:
        """Build the adapter for one frozen linear layer.

        Args:
            linear: The frozen layer; its weight is (O, I).
            generator: The only source of randomness, on the CPU: draw there, then move.
        """
        raise NotImplementedError

    # --- optional, no-ops by default -----------------------------------------------------------------------------

    @classmethod
    def resolve(cls, config: Any, context: TrialContext) -> Any:
        """Return settings with values in the place of words like ``"auto"``: the paper's choice for this trial.

        Called when planning, before the size is counted: what is returned stands in the plan and in the record, and the
        method is built with it. Called again for the record, when the number of updates is known for certain. Leave
        alone what the user gave and what ``context`` cannot decide; a method must also run with unresolved words.

        Args:
            config: The settings, of all layers or of one.
            context: What is known of the trial.
        """
        return config

    def attach(self, model: nn.Module, generator: torch.Generator) -> nn.Module | None:
        """Set up a method that does not live on linear layers: add what trains to a private copy of the model.

        Override this *instead of* ``adapter``. Such a method trains alone, never packed with others: the hooks below
        get no adapters, and all its parameters are one group. What trains is counted by attaching the method to the
        model without its weights, on the meta device: draw from the generator, then move to the model's device.

        Args:
            model: From ``transformers``, in evaluation mode, in which it stays, with every parameter frozen: mark what
                trains with ``requires_grad``. ``harness.adapted_layers(model)`` are the layers that adapters sit on.
            generator: The only source of randomness, on the CPU.

        Returns:
            The model to train where it is another one, e.g. a wrapper that is called as the model is; else ``None``.
        """
        raise NotImplementedError

    def merge_attached(self, model: Any) -> nn.Module:
        """Return a trained model as one of the class that it had before ``attach``, with weights that do the same.

        Not overridden: what ``attach`` added cannot be put into the weights.

        Args:
            model: What ``attach`` made of the model, in float32 on the CPU, with the trained values. What was trained
                requires gradients, the task's head too.
        """
        raise NotImplementedError

    def export_attached(self, model: Any, folder: Path) -> str:
        """Write what was trained as files that other programs load, and return what they are, in words.

        Not overridden: there is no such format.

        Args:
            model: As for ``merge_attached``.
            folder: There, and empty.
        """
        raise NotImplementedError

    def calibrate(self, adapters: Mapping[str, Any], calibration: Calibration) -> None:
        """Finish initialising the adapters from data or gradients, in place. Called once, before the first step."""

    def parameter_groups(
        self, adapters: Mapping[str, nn.Module], learning_rate: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Return AdamW parameter groups (``params``, ``lr``, ...) covering all that trains in the adapters."""
        parameters = [p for adapter in adapters.values() for p in adapter.parameters() if p.requires_grad]
        return [{"params": parameters, "lr": learning_rate, "weight_decay": weight_decay}]

    def learning_rate_multiplier(self, step: int, total_steps: int, default: Callable[[int], float]) -> float:
        """Return what update number ``step`` (from 0) multiplies every group's learning rate with.

        Args:
            step: Updates done before this one.
            total_steps: Updates the trial will do.
            default: The recipe's schedule.
        """
        return default(step)

    def extra_loss(self, adapters: Mapping[str, Any]) -> Tensor | None:
        """Return a scalar to add to the training loss of every step, or ``None``."""
        return None

    def after_step(self, info: StepInfo) -> None:
        """Act after an optimizer step, e.g. merge, prune, reset moments: in place, without gradients being recorded.

        The gradients of the step are still there, and are cleared afterwards.
        """


def attaches(method: type[Method] | Method) -> bool:
    """Return whether a method overrides ``attach``, that is, does not live on linear layers."""
    kind = method if isinstance(method, type) else type(method)
    return kind.attach is not Method.attach


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers that the trial adapts, by name, of the model that ``Method.attach`` gets.

    Of another model these are all ``nn.Linear`` but its output head.
    """
    names = getattr(model, ADAPTED, None)
    if names is not None:
        return {name: model.get_submodule(name) for name in names}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    return {n: each for n, each in model.named_modules() if isinstance(each, nn.Linear) and each is not head}
