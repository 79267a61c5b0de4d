"""Checks of what the harness does with adapters: save, merge, stack, put on any layer in any precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import linear

from harness.contract.method import Method
from harness.errors import ConfigError
from harness.testing.contract import (
    Seen,
    check,
    difference,
    expect,
    if_mergeable,
    is_close,
    on_adapters,
    some,
)
from harness.testing.problem import TinyTrial, copies, describe, moved

ODD_WIDTHS = ((60, 100, 60), (128, 344, 128))  # no powers of two; a small LLaMA's MLP


def layer_inputs(trial: TinyTrial) -> dict[str, tuple[Tensor, Tensor]]:
    """Return fixed random (x, base_output) for each adapted layer, (B, T, I) and (B, T, O)."""
    generator = torch.Generator().manual_seed(7)
    result = {}
    for name, layer in trial.problem.model.linears():
        x = torch.randn(4, 5, layer.in_features, generator=generator, dtype=torch.float64).to(layer.weight.dtype)
        result[name] = x, linear(x, layer.weight)
    return result


@check(on_adapters, if_raised="plain tensors in state_dict(), of the same names and shapes for every seed")
def check_state_round_trip(method: Method) -> None:
    """A trained adapter, saved as safetensors and loaded into one of another seed, gives the same output."""
    trial = TinyTrial(method).calibrate().train()
    tensors = {f"{layer}|{name}": t for layer, a in trial.adapters.items() for name, t in a.state_dict().items()}
    try:
        loaded = load(save({name: t.detach().clone().contiguous() for name, t in tensors.items()}))
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise Seen(f"its state_dict() cannot be saved: {error}", "plain tensors in state_dict()") from error
    fresh = TinyTrial(method, seed=1)
    for layer, adapter in fresh.adapters.items():
        adapter.load_state_dict({n.split("|")[1]: t for n, t in loaded.items() if n.split("|")[0] == layer})
    expected, actual = trial.output(), fresh.output()
    expect(
        torch.equal(actual, expected),
        f"the reloaded adapter's output differs ({difference(actual, expected)})",
        "a parameter or persistent buffer for all that does not follow from config and pretrained weight",
    )


@check(if_mergeable)
def check_merge_preserves_output(method: Method) -> None:
    """At the start and after training, ``(W + delta_weight()) x`` is the adapter's output."""
    trial = TinyTrial(method, dtype=torch.float64).calibrate()
    for stage in ("before", "after"):
        if stage == "after":
            trial.train()
        _expect_merge(trial, f"{stage} training")


def _expect_merge(trial: TinyTrial, when: str) -> None:
    trial.train_mode(False)
    inputs = layer_inputs(trial)
    for name, layer in trial.problem.model.linears():
        x, base_output = inputs[name]
        with torch.no_grad():
            delta, output = trial.adapters[name].delta_weight(), trial.adapters[name](x, base_output)
            where = f"{when}, on a layer with I={layer.in_features}, O={layer.out_features},"
            expect(
                delta.shape == layer.weight.shape,
                f"{where} delta_weight() has shape {tuple(delta.shape)}",
                "shape (O, I)",
            )
            merged = linear(x, layer.weight + delta)
        expect(
            is_close(output, merged),
            f"{where} W + delta_weight() does not give forward's output ({difference(merged, output)})",
            "delta_weight() = effective weight minus pretrained weight, (O, I); or traits mergeable=False",
        )


@check(on_adapters)
def check_forward_is_pure(method: Method) -> None:
    """In training mode two passes give the same output and change neither the adapter nor their inputs."""
    trial = TinyTrial(method).calibrate().train()
    trial.train_mode(True)
    inputs = layer_inputs(trial)
    given = {
        f"{name}:{what}": t for name, pair in inputs.items() for what, t in zip(("x", "base_output"), pair, strict=True)
    }
    before = copies({**trial.tensors(), **given})
    with torch.no_grad():
        outputs = [{name: trial.adapters[name](*pair) for name, pair in inputs.items()} for _ in range(2)]
    names = moved(before, {**trial.tensors(), **given})
    expect(
        not names,
        f"forward changed {some(names)}",
        "out-of-place operations in forward, and after_step for state",
    )
    differing = moved(outputs[0], outputs[1])
    expect(
        not differing,
        f"forward, called twice, gave two outputs on {some(differing)}",
        "harness.Dropout, whose mask is fixed within a step, and no state outside parameters and buffers",
    )


@check(on_adapters, if_raised="acting on the last dimension only: flatten(-2), unflatten(-1, ...), '...' in einsum")
def check_leading_shapes(method: Method) -> None:
    """``forward`` takes x of shape (I,), (B, I), (B, T, I) or more, and treats each row alike."""
    trial = TinyTrial(method, dtype=torch.float64).calibrate().train()
    trial.train_mode(False)
    for name, (x, base_output) in layer_inputs(trial).items():
        adapter = trial.adapters[name]
        with torch.no_grad():
            expected = adapter(x, base_output)
            for lead in ((), (20,), (2, 2, 5)):
                rows = (
                    (x[0, 0], base_output[0, 0])
                    if lead == ()
                    else (x.reshape(*lead, -1), base_output.reshape(*lead, -1))
                )
                wanted = expected[0, 0] if lead == () else expected.reshape(*lead, -1)
                actual = adapter(*rows)
                expect(
                    is_close(actual, wanted),
                    f"x of shape {tuple(rows[0].shape)} gives another result ({difference(actual, wanted)})",
                    "acting on the last dimension only: flatten(-2), unflatten(-1, ...), '...' in einsum",
                )


@check(
    on_adapters, if_raised="handling the shape, or a ConfigError from trainable_parameters and adapter that names it"
)
def check_odd_shapes(method: Method) -> None:
    """Layers of 60 x 100 and 128 x 344 work, or are refused by a ``ConfigError`` that names the shape."""
    for widths in ODD_WIDTHS:
        refused = False
        for i, o in pairwise(widths):
            refused |= _refuses(partial(method.trainable_parameters, i, o), "trainable_parameters()", i, o)
        if refused:
            expect(
                _refuses(partial(TinyTrial, method, widths=widths), "adapter()", *widths[:2]),
                f"trainable_parameters refuses I={widths[0]}, O={widths[1]}, but adapter() builds one",
                "refusing in both",
            )
            continue
        trial = TinyTrial(method, dtype=torch.float64, widths=widths).calibrate().train()
        for name, layer in trial.problem.model.linears():
            said = method.trainable_parameters(layer.in_features, layer.out_features)
            counted = sum(p.numel() for p in trial.adapters[name].parameters() if p.requires_grad)
            expect(
                said == counted,
                f"the formula says {said}, the adapter on {describe(layer)} has {counted}",
                "the same rounding in the formula and in the adapter, or a ConfigError that names the shape",
            )
        expect(
            bool(torch.isfinite(trial.output()).all()),
            f"widths {widths} give outputs that are not finite",
            "a smaller step",
        )
        if method.traits.mergeable:
            _expect_merge(trial, "after training")


def _refuses(act: Callable[[], Any], what: str, i: int, o: int) -> bool:
    """Return whether ``act`` refuses; expect that it does so in words."""
    try:
        act()
    except ConfigError as error:
        expect(
            str(i) in str(error) and str(o) in str(error),
            f"{what} is refused without naming the shape: {error}",
            f"a ConfigError that says in_features={i}, out_features={o} and what to change",
        )
        return True
    except Exception as error:
        raise Seen(
            f"{what} on I={i}, O={o} raises {type(error).__name__}: {error}",
            "handling the shape, or a ConfigError that names it",
        ) from error
    return False


@check(on_adapters, if_raised="no fixed dtype in forward, and pretrained_weight.to(x.dtype) before mixing the two")
def check_half_precision(method: Method) -> None:
    """On a bfloat16 layer tensors are float32 and outputs bfloat16, also with all but ``keep_float32`` rounded."""
    low = torch.bfloat16
    trial = TinyTrial(method, dtype=low).calibrate()
    wrong = [n for n, t in trial.tensors().items() if t.is_floating_point() and t.dtype != torch.float32]
    expect(not wrong, f"{some(wrong)} is not float32 on a bfloat16 layer", "dtype=self.dtype for every tensor")
    for stage in ("before", "after"):
        if stage == "after":
            trial.train()
        trial.train_mode(stage == "after")  # dropout may rightly disturb the identity
        for name, (x, base_output) in layer_inputs(trial).items():
            adapter = trial.adapters[name]
            state = {**dict(adapter.named_parameters()), **dict(adapter.named_buffers())}
            unknown = sorted(set(adapter.keep_float32) - set(state))
            expect(not unknown, f"keep_float32 names {some(unknown)}, which is no tensor of it", "names of its tensors")
            rounded = {
                n: t.detach().to(low) if t.is_floating_point() and n not in adapter.keep_float32 else t
                for n, t in state.items()
            }
            with torch.no_grad():
                outputs = {
                    "with float32 parameters": adapter(x, base_output),
                    "with parameters and buffers rounded to bfloat16 but for keep_float32": functional_call(
                        adapter, rounded, (x, base_output)
                    ),
                }
            for how, output in outputs.items():
                where = f"{stage} training, {how}, forward on a bfloat16 layer"
                expect(
                    output.dtype == low and bool(torch.isfinite(output).all()),
                    f"{where} gives {output.dtype}, finite: {bool(torch.isfinite(output).all())}",
                    "pretrained_weight.to(x.dtype) before mixing the two, and no fixed dtype in forward",
                )
                if stage == "before" and method.traits.identity_at_init:
                    # 2^-8 is one rounding of bfloat16; a method that recomputes W x makes a few.
                    expect(
                        is_close(output.float(), base_output.float(), 4 * 2.0**-8),
                        f"{where} is not the identity ({difference(output.float(), base_output.float())})",
                        "using base_output instead of W x, and corrections from the same rounded tensors",
                    )


@check(on_adapters, if_raised="operations that torch.func.vmap knows, and no branch on the value of a tensor")
def check_stacks_under_vmap(method: Method) -> None:
    """Three adapters of different seeds, stacked and run under ``vmap``, give what each gives alone.

    Before and after training, outputs and gradients. The code that runs is that of a fourth adapter, never
    trained, so that whatever training changed outside parameters and buffers shows.
    """
    template = TinyTrial(method, seed=3, dtype=torch.float64).calibrate()
    for stage in ("before", "after"):
        trials = [TinyTrial(method, seed=seed, dtype=torch.float64).calibrate() for seed in range(3)]
        for trial in trials if stage == "after" else ():
            trial.train()
        for trial in (template, *trials):
            trial.train_mode(True)
        for name, (x, base_output) in layer_inputs(template).items():
            lanes = [trial.adapters[name] for trial in trials]
            xs = torch.stack([x * (1 + lane) for lane in range(3)])
            bases = torch.stack([base_output * (1 + lane) for lane in range(3)])
            alone = [
                _output_and_gradients(lane, dict(lane.named_parameters()), xs[k], bases[k])
                for k, lane in enumerate(lanes)
            ]
            parameters, buffers = stack_module_state(lanes)
            run = vmap(partial(_run, template.adapters[name]))
            together = _output_and_gradients(partial(run, parameters, buffers), parameters, xs, bases)
            for what, stacked in together.items():
                expected = torch.stack([each[what] for each in alone])
                expect(
                    is_close(stacked, expected),
                    f"{stage} training, stacked adapters differ from each alone in {what} of layer {name} "
                    f"({difference(stacked, expected)})",
                    "keeping in parameters or buffers all that forward reads and that seeds or steps change",
                )


def _run(code: nn.Module, parameters: dict[str, Tensor], buffers: dict[str, Tensor], *inputs: Tensor) -> Tensor:
    return cast(Tensor, functional_call(code, (parameters, buffers), inputs))


def _output_and_gradients(
    call: Callable[..., Tensor], parameters: Mapping[str, Tensor], x: Tensor, base_output: Tensor
) -> dict[str, Tensor]:
    """Return the output and the gradients of a fixed function of it, by what they are the gradient of."""
    x, base_output = x.clone().requires_grad_(), base_output.clone().requires_grad_()
    output = call(x, base_output)
    leaves = {**{n: p for n, p in parameters.items() if p.requires_grad}, "x": x, "base_output": base_output}
    gradients = torch.autograd.grad(output.square().sum(), list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.items(), gradients, strict=True)
    named = {f"the gradient of {n}": torch.zeros_like(leaf) if g is None else g for (n, leaf), g in pairs}
    return {"the output": output.detach(), **named}
