"""Scale vector, y = (1 + v) W x: every output of a frozen layer times a trained number (arXiv:2205.05638)."""

import torch
from torch import nn

from harness import Adapter, Method, MethodTraits, hookimpl


class ScaleVectorAdapter(Adapter):
    def __init__(self, layer):
        super().__init__(layer)
        self.v = nn.Parameter(torch.zeros(self.out_features, dtype=self.dtype, device=self.device))

    def forward(self, x, base_output):
        return base_output * (1 + self.v)

    def delta_weight(self):
        return self.v.unsqueeze(1) * self.pretrained_weight


class ScaleVector(Method):
    name = "scale-vector"
    paper = "https://arxiv.org/abs/2205.05638"
    formula = "O"
    traits = MethodTraits(budget_knob=None, in_all=False)  # one size only: it fits no budget but its own

    def trainable_parameters(self, in_features, out_features):
        return out_features

    def adapter(self, linear, generator):
        return ScaleVectorAdapter(linear)


@hookimpl
def harness_register_methods():
    return [ScaleVector]
