"""Checks of what a method says: its name, its settings, its size; and that what it builds runs at all."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from harness.contract.method import Method, MethodTraits, adapted_layers, attaches
from harness.engine.attached import count_attached
from harness.errors import ConfigError
from harness.testing.contract import Seen, check, expect, global_randomness, if_knob, on_adapters, some
from harness.testing.language import on_meta
from harness.testing.problem import TinyTrial, describe

KNOB_VALUES = (1, 2, 3, 4, 6, 8, 12, 16)


@check(of_class=True, if_raised="plain numbers, strings, booleans or None, all with defaults, as settings")
def check_declares_name_paper_config(kind: type[Method]) -> None:
    """It has a slug, a paper's URL, traits, and a frozen, documented ``Config`` that survives JSON."""
    name, paper = getattr(kind, "name", None), getattr(kind, "paper", None)
    expect(
        isinstance(name, str) and re.fullmatch(r"[a-z0-9][a-z0-9+_-]*(:[a-z0-9][a-z0-9+_-]*)?", name) is not None,
        f"name is {name!r}",
        'a lower-case slug such as name = "dora"',
    )
    expect(
        isinstance(paper, str) and re.fullmatch(r"https?://\S+", paper) is not None,
        f"paper is {paper!r}",
        "the URL of the paper, https://...",
    )
    traits, config_class = kind.traits, kind.Config
    expect(isinstance(traits, MethodTraits), f"traits is {traits!r}", "traits = MethodTraits(...)")
    expect(
        math.isfinite(traits.learning_rate_factor) and traits.learning_rate_factor > 0,
        f"traits.learning_rate_factor is {traits.learning_rate_factor!r}",
        "a finite factor above 0",
    )
    expect(
        dataclasses.is_dataclass(config_class) and cast(Any, config_class).__dataclass_params__.frozen,
        f"Config is {config_class!r}, not a frozen dataclass",
        "@dataclass(frozen=True) and MethodConfig as its base",
    )
    fields = {each.name: each for each in dataclasses.fields(cast(Any, config_class))}
    for each in fields.values():
        expect(
            each.default is not dataclasses.MISSING,
            f"Config.{each.name} has no default",
            f'{each.name}: ... = setting(default, "what it means")',
        )
        expect(
            bool(each.metadata.get("help")),
            f"Config.{each.name} is not documented",
            f'{each.name}: ... = setting(default, "what it means")',
        )
    knob, unknown = traits.budget_knob, sorted(set(traits.check_config) - set(fields))
    expect(
        knob is None or (knob in fields and type(fields[knob].default) is int),
        f"traits.budget_knob is {knob!r}, which is no integer field of Config",
        f"one of {', '.join(fields) or 'no fields: give None'}, or None for a fixed size",
    )
    expect(
        not unknown,
        f"traits.check_config sets {some(unknown)}, which Config lacks",
        "names of Config's fields",
    )
    for config in (config_class(), config_class(**traits.check_config)):
        plain = dataclasses.asdict(config)
        try:
            again = config_class(**json.loads(json.dumps(plain, allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise Seen(
                f"{config!r} does not survive JSON: {error}", "plain numbers, strings, booleans or None"
            ) from error
        expect(
            again == config,
            f"{config!r} comes back from JSON as {again!r}",
            "plain numbers, strings, booleans or None",
        )


@check(if_raised="to build one adapter and call it by hand")
def check_builds_and_runs(method: Method) -> None:
    """A model with it, before training, gives finite numbers of the shape that the pretrained model gives."""
    trial = TinyTrial(method).calibrate()
    output = trial.output()
    with torch.no_grad():
        expected = type(trial.problem)(output.dtype).output()
    expect(
        output.shape == expected.shape and bool(torch.isfinite(output).all()),
        f"the model's output has shape {tuple(output.shape)} instead of {tuple(expected.shape)}, or is not finite",
        "returning what takes the place of base_output",
    )


@check()
def check_init_only_stores(method: Method) -> None:
    """Constructing it keeps the config and does nothing else: no tensors, no drawing, no precomputing."""
    config = method.config
    before = global_randomness()
    fresh = type(method)(config)
    expect(
        global_randomness() == before,
        "constructing it draws from a global random stream",
        "draw in adapter(), from its generator",
    )
    expect(
        fresh.config is config,
        f"its config attribute is {fresh.config!r} instead of what was given",
        "not to override __init__",
    )
    extra = sorted(set(vars(fresh)) - {"config"})
    expect(not extra, f"__init__ also sets {some(extra)}", "to compute it in adapter() or in a property")
    expect(
        type(method)().config == type(method).Config(),
        "without a config it does not use Config()",
        "not to override __init__",
    )


@check()
def check_bad_config_is_named(method: Method) -> None:
    """A setting out of range, or of another type, is refused by a ``ConfigError`` with field and value."""
    for each in dataclasses.fields(method.config):
        minimum, maximum = each.metadata.get("minimum"), each.metadata.get("maximum")
        bad: list[tuple[Any, str]] = []
        if minimum is not None:
            below = minimum - 1
            bad.append((below - 1 if below == each.metadata.get("formerly") else below, str(minimum)))
        if maximum is not None:
            bad.append((maximum + 1, str(maximum)))
        if {"choices", "kind"} & {name for name, value in each.metadata.items() if value is not None} or (
            type(each.default) in (int, float, bool)
        ):
            bad.append(("nonsense", ""))
        if type(each.default) is float:
            bad.append((math.nan, ""))
        for value, bound in bad:
            given = f"{type(method.config).__name__}({each.name}={value!r})"
            advice = "MethodConfig as the base of Config, and super().__post_init__() first in an override"
            try:
                dataclasses.replace(method.config, **{each.name: value})
            except ConfigError as error:
                for part in (each.name, repr(value), bound):
                    expect(
                        part in str(error),
                        f"{given} is refused, but the message lacks {part!r}: {error}",
                        advice,
                    )
            except Exception as error:
                raise Seen(f"{given} raises {type(error).__name__} instead of ConfigError: {error}", advice) from error
            else:
                raise Seen(f"{given} is accepted", advice)


@check(if_knob)
def check_budget_knob_is_monotone(method: Method) -> None:
    """A larger knob never means fewer trainable parameters, and over its range it means more; so do the final ones."""
    knob = cast(str, method.traits.budget_knob)
    places: list[tuple[str, Callable[[Method], int]]] = [
        (f"on a layer with I={i}, O={o}, {formula} is", partial(_on_layer, i, o, formula))
        for i, o in ((64, 64), (60, 100), (344, 128))
        for formula in ("trainable_parameters", "final_parameters")
    ]
    if attaches(method):
        places = [("attached to a tiny model, what trains is", partial(_attached, on_meta()))]
    for what, count in places:
        counts: dict[int, int] = {}
        for value in KNOB_VALUES:
            try:
                counts[value] = count(type(method)(dataclasses.replace(method.config, **{knob: value})))
            except ConfigError:
                continue  # not every size is possible on every shape
        listed = list(counts.values())
        seen = f"{what} {counts} for {knob}"
        advice = "a size that grows with the knob, or another budget_knob"
        expect(listed == sorted(listed), seen, advice)
        expect(len(listed) < 2 or listed[-1] > listed[0], seen, advice)


def _on_layer(i: int, o: int, formula: str, method: Method) -> int:
    count: int = getattr(method, formula)(i, o)
    return count


def _attached(skeleton: nn.Module, method: Method) -> int:
    return count_attached(method, skeleton, tuple(adapted_layers(skeleton)))


@check(on_adapters)
def check_trainable_count_matches_formula(method: Method) -> None:
    """``trainable_parameters`` is an int and equals the elements of the parameters that require gradients."""
    trial = TinyTrial(method).calibrate()
    for name, layer in trial.problem.model.linears():
        said: Any = method.trainable_parameters(layer.in_features, layer.out_features)
        expect(type(said) is int, f"trainable_parameters returns {said!r}, a {type(said).__name__}", "an int")
        counted = sum(p.numel() for p in trial.adapters[name].parameters() if p.requires_grad)
        expect(
            said == counted,
            f"the formula says {said}, the adapter on {describe(layer)} has {counted}",
            "counting every nn.Parameter that requires gradients, and buffers for what does not train",
        )
