"""The contract of an adapter: what a method puts on one linear layer of a frozen model.

An adapter is a small module that sees the layer's input and the frozen layer's output. The pretrained weight is never
changed: whatever a method does to it is written as a correction to ``base_output``.

Shape letters, the same in every file: ``B`` batch, ``T`` tokens, ``I`` in-features, ``O`` out-features, ``R`` rank.

What is not here: which adapter stands where, and how it is trained (``method``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as matmul

from harness.contract.dropout import Dropout
from harness.errors import HarnessError


class PeftForm(NamedTuple):
    """One adapter as a LoRA layer of the ``peft`` library holds it.

    Attributes:
        rank: Of ``lora_A`` and ``lora_B``.
        alpha: ``lora_alpha``: the update is multiplied by ``alpha / rank``.
        tensors: By PEFT's name within the layer, e.g. ``"lora_A.weight"``.
        settings: Fields of PEFT's ``LoraConfig`` that say what else is computed; the same for every layer.
    """

    rank: int
    alpha: float
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] = {}


class Adapter(nn.Module):
    """What a method puts on one linear layer: trainable parameters and a forward pass.

    Subclasses define ``forward`` and ``delta_weight``. Rules that let the harness stack the adapters of many trials
    and run them as one (``torch.func.vmap``):

    * Parameters and buffers are made in ``self.dtype`` on ``self.device``.
    * Whatever changes during training and matters to ``forward`` is a parameter or a buffer, changed in place.
    * ``forward`` has no branch on tensor values, draws no random numbers (use ``harness.Dropout``) and changes nothing.

    Class attributes:
        keep_float32: Names of own parameters and buffers that stay in float32 where the model computes in half
            precision, because rounding them would lose what matters (small differences, row lengths). The other
            tensors are rounded. ``forward`` must then cast these to the dtype of ``x`` itself.

    Args:
        linear: The frozen layer, weight (O, I). Other kinds of layers are presented as one. The bias is not the
            adapter's business: the harness adds it afterwards.
    """

    keep_float32: ClassVar[tuple[str, ...]] = ()

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # In a tuple, so that what is shared becomes neither a parameter nor a buffer nor a module of every adapter.
        weight = linear.weight  # of a layer in 4 bits made anew, and not to be kept
        self._pretrained = (weight if "weight" in linear._parameters else linear,)
        self._kind = (weight.dtype, weight.device)

    @property
    def pretrained_weight(self) -> Tensor:
        """The frozen weight, shape (O, I), in the model's dtype. Read it, never write it."""
        kept = self._pretrained[0]
        return (kept if isinstance(kept, Tensor) else kept.weight).detach()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype for parameters: the model's, but at least float32, so that small updates are not rounded away."""
        return torch.promote_types(self._kind[0], torch.float32)

    @property
    def device(self) -> torch.device:
        """The device for parameters."""
        return self._kind[1]

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        """Return the adapted layer's output before its bias, shape (..., O).

        Args:
            x: The layer's input, shape (..., I).
            base_output: ``x @ W.T`` of the pretrained weight, without bias, shape (..., O).
        """
        raise NotImplementedError

    def delta_weight(self) -> Tensor:
        """Return the effective weight minus the *pretrained* weight, shape (O, I)."""
        raise NotImplementedError

    def peft_form(self) -> PeftForm | None:
        """Return the adapter as a LoRA layer of the ``peft`` library computes it.

        ``None``, the default: there is no such form, or none better than its ``delta_weight`` as a product of two thin
        matrices, which ``harness export`` finds by itself.
        """
        return None

    def __call__(self, x: Tensor, base_output: Tensor) -> Tensor:
        """Run ``forward`` in the dtype of the parameters and return the dtype of ``base_output``.

        Raises:
            HarnessError: It returned something else than a tensor of the shape of ``base_output``.
        """
        dtype = next((p.dtype for name, p in self.named_parameters() if name not in self.keep_float32), x.dtype)
        output: Any = super().__call__(x.to(dtype), base_output.to(dtype))
        if not isinstance(output, Tensor) or output.shape != base_output.shape:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise HarnessError(
                f"{type(self).__name__}.forward(x, base_output) returned {shape}; return what takes the place of "
                f"base_output, {tuple(base_output.shape)}"
            )
        return output.to(base_output.dtype)


_FACTORS = "return down (R, I) and up (O, R)"


class LowRankAdapter(Adapter):
    """An adapter that adds a low-rank update, ``y = W x + s up down x``, and does nothing else.

    Subclasses define ``factors``; ``forward`` and ``delta_weight`` follow from it. The harness runs the updates of many
    trials in few products, added where the frozen layer's output stands. A subclass that overrides ``forward`` or
    ``update`` runs as it is written there.

    Args:
        linear: The frozen layer.
        scale: s: a number that stays as it is, or a parameter or buffer of one number or of R.
        dropout: Of the update's input.
    """

    def __init__(self, linear: nn.Linear, scale: float | Tensor = 1.0, dropout: Dropout | None = None) -> None:
        super().__init__(linear)
        self.scale, self.dropout = scale, dropout

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return ``down`` (R, I) and ``up`` (O, R), made of parameters and buffers."""
        raise HarnessError(f"{type(self).__name__} has no factors(): {_FACTORS}")

    def checked_factors(self) -> tuple[Tensor, Tensor]:
        """Return ``factors()``.

        Raises:
            HarnessError: They are no two matrices whose product has the layer's shape.
        """
        given: Any = self.factors()
        shapes = [tuple(getattr(each, "shape", ())) for each in given] if isinstance(given, tuple | list) else []
        rank = shapes[0][0] if shapes and shapes[0] else 0
        if shapes != [(rank, self.in_features), (self.out_features, rank)]:
            seen = " and ".join(map(str, shapes)) or type(given).__name__
            raise HarnessError(
                f"{type(self).__name__}.factors() returned {seen} on a layer with I={self.in_features}, "
                f"O={self.out_features}: {_FACTORS}"
            )
        down, up = given
        return down, up

    def update(self, x: Tensor) -> Tensor:
        """Return ``s up down x``, shape (..., O)."""
        down, up = (each.to(x.dtype) for each in self.checked_factors())
        # The scale multiplies R values per token here, O after ``up``.
        return matmul((self.scale * matmul(x, down)).to(x.dtype), up)

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        """Return ``W x + s up down x``; dropout acts on ``x`` of the update only."""
        return base_output + self.update(x if self.dropout is None else self.dropout(x))

    def delta_weight(self) -> Tensor:
        """Return ``s up down``, shape (O, I)."""
        down, up = self.checked_factors()
        return self.scale * up @ down
