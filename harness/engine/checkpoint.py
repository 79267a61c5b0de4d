"""A lane in the middle of its training, as bytes: safetensors, with JSON in their header. No pickles.

What a lane is made of follows from its trial, so only what training changed is saved: every tensor of its modules,
its optimizer's state, its generator, how far it has come, what it was at its best evaluation, and the losses that
nobody has looked at yet.

What is not here: when that is done and where it is kept (``running.checkpoints``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from harness.engine.lane import Best, Lane

COUNTS = (
    "done", "train_seconds", "evaluate_seconds", "prepare_seconds", "train_tokens", "padded_tokens", "forms",
    "pack_lanes", "compiled", "recomputes", "rows_at_once",
)  # fmt: skip
PLAIN = (bool, int, float, str, type(None))


def save_lane(lane: Lane, stamp: str) -> bytes:
    """Return a lane's state.

    Args:
        lane: Between two updates.
        stamp: Says what the state is good for.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _tensors(lane)}
    numbers: dict[str, Any] = {}
    for place, parameter in enumerate(lane.parameters()):
        for key, value in lane.optimizer.state.get(parameter, {}).items():
            name = f"optimizer.{place}.{key}"
            if isinstance(value, Tensor):
                tensors[name] = value.detach().cpu().contiguous().clone()
            else:
                numbers[name] = value
    tensors["generator"] = lane.generator.get_state()
    tensors["pending"] = lane.pending.cpu()
    tensors |= {f"best.{name}": tensor for name, tensor in (lane.best.state if lane.best else {}).items()}
    best = lane.best and (lane.best.step, lane.best.score)
    state = {
        "numbers": numbers,
        "history": lane.history,
        "best": best,
        **{name: getattr(lane, name) for name in COUNTS},
    }
    return save(tensors, metadata={"stamp": stamp, "trial": lane.trial.id, "lane": json.dumps(state)})


def restore_lane(lane: Lane, path: str, stamp: str) -> bool:
    """Give a new lane the state that one of its trial had; return whether it is there and good for it.

    Args:
        lane: Just made.
        path: Of a local file with what ``save_lane`` returned.
        stamp: As it must have been saved with.
    """
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        if (header.get("stamp"), header.get("trial")) != (stamp, lane.trial.id):
            return False
        saved = {name: file.get_tensor(name) for name in file.keys()}
    state = json.loads(header["lane"])
    numbers, history, best = (state[name] for name in ("numbers", "history", "best"))
    counts = {name: state[name] for name in COUNTS}
    generator, pending = saved["generator"], saved["pending"]
    live = dict(_tensors(lane))
    shapes = {name: each.shape for name, each in saved.items() if name.startswith(("own.", "master."))}
    if shapes != {name: each.shape for name, each in live.items()}:
        return False
    # All is there: from here on the lane is changed.
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(saved[name])
    for place, parameter in enumerate(lane.parameters()):
        start = f"optimizer.{place}."
        found: dict[str, Any] = {name.removeprefix(start): saved[name] for name in saved if name.startswith(start)}
        found |= {name.removeprefix(start): each for name, each in numbers.items() if name.startswith(start)}
        if found:
            on = lane.base.device
            lane.optimizer.state[parameter] = {
                key: value.to(on if key != "step" or on.type == "cuda" else "cpu")
                if isinstance(value, Tensor)
                else value
                for key, value in found.items()
            }
    lane.generator.set_state(generator)
    lane.pending = pending.to(lane.base.device)
    lane.history[:] = history
    kept = {name.removeprefix("best."): each for name, each in saved.items() if name.startswith("best.")}
    if best:
        step, score = best
        lane.best = Best(step, score, kept)
    for name, value in counts.items():
        setattr(lane, name, value)
    lane.skip(lane.done)
    return True


def unsaved(lane: Lane) -> Mapping[str, Any]:
    """Return what a lane's method and adapters keep outside of tensors, by name: ``save_lane`` does not save it.

    If it is another than when the lane was made, the lane cannot be saved.
    """
    owners = {"": lane.method, **lane.adapters}
    return {
        f"{name}.{key}": value if isinstance(value, PLAIN) else repr(value)
        for name, owner in owners.items()
        for key, value in vars(owner).items()
        if not key.startswith("_") and key not in ("training", "config") and not callable(value)
        if isinstance(value, (*PLAIN, tuple, list, dict, set, frozenset))
    }


def _tensors(lane: Lane) -> Iterator[tuple[str, Tensor]]:
    """Yield everything that training may change, by a name of its own; shared tensors once."""
    owners: dict[str, nn.Module] = dict(lane.trained())
    seen: set[int] = set()
    if lane.private is not None:
        for name, parameter in lane.private.named_parameters():
            if parameter.requires_grad:
                yield f"own.{name}", parameter
        shared = {id(each) for each in lane.base.model.buffers()}  # such as weights in 4 bits, which never change
        for name, buffer in lane.private.named_buffers():
            if id(buffer) not in shared:
                yield f"own.buffer.{name}", buffer
        for name, master in lane.masters.items():
            yield f"master.{name}", master
    for name, module in owners.items():
        for key, tensor in (*module.named_parameters(), *module.named_buffers()):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"own.{name}/{key}", tensor
