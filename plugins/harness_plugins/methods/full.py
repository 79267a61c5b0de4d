"""Full fine-tuning: every parameter of the model trains. The reference that adapters are measured against.

It lives on no linear layer, so it overrides ``attach`` and works on a private copy of the model; it stands
outside every budget. What is not here: partial freezing (that would be another method).
"""

from __future__ import annotations

import torch
from torch import nn

from harness import Method, MethodTraits, hookimpl


class FullFineTuning(Method):
    """Train all weights, embeddings, norms and biases included."""

    name = "full"
    title = "Full fine-tuning"
    paper = "https://arxiv.org/abs/1810.04805"
    citation = "Devlin, Chang, Lee, Toutanova: BERT, NAACL 2019, section 3.2"
    formula = "I O"
    # MoRA (arXiv:2405.12130), UUID experiment: 3e-5 for full fine-tuning where LoRA searches 1e-4, 2e-4,
    # 3e-4, so 3e-5 / 2e-4. There is no adapter, so nothing to merge: the trained model is the result.
    traits = MethodTraits(budget_knob=None, reference=True, mergeable=False, learning_rate_factor=0.15)

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        """Return ``I O``: the layer's weights. What trains outside the linear layers comes on top."""
        return in_features * out_features

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        """Let every parameter of the model train; nothing is added and nothing is drawn."""
        model.requires_grad_(True)


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register full fine-tuning."""
    return [FullFineTuning]
