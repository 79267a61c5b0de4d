"""A regression problem that trains in milliseconds on a CPU, and a trainer that follows ``harness.contract.method``.

The trainer is written apart from the engine on purpose: a method that passes was held to the contract, not to
whatever the engine happens to do. What is not here: the checks (``contract``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear, mse_loss

from harness.contract.dropout import Dropout
from harness.contract.method import ADAPTED, Calibration, Method, StepInfo, attaches
from harness.testing.contract import expect
from harness.testing.language import LanguageProblem

WIDTHS = (32, 48, 48, 32)  # layers 32->48, 48->48 and 48->32: wide, square and tall
STEPS = 24  # updates of a training; traits.check_config sets periods that fit, e.g. a merge every 8 steps
LEARNING_RATE = 1e-2  # suits LoRA here; a method trains at this times its traits.learning_rate_factor
BATCH, TOKENS = 8, 6


class TinyModel(nn.Module):
    """Linear layers with ``tanh`` between and a layer norm in front; the second layer has no bias.

    Args:
        widths: Features before, between and after the layers.
        generator: Draws the weights, so that the global stream is left alone.
    """

    def __init__(self, widths: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(widths[0])
        self.layers = nn.ModuleList()
        for index, (i, o) in enumerate(pairwise(widths)):
            layer = nn.Linear(i, o, bias=index != 1, device="meta").to_empty(device="cpu")
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter.normal_(0, i**-0.5, generator=generator)
            self.layers.append(layer)

    def linears(self) -> Iterator[tuple[str, nn.Linear]]:
        """Yield the path and module of every linear layer."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                yield name, module

    def forward(self, x: Tensor, adapters: Mapping[str, nn.Module] | None = None) -> Tensor:
        """Return the output, (B, T, O) for ``x`` (B, T, I), with these adapters on their layers."""
        hidden: Tensor = self.norm(x)
        for name, layer in self.linears():
            if adapters:
                output = adapters[name](hidden, linear(hidden, layer.weight))
                output = output if layer.bias is None else output + layer.bias
            else:
                output = layer(hidden)
            hidden = torch.tanh(output)
        return hidden


class TinyProblem:
    """A frozen ``TinyModel`` and targets that another one, a moderate change of every weight away, produced.

    Attributes:
        model: The frozen model.
        batches: Inputs (B, T, I) and targets (B, T, O); two of them, always the same.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, widths: Sequence[int] = WIDTHS) -> None:
        generator = torch.Generator().manual_seed(20240229)
        self.model = TinyModel(widths, generator)
        teacher = TinyModel(widths, generator)
        self.batches = []
        with torch.no_grad():
            for target, source in zip(teacher.parameters(), self.model.parameters(), strict=True):
                target.mul_(0.5).add_(source)
            for _ in range(2):
                x = torch.randn(BATCH, TOKENS, widths[0], generator=generator)
                self.batches.append((x.to(dtype), teacher(x).to(dtype)))
        self.model.to(dtype).requires_grad_(False)

    def loss(self, batch: tuple[Tensor, Tensor], adapters: Mapping[str, nn.Module] | None = None) -> Tensor:
        """Return the mean squared error on one batch."""
        x, y = batch
        return mse_loss(self.model(x, adapters), y)

    def output(self, adapters: Mapping[str, nn.Module] | None = None) -> Tensor:
        """Return the model's output on the first batch, (B, T, O)."""
        return cast(Tensor, self.model(self.batches[0][0], adapters))

    def linears(self) -> Iterator[tuple[str, nn.Linear]]:
        """Yield the path and module of every linear layer."""
        return self.model.linears()

    def weight_gradients(self) -> dict[str, Tensor]:
        """Return the gradient of the mean loss with respect to each linear layer's weight, (O, I)."""
        weights = {f"{name}.weight": layer.weight.detach().requires_grad_() for name, layer in self.model.linears()}
        losses = [mse_loss(functional_call(self.model, weights, (x,)), y) for x, y in self.batches]
        gradients = torch.autograd.grad(torch.stack(losses).mean(), list(weights.values()))
        return {name.removesuffix(".weight"): each for name, each in zip(weights, gradients, strict=True)}


class TinyTrial:
    """One trial of a method on a tiny problem: built here, then ``calibrate``, then ``train``.

    Attributes:
        problem: Linear layers, or a language model for a method that attaches; its model is the trial's own copy.
        adapters: Adapters by layer name. Empty for a method that attaches.
        modules: What trains: the adapters, or ``{"model": model}`` for a method that attaches.
        losses: The task's loss before each update.
    """

    def __init__(
        self,
        method: Method,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        widths: Sequence[int] = WIDTHS,
    ) -> None:
        self.method = method
        self.problem: Any = LanguageProblem(dtype) if attaches(method) else TinyProblem(dtype, widths)
        self.generator = torch.Generator().manual_seed(seed)
        self.losses: list[float] = []
        self.adapters: dict[str, Any] = {}
        self.modules: dict[str, nn.Module] = self.adapters
        if attaches(method):
            model = self.problem.model
            setattr(model, ADAPTED, tuple(name for name, _ in self.problem.linears()))
            attached = method.attach(model, self.generator)
            self.problem.model = (model if attached is None else attached).eval()
            self.modules = {"model": self.problem.model}
        else:
            for name, layer in self.problem.model.linears():
                self.adapters[name] = method.adapter(layer, self.generator)

    def calibrate(self) -> TinyTrial:
        """Let the method finish its initialisation, as the engine does before the first step."""
        if self.adapters:
            problem = self.problem
            calibration = Calibration(
                problem.model, problem.batches, problem.loss, problem.weight_gradients, self.generator
            )
            self.method.calibrate(self.adapters, calibration)
        return self

    def train(
        self, steps: int = STEPS, observe: Callable[[str, torch.optim.Optimizer], None] | None = None
    ) -> TinyTrial:
        """Train for ``steps`` updates; ``observe`` hears of every optimizer step and every ``after_step``."""
        method, rate = self.method, LEARNING_RATE * self.method.traits.learning_rate_factor
        # Without weight decay a tensor moves only if it has a gradient, or if the method itself moves it.
        whole = [{"params": list(self.trainable().values()), "lr": rate, "weight_decay": 0.0}]
        groups = method.parameter_groups(self.adapters, rate, 0.0) if self.adapters else whole
        optimizer = torch.optim.AdamW(groups)
        rates = [group["lr"] for group in optimizer.param_groups]
        self.train_mode(True)
        for step in range(steps):
            multiplier = method.learning_rate_multiplier(step, steps, lambda _: 1.0)
            for group, group_rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = group_rate * multiplier
            loss = torch.stack([self.problem.loss(batch, self.adapters) for batch in self.problem.batches]).mean()
            self.losses.append(loss.item())
            extra = method.extra_loss(self.adapters)
            total = loss if extra is None else loss + extra
            expect(
                total.requires_grad,
                "no parameter that it trains takes part in the loss",
                "using them in forward(), without detach() and without leaving PyTorch",
            )
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if observe:
                observe(f"optimizer step {step + 1}", optimizer)
            with torch.no_grad():
                method.after_step(StepInfo(step + 1, steps, self.adapters, optimizer, self.generator))
            if observe:
                observe(f"after_step of update {step + 1}", optimizer)
            optimizer.zero_grad()
            for module in self.modules.values():
                for part in module.modules():
                    if isinstance(part, Dropout):
                        part.advance()
        return self

    def train_mode(self, on: bool) -> None:
        """Switch adapters between training and evaluation mode; an attached model stays in evaluation mode."""
        for module in self.adapters.values():
            module.train(on)

    def output(self) -> Tensor:
        """Return the model's output on the first batch, in evaluation mode, without gradients."""
        self.train_mode(False)
        with torch.no_grad():
            return cast(Tensor, self.problem.output(self.adapters))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters marked trainable, by ``module:parameter`` name."""
        return {name: p for name, p in self._parameters() if p.requires_grad}

    def tensors(self) -> dict[str, Tensor]:
        """Return every parameter and buffer of what trains, the ones that are not saved included, by name."""
        buffers = [
            (f"{key}:{name}", buffer) for key, module in self.modules.items() for name, buffer in module.named_buffers()
        ]
        return {**dict(self._parameters()), **dict(buffers)}

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for key, module in self.modules.items():
            for name, parameter in module.named_parameters():
                yield f"{key}:{name}", parameter


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return detached copies of named tensors, to compare with later."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Return the names whose tensors are gone, new, or not bit for bit what they were."""
    names = [*before, *(name for name in after if name not in before)]
    return [n for n in names if n not in before or n not in after or not torch.equal(before[n], after[n])]


def describe(layer: nn.Linear) -> str:
    """Name a layer by its shape."""
    return f"a layer with I={layer.in_features}, O={layer.out_features}"
