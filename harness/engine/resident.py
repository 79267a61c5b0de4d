"""The resident frozen model: loaded once, with slots in the places of the layers that trials adapt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from harness.contract.task import ModelKind, Task
from harness.engine.decomposition import announce
from harness.engine.model import (
    DTYPES,
    count_parameters,
    is_causal,
    linear_layers,
    trained_modules,
    use_capturable_attention,
)
from harness.engine.slots import LinearSlot, ModuleSlot, Slot, pretrained, set_submodule
from harness.errors import ConfigError

PADDING_CHANGE = 0.05  # of a model's output; rounding to bfloat16 changes less


class Base:
    """The resident frozen model.

    Args:
        model: Frozen, on its device.
        task: Says what the model's output means.
        precision: Of activations and frozen weights.
        fresh: Parameters that the checkpoint did not have: each trial draws them from its own seed.
        recomputes: Whether the backward pass computes each block's activations again instead of keeping them: less
            memory, a third more time, the same result.
    """

    def __init__(
        self, model: nn.Module, task: Task, precision: str, fresh: Sequence[str] = (), recomputes: bool = False
    ) -> None:
        self.model, self.task, self.dtype, self.fresh = model.eval(), task, DTYPES[precision], frozenset(fresh)
        self.device = next(model.parameters()).device
        use_capturable_attention(model)
        self.parameters = count_parameters(model)
        self.is_causal = is_causal(model)
        self._check_padding()
        self.layers = linear_layers(model, task.trains)
        whole = trained_modules(model, task.trains)
        self.linear_slots = {name: LinearSlot(model.get_submodule(name)) for name in self.layers}
        self.module_slots = {name: ModuleSlot(model.get_submodule(name)) for name in whole}
        self.slots: dict[str, Slot] = {**self.linear_slots, **self.module_slots}
        for name, slot in self.slots.items():
            set_submodule(model, name, slot)
        if recomputes:
            for block in self.blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        announce(slot.linear[0].weight for slot in self.linear_slots.values())

    @torch.no_grad()
    def _check_padding(self) -> None:
        """Refuse an encoder that computes something else of a text when it is padded: XLNet, FNet, MobileBERT.

        What it learns and how it scores would depend on the texts that share a batch.
        """
        if self.is_causal or self.task.model_kind not in (ModelKind.CLASSIFICATION, ModelKind.REGRESSION):
            return
        config = cast(Any, self.model.config)
        text = torch.arange(8, 16, device=self.device)[None]
        padding = torch.full_like(text, config.pad_token_id or 0)
        alone = self.model(input_ids=text, attention_mask=torch.ones_like(text)).logits
        mask = torch.cat([torch.ones_like(text), torch.zeros_like(text)], 1)
        padded = self.model(input_ids=torch.cat([text, padding], 1), attention_mask=mask).logits
        change = float((padded - alone).norm() / alone.norm().clamp_min(1e-12))
        if change > PADDING_CHANGE:
            raise ConfigError(
                f"{type(self.model).__name__}: padding a text changes what the model computes of it, by {change:.0%} "
                "here, so scores would depend on which texts share a batch; take another encoder"
            )

    @cached_property
    def blocks(self) -> list[nn.Module]:
        """The repeated blocks of the model: compiling one compiles all."""
        lists = [each for each in self.model.modules() if isinstance(each, nn.ModuleList) and len(each) > 1]
        alike = [list(each) for each in lists if len({type(block) for block in each}) == 1]
        return max(alike, key=lambda blocks: sum(count_parameters(block) for block in blocks), default=[])

    @cached_property
    def rowwise(self) -> frozenset[str]:
        """The slots whose input has the batch's rows one after the other. Only there can each lane find its own.

        Not so e.g. in DeBERTa, whose query and key layers also see relative positions, the same for every row.
        """
        halves = {name: (sizes[: len(sizes) // 2], sizes[len(sizes) // 2 :]) for name, sizes in self._sizes.items()}
        return frozenset(name for name, (few, many) in halves.items() if many == [2 * size for size in few])

    @cached_property
    def rows_apart(self) -> frozenset[str]:
        """The slots whose input has the rows in a dimension of their own. Only there can dropout tell rows from tokens.

        Not so e.g. in OPT, some of whose layers see rows and tokens as one dimension.
        """
        expected = {name: [2] * (len(sizes) // 2) + [4] * (len(sizes) // 2) for name, sizes in self._sizes.items()}
        return frozenset(name for name, sizes in self._sizes.items() if sizes == expected[name])

    @cached_property
    def _sizes(self) -> dict[str, list[int]]:
        """The sizes of the first dimension of each slot's inputs, in a batch of two rows and in one of four."""
        seen: dict[str, list[int]] = {name: [] for name in self.slots}
        hooks = [
            slot.register_forward_pre_hook(lambda _, inputs, sizes=seen[name]: sizes.append(inputs[0].shape[0]))
            for name, slot in self.slots.items()
        ]
        ids = torch.arange(8, device=self.device)
        try:
            with torch.no_grad(), pretrained(self.model):
                for rows in (2, 4):
                    self.model(input_ids=ids.repeat(rows, 1), attention_mask=torch.ones_like(ids).repeat(rows, 1))
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def clear(self) -> None:
        """Take every lane out: the model is the pretrained one again."""
        for slot in self.slots.values():
            slot.parts = ()
