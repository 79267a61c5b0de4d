"""One lane's modules as they are read in evaluation: in the base's precision, with copies of the lane's values.

The modules of another lane can be read into the same copies if they are alike. So what was captured on a GPU with one
lane's modules in place may be replayed for the next lane's (``decoding``).

What is not here: modules that train, alone or stacked (``slots``).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from harness.contract.adapter import Adapter, LowRankAdapter
from harness.contract.dropout import Dropout
from harness.engine.low_rank import Thin, is_thin, thin_of


class Reader:
    """One module, for evaluation: computes without touching gradients or storage.

    Args:
        module: The lane's own.
        tensors: By its parameters' and buffers' names, what is read in their places.
    """

    def __init__(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        self.modules = [module]
        self._twin = _with(module, tensors)
        self._is_thin = is_thin(module)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run the module."""
        return cast(Tensor, self._twin(*inputs))

    def thin(self, first: int) -> Thin | None:
        """Return the update where the module does nothing but add one of low rank, of the lane of this number."""
        if not self._is_thin:
            return None
        return thin_of(cast(LowRankAdapter, self._twin), first)


class Readers(Mapping[str, Reader]):
    """Readers of all of a lane's modules.

    Args:
        modules: By the places where they stand.
        dtype: To compute in; adapters say what stays as it is.
        copies: Whether values are copied that need no rounding, too, so that ``take`` works.
    """

    def __init__(self, modules: Mapping[str, nn.Module], dtype: torch.dtype, copies: bool) -> None:
        self._dtype = dtype
        self._form, tensors = _look(modules, dtype)
        self._values = {key: tensor.detach().to(key[1], copy=copies) for key, tensor in tensors.items()}
        self._readers = {
            place: Reader(module, {name: self._values[key] for name, key, _ in _named(module, dtype)})
            for place, module in modules.items()
        }
        self._takes = copies

    def __getitem__(self, place: str) -> Reader:
        """Return the reader of a place."""
        return self._readers[place]

    def __iter__(self) -> Iterator[str]:
        """Go through the places."""
        return iter(self._readers)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._readers)

    @torch.no_grad()
    def take(self, modules: Mapping[str, nn.Module]) -> bool:
        """Read another lane's modules, or the same ones' new values; return whether they were alike and it was done."""
        form, tensors = _look(modules, self._dtype)
        if not self._takes or form != self._form:
            return False
        if tensors:
            torch._foreach_copy_(list(self._values.values()), list(tensors.values()))
        for place, module in modules.items():
            self._readers[place].modules = [module]
        return True


Key = tuple[int, torch.dtype]  # a tensor, and the precision in which it is read


def kept_float32(module: nn.Module) -> tuple[str, ...]:
    """Return the names of tensors that an adapter wants unrounded."""
    return module.keep_float32 if isinstance(module, Adapter) else ()


def _named(module: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, Key, Tensor]]:
    exact = kept_float32(module)
    for named in (module.named_parameters, module.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            rounds = tensor.is_floating_point() and name not in exact
            yield name, (id(tensor), dtype if rounds else tensor.dtype), tensor


def _look(modules: Mapping[str, nn.Module], dtype: torch.dtype) -> tuple[list[Any], dict[Key, Tensor]]:
    """Return all that must be equal for modules to be alike, and their tensors, each once.

    The same tensor in several places is one; so which places share one belongs to the form.
    """
    tensors: dict[Key, Tensor] = {}
    numbers: dict[Key, int] = {}
    form: list[Any] = []
    for place, module in modules.items():
        form.append((place, [(path, type(each), _settings(each)) for path, each in module.named_modules()]))
        for name, key, tensor in _named(module, dtype):
            tensors[key], number = tensor, numbers.setdefault(key, len(numbers))
            form.append((name, number, tensor.shape, tensor.dtype, tensor.device, key[1]))
    return form, tensors


def _settings(module: nn.Module) -> dict[str, Any]:
    """Return a module's own attributes, but for parts and tensors."""
    if isinstance(module, Dropout):  # does nothing in evaluation
        return {}
    return {name: _setting(each) for name, each in vars(module).items() if name not in _OF_ANY_MODULE}


def plain_settings(module: nn.Module) -> list[tuple[str, str, Any]]:
    """Return the plain values, numbers above all, among the attributes of a module and its parts."""
    return [
        (path, name, value)
        for path, each in module.named_modules()
        for name, value in vars(each).items()
        if isinstance(value, PLAIN)
    ]


PLAIN = bool | int | float | complex | str | bytes | torch.dtype | torch.device | None


def _setting(value: Any) -> Any:
    """Return what must be equal for two attributes to be alike: what is no plain value is like nothing but itself."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, tuple | list):
        return [type(value), *map(_setting, value)]
    if isinstance(value, dict):
        return [type(value), *((key, _setting(each)) for key, each in value.items())]
    return id(value)  # whose readers live, lives: a reader's module shares its attributes


_OF_ANY_MODULE = frozenset(vars(nn.Module())) - {"training"}


def _with(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str = "") -> nn.Module:
    """Return a module that computes with other tensors.

    Calling it is several times faster than calling the module with replaced tensors.
    """
    other = copy.copy(module)
    vars(other).update(
        _parameters={name: tensors.get(prefix + name) for name in module._parameters},
        _buffers={name: tensors.get(prefix + name) for name in module._buffers},
        _modules={
            name: None if child is None else _with(child, tensors, f"{prefix}{name}.")
            for name, child in module._modules.items()
        },
    )
    return other
