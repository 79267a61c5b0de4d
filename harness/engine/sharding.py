"""A base model divided over ranks by FSDP2: each keeps a part of every block, and gets the rest while it needs it.

Only the matrices of the repeated blocks are divided: they are nearly all of a large model. Embeddings, head and norms,
and whatever the task trains whole, every rank has. Nothing that is divided trains.

The first rank alone loads the model, into its host's memory. From there one block after the other goes to all devices,
each of which keeps its part and drops the rest: at no time does a device hold more than its parts and one block.

What is not here: what ranks share besides the model (``ranks``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from harness.engine.layers import repeated_blocks, trained_modules
from harness.engine.ranks import Together
from harness.errors import ConfigError


def load_divided(
    load: Callable[[], tuple[nn.Module, list[str]]], empty: Callable[[], nn.Module], trains: Sequence[str],
    ranks: Together, device: torch.device,
) -> tuple[nn.Module, list[str]]:  # fmt: skip
    """Return a base model that is divided over ranks, and the names of parameters that its checkpoint did not have.

    Args:
        load: Loads it whole, on the CPU; called by the first rank.
        empty: Makes it on the meta device; called by the others.
        trains: Patterns of modules that the task trains whole.
        ranks: All of them call this.
        device: This rank's.
    """
    whole: list[nn.Module] = []

    def loaded() -> dict[str, Any]:
        model, fresh = load()
        whole.append(model)
        return {"fresh": fresh, "places": [each.to_json() for each in places_of(model)]}

    told = ranks.told(loaded)
    model = whole.pop() if whole else empty().requires_grad_(False).eval()

    def give(place: Place) -> Tensor:
        """Return the first rank's tensor."""
        if ranks.number == 0:
            tensor = place.find(model).detach().to(device).contiguous()
        else:
            tensor = torch.empty(tuple(place.shape), dtype=getattr(torch, place.dtype), device=device)
        ranks.send(tensor)
        return tensor

    divide(model, [Place(*each) for each in told["places"]], give, trains, ranks, device)
    return model, list(told["fresh"])


class Place(NamedTuple):
    """Where a tensor stands in a model, by name or, where it is shared, several, and what is known of it."""

    names: Sequence[str]
    shape: Sequence[int]
    dtype: str
    is_parameter: bool

    def to_json(self) -> list[Any]:
        """Return plain JSON types."""
        return [list(self.names), list(self.shape), self.dtype, self.is_parameter]

    def find(self, model: nn.Module) -> Tensor:
        """Return the tensor."""
        name = self.names[0]
        return model.get_parameter(name) if self.is_parameter else model.get_buffer(name)

    def put(self, model: nn.Module, tensor: Tensor) -> None:
        """Let another stand there."""
        new = nn.Parameter(tensor, requires_grad=False) if self.is_parameter else tensor
        for name in self.names:
            path, _, leaf = name.rpartition(".")
            owner = model.get_submodule(path)
            cast(dict[str, Any], owner._parameters if self.is_parameter else owner._buffers)[leaf] = new


def places_of(model: nn.Module) -> list[Place]:
    """Return the places of all tensors of a model."""
    found: dict[int, tuple[list[str], Tensor]] = {}
    named = model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    for name, tensor in chain(*named):
        found.setdefault(id(tensor), ([], tensor))[0].append(name)
    return [
        Place(names, tensor.shape, str(tensor.dtype).removeprefix("torch."), isinstance(tensor, nn.Parameter))
        for names, tensor in found.values()
    ]


def divide(
    model: nn.Module, places: Sequence[Place], give: Callable[[Place], Tensor], trains: Sequence[str],
    ranks: Together, device: torch.device,
) -> None:  # fmt: skip
    """Divide a model over ranks, in place.

    Args:
        model: Frozen, wherever its tensors are.
        places: Where they are, the same on all ranks.
        give: Returns what shall stand in a place, whole, on the device; the same on all ranks.
        trains: Patterns of modules that the task trains whole.
        ranks: All of them.
        device: This rank's.

    Raises:
        ConfigError: There are no blocks to divide.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    blocks = repeated_blocks(model)
    if not blocks:
        raise ConfigError(f"{type(model).__name__} is no stack of blocks, so it cannot be divided over devices")
    mesh = init_device_mesh(device.type, (ranks.count,))
    begins = {block: f"{name}." for name, block in model.named_modules() if block in set(blocks)}
    trained = trained_modules(model, trains)
    left = list(places)
    for block in blocks:
        inside = [each for each in left if each.names[0].startswith(begins[block])]
        left = [each for each in left if each not in inside]
        for place in inside:
            place.put(model, give(place))
        dtype = max(block.parameters(), key=Tensor.numel).dtype
        kept = {each for each in block.parameters() if each.ndim < 2 or each.dtype is not dtype}
        kept |= {each for name in trained for each in model.get_submodule(name).parameters()}
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
    for place in left:
        place.put(model, give(place))
    fully_shard(model, mesh=mesh, ignored_params=set(model.parameters()))


def is_divided(model: nn.Module) -> bool:
    """Return whether a model is divided over ranks."""
    return any(hasattr(each, "full_tensor") for each in model.parameters())


class DividedLinear(nn.Module):
    """A linear layer of a divided model as adapters see it: the weight is whole whenever it is read, and not kept.

    While the layer's block runs, the weight is there; otherwise the ranks, all at once, put it together.

    Args:
        layer: The layer in the model.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._layer = (layer,)

    @property
    def weight(self) -> Tensor:
        """The weight, (O, I)."""
        weight = self._layer[0].weight
        return cast(Tensor, weight.full_tensor()) if hasattr(weight, "full_tensor") else weight

    @property
    def bias(self) -> Tensor | None:
        """The bias, (O,)."""
        return self._layer[0].bias
