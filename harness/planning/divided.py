"""What a base model that is divided over several devices can serve: said before anything runs.

What is not here: how it is divided (``engine.sharding``), which devices there are (``running.devices``).
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from harness.contract.method import Method, attaches
from harness.engine.layers import repeated_blocks, trained_modules
from harness.engine.model import ModelChoice, count_parameters
from harness.errors import ConfigError, UsageError


def check_divisible(choice: ModelChoice, skeleton: nn.Module, names: Iterable[str], quantize: str) -> None:
    """Refuse a base model that cannot be divided.

    Args:
        choice: The model.
        skeleton: It, without weights.
        names: Of the layers that adapters sit on.
        quantize: How its weights are kept, as the user said it; empty: as they are.

    Raises:
        UsageError: Says why, and what to do.
    """
    if quantize:
        raise UsageError(
            f"--shard and {quantize} are two ways to make a large model fit, and do not go together; "
            "leave one of them out"
        )
    if not repeated_blocks(skeleton):
        raise ConfigError(
            f"model {choice.name!r} is no stack of equal blocks, so --shard cannot divide it; leave --shard out"
        )
    for name in names:
        layer = skeleton.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            raise ConfigError(
                f"model {choice.name!r}: layer {name!r} is a {type(layer).__name__}, and --shard divides weights of "
                "nn.Linear only; take another model, or leave --shard out"
            )


def why_not(method: type[Method]) -> str:
    """Return why a method cannot train on a divided base model; empty: it can."""
    if attaches(method):
        return "it works on a model of its own, which would have to be whole on every device"
    if method.calibrate is not Method.calibrate:
        return "it starts from gradients of whole weights"
    return ""


def division_note(choice: ModelChoice, skeleton: nn.Module, trains: Iterable[str], shard: int) -> str:
    """Return how much of a model each device keeps, and what else is other than with one."""
    whole = {p for name in trained_modules(skeleton, tuple(trains)) for p in skeleton.get_submodule(name).parameters()}
    blocks = repeated_blocks(skeleton)
    divided = [p for block in blocks for p in block.parameters() if p.ndim > 1 and p not in whole]
    total, inside = count_parameters(skeleton), sum(p.numel() for p in divided)
    block = max(sum(p.numel() for p in each.parameters()) for each in blocks)
    return (
        f"{choice.name}: divided over {shard} devices: each keeps {total - inside + inside // shard:,} of {total:,} "
        f"parameters, and one block more ({block:,}) at a time. Trials run one after the other, uncaptured and "
        "uncompiled"
    )
