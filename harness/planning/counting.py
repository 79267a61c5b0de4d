"""How many parameters a method trains on a model: by its own formula, or, if it attaches, by attaching it.

What is not here: turning a budget into settings (``budget``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from harness.contract.method import Method, TrialContext, attaches
from harness.engine.attached import count_attached
from harness.errors import ConfigError, HarnessError, PluginLoadError

UNKNOWN = TrialContext()
FINAL, TRAINED = "final_parameters", "trainable_parameters"  # a method's two formulas; of most they are one


def count_parameters_of(
    method: type[Method],
    config: Any,
    layers: Mapping[str, tuple[int, int]],
    skeleton: nn.Module | None,
    context: TrialContext = UNKNOWN,
    formula: str = FINAL,
) -> int:
    """Return the parameters that a method with this config has, when training ends or as it starts.

    Args:
        method: Any.
        config: Its settings.
        layers: Adapted layers, ``{name: (in, out)}``.
        skeleton: The model without weights; needed by methods that attach.
        context: Decides settings that are left to the method.
        formula: ``FINAL`` or ``TRAINED``.

    Raises:
        ConfigError: The method cannot be applied to the model, or to one of its layers.
        PluginLoadError: The method's own code fails.
    """
    if not attaches(method):
        return count_on_layers(method, config, layers, context, formula)
    if skeleton is None:
        raise ConfigError(f"{method.name} has no size without a model")
    try:
        return count_attached(method(method.resolve(config, context)), skeleton, layers)
    except HarnessError:
        raise
    except Exception as error:
        raise PluginLoadError(
            f"{method.name}: attach() raises {type(error).__name__}: {' '.join(str(error).split())}; it must work on "
            "a model without weights (device meta), on which it is counted, or raise ConfigError where the method "
            "cannot be applied. Please correct the method (`harness check` tests it), or leave it out."
        ) from error


def count_on_layers(
    method: type[Method],
    config: Any,
    layers: Mapping[str, tuple[int, int]],
    context: TrialContext = UNKNOWN,
    formula: str = FINAL,
) -> int:
    """Return the parameters that a method with this config has on all layers, when training ends or as it starts.

    Raises:
        ConfigError: The method cannot be applied to a layer; the message names it.
        PluginLoadError: The method's formula fails, or gives no number of parameters.
    """
    instance, found, total = method(method.resolve(config, context)), dict[tuple[int, int], int](), 0
    for name, shape in layers.items():
        if shape not in found:  # models repeat few shapes many times
            try:
                found[shape] = count_on_layer(instance, shape, formula)
            except ConfigError as error:
                raise ConfigError(f"layer {name!r}: {error}") from error
        total += found[shape]
    return total


def count_on_layer(method: Method, shape: tuple[int, int], formula: str = FINAL) -> int:
    """Return the parameters that a method says it has on one layer (in, out); what it says is a stranger's code."""
    if type(method).final_parameters is Method.final_parameters:
        formula = TRAINED  # to be named where it fails
    call = f"{method.name}: {formula}(in_features={shape[0]}, out_features={shape[1]})"
    advice = "correct the method (`harness check` tests it), or leave it out"
    try:
        count: Any = getattr(method, formula)(*shape)
    except HarnessError:
        raise
    except Exception as error:
        raise PluginLoadError(
            f"{call} raises {type(error).__name__}: {error}; it must return an int >= 0, "
            f"or raise ConfigError where the method cannot be applied. Please {advice}."
        ) from error
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise PluginLoadError(f"{call} returns {count!r}; it must return an int >= 0. Please {advice}.")
    return count
