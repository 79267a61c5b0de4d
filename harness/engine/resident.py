"""The resident frozen model: loaded once, with slots in the places of the layers that trials adapt."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from harness.contract.task import ModelKind, Task
from harness.engine.attention import use_capturable_attention
from harness.engine.behaviour import check_behaviour, check_gradients, position_limit
from harness.engine.decomposition import announce
from harness.engine.flat import Layout, layout_of
from harness.engine.layers import find_layers, repeated_blocks, set_submodule, stacked_blocks, trained_modules
from harness.engine.losses import check_loss
from harness.engine.model import DTYPES, count_parameters, is_causal
from harness.engine.norms import fuse_norms
from harness.engine.probe import some_text
from harness.engine.quantised import quantise_layers
from harness.engine.ranks import Ranks
from harness.engine.readers import Readers
from harness.engine.sharding import DividedLinear
from harness.engine.slots import LinearSlot, ModuleSlot, Slot, pretrained
from harness.errors import ConfigError

logger = logging.getLogger(__name__)


class Base:
    """The resident frozen model.

    Args:
        model: Frozen, on its device.
        task: Says what the model's output means.
        precision: Of activations and frozen weights.
        fresh: Parameters that the checkpoint did not have: each trial draws them from its own seed.
        recomputes: Whether the backward pass computes each block's activations again instead of keeping them: less
            memory, a third more time, the same result.
        lays_flat: Whether texts may lie one after another without padding, where the model allows it. ``None``: where
            there is a kernel for it, on GPUs in half precision.
        quantize: How the weights of linear layers are kept (``quantised.KINDS``); empty: as they are.
        device: Where to train, if the model is not there yet: then its quantised weights never are there as they were.
        ranks: The processes over which the model is divided; mostly one.
    """

    def __init__(
        self, model: nn.Module, task: Task, precision: str, fresh: Sequence[str] = (), recomputes: bool = False,
        lays_flat: bool | None = None, quantize: str = "", device: torch.device | None = None,
        ranks: Ranks = Ranks(),  # noqa: B008 - has no state
    ) -> None:  # fmt: skip
        self.model, self.task, self.dtype, self.fresh = model.eval(), task, DTYPES[precision], frozenset(fresh)
        self.ranks = ranks
        self.device = device or next(model.parameters()).device
        found = find_layers(model, task.trains)
        self.layers, self.left_out = found.shapes, found.left_out
        use_capturable_attention(model)
        self.parameters = count_parameters(model)
        self.is_causal = is_causal(model)
        check_behaviour(model, task.model_kind)
        check_gradients(model, found.places)
        self.most_tokens = position_limit(model)
        if self._speaks:
            check_loss(model)  # here, where all ranks are: it also finds the head's form
        whole = trained_modules(model, task.trains)
        if quantize:
            quantise_layers(model, found.places, quantize, self.device)
        self.linear_slots = {name: LinearSlot(model.get_submodule(name)) for name in self.layers}
        self.module_slots = {name: ModuleSlot(model.get_submodule(name)) for name in whole}
        self.slots: dict[str, Slot] = {**self.linear_slots, **self.module_slots}
        for name, slot in self.slots.items():
            for place in found.places.get(name, (name,)):
                set_submodule(model, place, slot)
        model.to(self.device)
        self.can_recompute = bool(stacked_blocks(model))
        self.recomputes = recomputes and self.can_recompute
        if recomputes and not self.can_recompute:
            logger.warning(
                "%s is no stack of blocks, so its activations are kept, not computed again", type(model).__name__
            )
        has_kernel = self.device.type == "cuda" and self.dtype is not torch.float32
        self._lays_flat = has_kernel if lays_flat is None else lays_flat
        if has_kernel:
            trained = {id(each) for slot in self.module_slots.values() for each in slot.modules()}
            fuse_norms(each for each in model.modules() if id(each) not in trained)
        self._readers: Readers | None = None
        is_whole = not quantize and ranks.count == 1
        announce([slot.linear[0].weight for slot in self.linear_slots.values()] if is_whole else [])

    def layer(self, name: str) -> nn.Linear:
        """Return a frozen layer as adapters see it."""
        layer = self.linear_slots[name].linear[0]
        return layer if self.ranks.count == 1 else cast(nn.Linear, DividedLinear(layer))

    def check_length(self, tokens: int) -> None:
        """Refuse a text with more tokens than the model has positions; on a GPU reading beyond them ends the process.

        Raises:
            ConfigError: It has.
        """
        if self.most_tokens is not None and tokens > self.most_tokens:
            raise ConfigError(
                f"{type(self.model).__name__}: a text of {tokens} tokens is longer than the model's {self.most_tokens} "
                "positions; give a shorter --set max_length=N where the task has it, or take another model"
            )

    @property
    def _speaks(self) -> bool:
        return self.task.model_kind in (ModelKind.CAUSAL_LM, ModelKind.FROM_SCRATCH)

    @cached_property
    def longest_flat(self) -> int:
        """The most tokens that a text may have to lie in one row with others; 0: each has a row of its own."""
        return self.layout.longest

    @cached_property
    def layout(self) -> Layout:
        """How texts may lie in one row with others."""
        if not self._lays_flat or (self._speaks and not self.is_causal):
            return Layout()
        with pretrained(self.model):
            return layout_of(self.model, self._speaks, self.is_causal)

    @cached_property
    def blocks(self) -> list[nn.Module]:
        """The repeated blocks of the model: compiling one compiles all."""
        return repeated_blocks(self.model)

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
        ids = some_text(self.model)[0]
        try:
            with torch.no_grad(), pretrained(self.model):
                for rows in (2, 4):
                    self.model(input_ids=ids.repeat(rows, 1), attention_mask=torch.ones_like(ids).repeat(rows, 1))
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def read(self, modules: Mapping[str, nn.Module]) -> None:
        """Put what reads a lane's modules in their places, for evaluation.

        On a GPU it is the same for lanes that are alike and read one after the other, so that what was captured for one
        can be replayed for the next.
        """
        if self._readers is None or not self._readers.take(modules):
            self._readers = None  # what it held is free before there is another
            self._readers = Readers(modules, self.dtype, copies=self.device.type == "cuda")
        for name, reader in self._readers.items():
            self.slots[name].parts = ((reader, 1),)

    def forget(self) -> None:
        """Let go of what read the last lane's modules, and so of all that was captured with it."""
        self._readers = None

    def clear(self) -> None:
        """Take every lane out: the model is the pretrained one again."""
        for slot in self.slots.values():
            slot.parts = ()


def recompute(model: nn.Module, on: bool) -> None:
    """Let a model's blocks compute their activations again in the backward pass, or keep them."""
    for block in stacked_blocks(model):
        if on and "forward" not in vars(block):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        elif not on and "forward" in vars(block):
            del block.forward
