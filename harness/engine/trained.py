"""A finished trial rebuilt: its base model, and what was trained on it, ready to be merged, exported or looked into.

What is not here: reading records and adapters (``results.store``), formats of files (``results.export``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from harness.contract.adapter import Adapter, PeftForm
from harness.contract.analysis import LayerChange
from harness.contract.method import Method, attaches
from harness.contract.task import Task
from harness.contract.trial import Trial
from harness.engine.attached import attach, is_as_before
from harness.engine.layers import find_layers, linear_layers, present_as_linear, select_layers, trained_modules
from harness.engine.model import (
    ModelChoice,
    choose_model,
    load_model,
    load_tokenizer,
)
from harness.engine.probe import name_padding, use_cache
from harness.engine.quantised import round_weights
from harness.errors import DataError, RecordError, UsageError


class TrainedTrial:
    """A trial's base model in float32 on the CPU, and what was trained on it.

    Float32 also where the trial computed in half precision: the values are the same, and no update is rounded away.

    Args:
        trial: A complete one.
        method: Its class.
        task: Its task.
        state: What was trained, by full name.

    Raises:
        RecordError: What was trained does not fit the method and the model of today.
        DataError: The base model is not here, or is not the one that was trained.
    """

    def __init__(self, trial: Trial, method: type[Method], task: Task, state: Mapping[str, Tensor]) -> None:
        self.trial, self.task, self.state = trial, task, state
        recipe = trial.build_recipe(task)
        choice = _same_model(trial, task, recipe)
        model, _ = load_model(choice, task, recipe, trial.precision, torch.device("cpu"))
        if trial.quantize:
            round_weights(model, find_layers(model, task.trains).shapes, trial.quantize)
        self.model = cast(Any, model.float())
        self.tokenizer = load_tokenizer(choice, task, recipe)
        name_padding(self.model.config, self.tokenizer.pad_token_id)
        use_cache(self.model.config, True)  # training switched it off
        self.is_private = attaches(method)
        self._method, self._layer_methods = trial.build_methods(method)
        self.whole = [] if self.is_private else trained_modules(self.model, task.trains)
        found = None if self.is_private else find_layers(self.model, task.trains)
        chosen = [] if found is None else list(select_layers(found.shapes, trial.targets))
        # Names of the places where each adapted weight stands, by its first name.
        self.places = {name: found.places[name] for name in chosen} if found is not None else {}
        self.has_stacked_experts = found is not None and found.has_stacked_experts

    def updates(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the ``delta_weight`` (O, I) of each adapted layer, one at a time."""
        for name, adapter in self._adapters():
            with torch.no_grad():
                yield name, adapter.delta_weight()

    def peft_forms(self) -> dict[str, PeftForm]:
        """Return each adapted layer's form in the ``peft`` library; none at all where any has none."""
        found: dict[str, PeftForm] = {}
        for name, adapter in self._adapters():
            if (form := adapter.peft_form()) is None:
                return {}
            tensors = {key: value.detach().contiguous() for key, value in form.tensors.items()}
            found[name] = form._replace(tensors=tensors)
        return found

    def _adapters(self) -> Iterator[tuple[str, Adapter]]:
        """Yield the name and the trained adapter of each adapted layer, one at a time."""
        if not self._method.traits.mergeable:
            raise UsageError(
                f"method {self.trial.method!r} is not mergeable: its output is not that of a changed weight, "
                "so no format here can hold it; use the trial through harness"
            )
        generator = torch.Generator().manual_seed(self.trial.seed)
        for name in self.places:
            linear = present_as_linear(self.model.get_submodule(name))
            adapter: Adapter = self._layer_methods.get(name, self._method).adapter(linear, generator)
            self._fill(adapter, name)
            yield name, adapter.eval()

    def changes(self) -> Iterator[LayerChange]:
        """Yield each linear layer that the trial changed, with what it added, one at a time.

        Of a method that attaches, these are the linear layers whose weights are others once it is merged.

        Raises:
            UsageError: The trial changed no weight of a linear layer.
        """
        if self.is_private:
            yield from self._attached_changes()
            return
        for name, update in self.updates():
            yield LayerChange(name, present_as_linear(self.model.get_submodule(name)).weight.detach(), update)

    def _attached_changes(self) -> Iterator[LayerChange]:
        layers = linear_layers(self.model, self.task.trains)
        before = {name: present_as_linear(self.model.get_submodule(name)).weight.detach().clone() for name in layers}
        attached = self.attached()
        if not self._has_weights(attached):
            raise UsageError(f"{self._said_of_parts()}: there is no update of a weight to look at")
        merged, is_changed = self._merge(attached), False
        for name, weight in before.items():
            update = present_as_linear(merged.get_submodule(name)).weight.detach() - weight
            if update.any():
                is_changed = True
                yield LayerChange(name, weight, update)
        if not is_changed:
            raise UsageError(
                f"method {self.trial.method!r} trained {', '.join(list(self.state)[:2])}, ...: it changed no weight of "
                "a linear layer, so there is no update to look at"
            )

    @torch.no_grad()
    def merged(self) -> Any:
        """Return the fine-tuned model, whose weights do what the trial learnt. The base model is changed.

        Raises:
            UsageError: What was trained cannot be put into weights.
        """
        if self.is_private:
            attached = self.attached()
            if not self._has_weights(attached):
                raise UsageError(
                    f"{self._said_of_parts()}, and it has no merge_attached(); use --format own, or the trial itself"
                )
            return self._merge(attached)
        for name, update in self.updates():
            present_as_linear(self.model.get_submodule(name)).weight.data.add_(update)
        self._untie()
        for name in self.whole:
            self._fill(self.model.get_submodule(name), name)
        return self.model

    def _has_weights(self, attached: nn.Module) -> bool:
        """Return whether what was trained is, or can be put into, weights of the base model."""
        return is_as_before(attached) or type(self._method).merge_attached is not Method.merge_attached

    def _said_of_parts(self) -> str:
        return (
            f"method {self.trial.method!r} adds to the model what its weights cannot hold, e.g. "
            f"{next(iter(self.state))!r}"
        )

    def _merge(self, attached: nn.Module) -> nn.Module:
        if is_as_before(attached):
            return attached
        merged = self._method.merge_attached(attached)
        for parameter in merged.parameters():
            parameter.requires_grad_(False)
        return merged

    @torch.no_grad()
    def export_own(self, folder: Path) -> str:
        """Let a method that attaches write what it trained in a format of its own, and return what that is, in words.

        Args:
            folder: There, and empty.

        Raises:
            UsageError: The method has no such format.
        """
        if not self.is_private:
            raise UsageError(
                f"method {self.trial.method!r} has no format of its own; use --format peft, or --format merged"
            )
        attached = self.attached()
        if type(self._method).export_attached is Method.export_attached:
            what = (
                "trains the weights themselves, not an update beside them" if is_as_before(attached) else "writes none"
            )
            raise UsageError(f"method {self.trial.method!r} has no files of its own: it {what}; use --format merged")
        return self._method.export_attached(attached, folder)

    def attached(self) -> nn.Module:
        """Return the base model, which is changed, with the trial's method attached and what it trained in place."""
        chosen = select_layers(find_layers(self.model, self.task.trains).shapes, self.trial.targets)
        generator = torch.Generator().manual_seed(self.trial.seed)
        attached = attach(self._method, self.model, chosen, generator)
        live = dict(attached.named_parameters())
        for name, value in self.state.items():
            if name not in live or live[name].shape != value.shape:
                raise RecordError(
                    f"trial {self.trial.id}: what was trained at {name!r} does not fit the method and the model of "
                    f"today; install the versions that trained it: {dict(self.trial.plugins)}"
                )
            live[name].requires_grad_(True)  # the task's head too, so that a method knows to write it
            live[name].data.copy_(value)
        return attached.eval()

    def _untie(self) -> None:
        """Give modules that trained whole weights of their own, where they share them with modules that did not."""
        owners: dict[nn.Parameter, set[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            owners.setdefault(parameter, set()).add(name)
        for names in owners.values():
            trained = {name for name in names if any(name.startswith(f"{each}.") for each in self.whole)}
            if trained and trained != names:
                own = nn.Parameter(self.model.get_parameter(next(iter(trained))).detach().clone())
                for name in trained:
                    module, _, key = name.rpartition(".")
                    setattr(self.model.get_submodule(module), key, own)
                self.model.config.tie_word_embeddings = False

    def whole_modules(self) -> dict[str, Tensor]:
        """Return the tensors of the modules that trained whole, by full name."""
        return {key: self.state[key] for name in self.whole for key in self.state if key.startswith(f"{name}.")}

    def _fill(self, module: nn.Module, name: str) -> None:
        """Load a module's tensors, every one."""
        start = f"{name}."
        try:
            module.load_state_dict({k.removeprefix(start): v for k, v in self.state.items() if k.startswith(start)})
        except RuntimeError as error:
            raise RecordError(
                f"trial {self.trial.id}: what was trained at {name!r} does not fit the method and the model of today "
                f"({error}); install the versions that trained it: {dict(self.trial.plugins)}"
            ) from error


def _same_model(trial: Trial, task: Task, recipe: Any) -> ModelChoice:
    """Return the trial's base model, having checked that it still is the one that was trained."""
    choice = choose_model(trial.model, trial.model_revision, task, recipe)
    if choice.revision != trial.model_revision:
        raise DataError(
            f"base model {trial.model!r} is revision {choice.revision} here, the trial was trained on "
            f"{trial.model_revision}; its updates mean nothing on other weights: bring that revision back"
        )
    return choice
