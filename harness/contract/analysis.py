"""The contract of an analysis: what is measured on the weights of a finished trial, or of a base model alone.

An analysis sees one layer at a time, its pretrained weight and what training changed, and returns numbers and curves.
It knows nothing of the method that made the change, of files, tables or figures.

What is not here: going through a trial's layers, and what is written and shown (``results.analysis``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from harness.contract.setting import MethodConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class LayerChange:
    """One linear layer.

    Attributes:
        name: Of the layer in the model.
        weight: Pretrained, (O, I), float32, on the CPU. Read it, never write it.
        update: What training added to it, (O, I); ``None`` for an analysis of base models.
    """

    name: str
    weight: Tensor
    update: Tensor | None = None


@dataclass(frozen=True)
class LayerFindings:
    """What an analysis found out about one layer.

    Attributes:
        values: A number for each of the analysis' ``columns``; ``None`` where it has no meaning, such as the direction
            of an update that is zero.
        curves: For each of its ``curves``, y over 1, 2, 3, ...
    """

    values: Mapping[str, float | None]
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)


class Analysis:
    """An analysis. Subclass it and register it with ``harness_register_analyses``.

    Class attributes:
        name: Lower-case slug.
        title: For people.
        paper: URL of the paper that made it.
        claim: What that paper says it shows, and where.
        of_updates: Whether it looks at what training changed; otherwise at base models alone.
        columns: Its numbers, and what each is.
        curves: Its curves, and what their heights are.
        along: What the places 1, 2, 3, ... of each curve are.
        logarithmic: Curves whose axes are.
        panels: What a picture shows: groups of columns, or of curves, each on one scale. Left out: the curves, or
            without any the columns, each for itself.
        Config: Frozen dataclass of settings, as a method's.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    claim: ClassVar[str] = ""
    of_updates: ClassVar[bool] = True
    columns: ClassVar[Mapping[str, str]]
    curves: ClassVar[Mapping[str, str]] = MappingProxyType({})
    along: ClassVar[Mapping[str, str]] = MappingProxyType({})
    logarithmic: ClassVar[Sequence[str]] = ()
    panels: ClassVar[Sequence[Sequence[str]]] = ()
    Config: ClassVar[type[Any]] = MethodConfig

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    def look(self, layer: LayerChange, generator: torch.Generator) -> LayerFindings:
        """Return what there is to say of one layer.

        Args:
            layer: The layer.
            generator: The only source of randomness, on the CPU; the same for every run.
        """
        raise NotImplementedError
