"""What a model does to its head's output before it calls that logits: nothing, scale it, cap it, or something else.

Found by giving the model numbers in the place of its head's output, not by what a configuration calls its settings: a
loss that is made from the head must know it.

What is not here: the loss itself (``head_loss``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from harness.engine.compiling import compiling
from harness.engine.probe import some_text
from harness.engine.slots import pretrained

EXACT = 1e-5  # relative, of float32
SMALL, LARGE = 1e-6, 1e6  # heads' outputs at which a usual cap does nothing, and at which it is all there is


@dataclass(frozen=True)
class HeadForm:
    """Logits as a function of the head's output: ``cap * tanh(scale * z / cap)``, or ``scale * z``.

    Attributes:
        scale: See above.
        cap: 0: none.
    """

    scale: float = 1.0
    cap: float = 0.0

    def apply_(self, output: Tensor) -> Tensor | float:
        """Turn a head's output into logits, in its place; return the derivative, of the same shape or one number."""
        if self.scale != 1.0:
            output.mul_(self.scale)
        if not self.cap:
            return self.scale
        share = output.div_(self.cap).tanh_()
        slope = share.square().neg_().add_(1).mul_(self.scale)
        share.mul_(self.cap)
        return slope

    def __call__(self, output: Tensor) -> Tensor:
        """Return the logits; autograd knows how."""
        logits = output if self.scale == 1.0 else self.scale * output
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits


PLAIN = HeadForm()


def head_form(model: nn.Module) -> HeadForm | None:
    """Return what a language model does to its head's output; ``None``: something that is known to the model alone."""
    if model not in _forms:
        _forms[model] = _find(model)
    return _forms[model]


_forms: WeakKeyDictionary[Any, HeadForm | None] = WeakKeyDictionary()


@torch.no_grad()
def _find(model: Any) -> HeadForm | None:
    given: list[Tensor] = []  # numbers of all sizes, in other order than the vocabulary's

    def replace(_: nn.Module, inputs: object, output: Tensor) -> Tensor:
        dtype = torch.promote_types(output.dtype, torch.float32)
        steps = torch.linspace(-1, 1, output.shape[-1], dtype=dtype, device=output.device).roll(1)
        sizes = torch.logspace(-7, 6, output[..., 0].numel(), dtype=dtype, device=output.device)
        sizes = sizes.view(*output.shape[:-1], 1)
        given.append(sizes * steps)
        return given[0]

    text = some_text(model)
    hook = model.get_output_embeddings().register_forward_hook(replace)
    try:
        with pretrained(model), compiling(False):
            found = model(input_ids=text, attention_mask=torch.ones_like(text), use_cache=False).logits
    except torch.OutOfMemoryError:
        raise
    except Exception:  # noqa: BLE001 - a stranger's code, which did not expect such numbers
        return None
    finally:
        hook.remove()
    if len(given) != 1 or found.shape != given[0].shape or found.dtype != given[0].dtype:
        return None
    outputs, logits = given[0].double(), found.double()
    small, large = outputs.abs() <= SMALL, outputs.abs() >= LARGE / 2
    scale = float((outputs[small] * logits[small]).sum() / outputs[small].square().sum())
    is_capped = bool(logits[large].abs().max() < 0.5 * abs(scale) * LARGE / 2)
    form = HeadForm(float(f"{scale:.10g}"), float(logits.abs().max()) if is_capped else 0.0)
    return form if torch.allclose(form(outputs), logits, rtol=EXACT, atol=EXACT * SMALL) else None
