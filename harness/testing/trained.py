"""Checks of a training: where it starts, what it may and must change, and what randomness it uses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from harness.contract.method import Method, attaches
from harness.testing.contract import (
    check,
    difference,
    expect,
    global_randomness,
    if_identity,
    if_trains,
    is_close,
    on_adapters,
    some,
)
from harness.testing.problem import LEARNING_RATE, STEPS, TinyTrial, copies, moved

LOSS_STEPS = 5 * STEPS  # slow starters, e.g. three factors of which two are tiny, need some steps
LEAST_GAIN = 0.05  # fraction of the first loss that training must take off


@check(if_identity)
def check_identity_at_init(method: Method) -> None:
    """Before the first step the model's output is the pretrained one's."""
    trial = TinyTrial(method, dtype=torch.float64)
    with torch.no_grad():
        expected = type(trial.problem)(torch.float64).output()
    for stage in ("after building", "after calibrate()"):
        if stage != "after building":
            trial.calibrate()
        actual = trial.output()
        expect(
            is_close(actual, expected),
            f"{stage} the model's output differs from the pretrained one's ({difference(actual, expected)})",
            "a zero factor, or subtracting the initial update; or identity_at_init=False in traits",
        )


@check(if_trains)
def check_only_declared_tensors_move(method: Method) -> None:
    """Tensors that do not require gradients stay bit for bit the same, except the adapters' buffers."""
    trial = TinyTrial(method)
    declared = set(trial.trainable())

    def others() -> dict[str, Tensor]:
        model = {} if attaches(method) else trial.problem.model.state_dict(prefix="model:")
        frozen = {n: t for n, t in trial.tensors().items() if isinstance(t, nn.Parameter) or attaches(method)}
        return {n: t for n, t in {**model, **frozen}.items() if n not in declared}

    expect(bool(declared), "no parameter requires gradients", "nn.Parameter for what trains")
    before = copies(others())
    trial.calibrate().train()
    expect(
        set(trial.trainable()) == declared,
        "the set of parameters that require gradients changed",
        "to decide what trains when the adapter is built",
    )
    names = moved(before, others())
    expect(
        not names,
        f"{some(names)} moved without requiring gradients",
        "a buffer for state, nn.Parameter for what trains",
    )


@check(if_trains)
def check_every_trainable_tensor_moves(method: Method) -> None:
    """In training every parameter that requires gradients takes another value, even if it is pruned back later."""
    trial = TinyTrial(method).calibrate()
    before = copies(trial.trainable())
    ever: set[str] = set()
    trial.train(observe=lambda when, optimizer: ever.update(moved(before, trial.trainable())))
    still = sorted(set(before) - ever)
    expect(
        not still,
        f"{some(still)} did not move in {STEPS} steps",
        "using it in forward without detach(); two zero factors block each other's gradient for ever",
    )


@check(on_adapters)
def check_pretrained_model_untouched(method: Method) -> None:
    """Calibration and training leave the pretrained model as it was: weights, gradients, mode and hooks."""
    trial = TinyTrial(method)
    model = trial.problem.model

    def condition() -> list[tuple[Any, ...]]:
        hooks = [
            (
                name,
                module.training,
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
                len(module._backward_hooks),
            )
            for name, module in model.named_modules()
        ]
        return [*hooks, *((name, p.requires_grad, p.grad is None) for name, p in model.named_parameters())]

    before, weights = condition(), copies(model.state_dict())
    trial.calibrate()
    changed = [str(new[0]) or "model" for old, new in zip(before, condition(), strict=True) if old != new]
    expect(
        not changed,
        f"calibrate() leaves {some(changed)} with another mode, requires_grad, gradient or hook",
        "restoring in a finally what calibrate() changes",
    )
    trial.train()
    names = moved(weights, model.state_dict())
    expect(
        not names,
        f"{some(names)} of the shared pretrained model changed",
        "writing the change as a correction to base_output, e.g. base_output + B A x - B0 A0 x",
    )


@check(on_adapters)
def check_tensors_change_in_place(method: Method) -> None:
    """The adapters' parameters and buffers stay the same tensors: others hold views of them."""
    trial = TinyTrial(method)

    def places() -> dict[str, tuple[int, int]]:
        return {name: (id(tensor), tensor.data_ptr()) for name, tensor in trial.tensors().items()}

    built = trial.tensors()  # holding on to them, so that no identity is used again
    before = places()
    for stage, act in (("calibrate()", trial.calibrate), ("training", trial.train)):
        act()
        after = places()
        names = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        expect(
            not names,
            f"{stage} replaced {some(names)} by a new tensor",
            "in-place changes: tensor.copy_(...), tensor.zero_(); not self.a = ... or self.a.data = ...",
        )
    del built


@check(if_trains)
def check_tensors_stay_finite(method: Method) -> None:
    """No parameter, buffer or optimizer moment is ever NaN or infinite, before or after ``after_step``."""
    trial = TinyTrial(method).calibrate()

    def observe(when: str, optimizer: torch.optim.Optimizer) -> None:
        moments = {
            f"{key} of {name}": value
            for name, parameter in trial.trainable().items()
            for key, value in optimizer.state[parameter].items()
            if isinstance(value, Tensor)
        }
        bad = [n for n, t in {**trial.tensors(), **moments}.items() if not bool(torch.isfinite(t).all())]
        expect(
            not bad,
            f"{some(bad)} is not finite after {when}",
            "guarding divisions, square roots and logarithms against zero",
        )

    trial.train(observe=observe)


@check(if_trains)
def check_loss_falls(method: Method) -> None:
    """Training takes at least 5 % off the loss of a fixed problem that every method can fit a little."""
    trial = TinyTrial(method).calibrate().train(LOSS_STEPS)
    first, last = trial.losses[0], sum(trial.losses[-3:]) / 3
    expect(
        last <= (1 - LEAST_GAIN) * first,
        f"the loss went from {first:.4g} to {last:.4g} in {LOSS_STEPS} steps at learning rate "
        f"{LEARNING_RATE * method.traits.learning_rate_factor:g}",
        "looking at the sign and scale of the update and at traits.learning_rate_factor",
    )


@check(if_trains)
def check_same_seed_same_weights(method: Method) -> None:
    """The same seed gives the same tensors, bit for bit: one instance used twice, and a fresh one."""
    first = TinyTrial(method).calibrate().train().tensors()
    for which, instance in (("the same instance", method), ("a fresh instance", type(method)(method.config))):
        again = TinyTrial(instance).calibrate().train().tensors()
        names = moved(first, again)
        expect(
            not names,
            f"trained again from the same seed, {which} ends with other values in {some(names)}",
            "drawing only from the generator given, and keeping state in the adapters, not on the method",
        )


@check(if_trains)
def check_different_seed_differs(method: Method) -> None:
    """A method that draws random numbers starts, or ends, elsewhere under another seed."""
    trials = [TinyTrial(method, seed=seed) for seed in (0, 1)]
    starts = [copies(trial.tensors()) for trial in trials]
    for trial in trials:
        trial.calibrate().train()
    unused = torch.equal(trials[0].generator.get_state(), torch.Generator().manual_seed(0).get_state())
    differs = bool(moved(starts[0], starts[1]) or moved(trials[0].tensors(), trials[1].tensors()))
    expect(
        unused or differs,
        "it draws from the generator, yet two seeds give the same tensors",
        "not to re-seed the generator, and to use what is drawn",
    )


@check(if_trains)
def check_global_rng_untouched(method: Method) -> None:
    """Building, calibrating and training leave the random streams of torch, NumPy and Python alone."""
    trial = TinyTrial.__new__(TinyTrial)
    stages: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("building", lambda: TinyTrial.__init__(trial, method)),
        ("calibrate()", trial.calibrate),
        ("training", trial.train),
        ("a forward pass", trial.output),
    )
    before = global_randomness()
    for stage, act in stages:
        act()
        after = global_randomness()
        streams = [n for n, a, b in zip(("torch", "numpy", "random"), before, after, strict=True) if a != b]
        expect(
            not streams,
            f"{stage} moved or re-seeded the global stream of {some(streams)}",
            "passing the generator to every draw (nn.Linear and nn.init draw globally), and harness.Dropout",
        )


@check(if_trains)
def check_optimizer_hooks(method: Method) -> None:
    """Groups hold each trainable parameter once; rates, multipliers and the extra loss are finite."""
    trial = TinyTrial(method).calibrate()
    if trial.adapters:
        _check_groups(method, trial)
        extra: Any = method.extra_loss(trial.adapters)
        fine = extra is None or (isinstance(extra, Tensor) and extra.shape == () and bool(torch.isfinite(extra)))
        expect(fine, f"extra_loss returns {extra!r}", "a finite scalar tensor, or None")
    multipliers = [method.learning_rate_multiplier(step, STEPS, lambda _: 1.0) for step in range(STEPS)]
    for step, value in enumerate(multipliers):
        expect(
            math.isfinite(value) and value >= 0,
            f"learning_rate_multiplier({step}, {STEPS}, ...) is {value!r}",
            "a finite multiplier of 0 or more",
        )
    expect(max(multipliers) > 0, "learning_rate_multiplier is 0 at every step", "multiplying default(step)")


def _check_groups(method: Method, trial: TinyTrial) -> None:
    names = {id(p): name for name, p in trial.trainable().items()}
    rates = {}
    for rate in (LEARNING_RATE, 2 * LEARNING_RATE):
        groups = method.parameter_groups(trial.adapters, rate, 0.1)
        rates[rate] = [group.get("lr") for group in groups]
        given = [id(p) for group in groups for p in group["params"]]
        for problem, wrong in (
            ("misses", [name for key, name in names.items() if key not in given]),
            ("repeats", [name for key, name in names.items() if given.count(key) > 1]),
            ("adds", ["a tensor that does not require gradients"] if set(given) - set(names) else []),
        ):
            expect(
                not wrong,
                f"parameter_groups {problem} {some(wrong)}",
                "each trainable parameter in one group, once",
            )
        for value in rates[rate]:
            fine = isinstance(value, float | int) and math.isfinite(value) and value >= 0
            expect(
                fine,
                f"parameter_groups gives a group lr={value!r}",
                "a finite learning rate of 0 or more in every group",
            )
    expect(
        rates[LEARNING_RATE] != rates[2 * LEARNING_RATE],
        "parameter_groups does not depend on the learning rate",
        "rates in proportion to learning_rate, which is what gets tuned",
    )
