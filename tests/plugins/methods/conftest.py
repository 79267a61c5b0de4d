"""What every test of a method on linear layers does: dense formulas, PEFT, stacked adapters, bfloat16.

A *dense formula* is a function ``(tensors, weight, x) -> output`` written out by hand in the test, where
``tensors`` maps the adapter's parameter and buffer names to leaf tensors.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness import StepInfo

torch.set_num_threads(1)


@pytest.fixture
def generator():
    """Return a seeded source of randomness."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=[(60, 100), (128, 344)], ids=lambda s: f"{s[0]}to{s[1]}")
def shape(request):
    """Return (in_features, out_features) that no power of two divides evenly."""
    return request.param


def build_layer(in_features, out_features, dtype=torch.float64, seed=1):
    """Return a frozen linear layer without bias, weights of standard deviation 1 / sqrt(I)."""
    draw = torch.Generator().manual_seed(seed)
    layer = nn.Linear(in_features, out_features, bias=False, dtype=dtype)
    weight = torch.randn(out_features, in_features, generator=draw, dtype=torch.float64) / in_features**0.5
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    return layer


def disturb(adapter, seed=2):
    """Move every parameter away from its starting value, so that no term of a formula is zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64).to(parameter.dtype)
    return adapter


def check_against_dense(adapter, layer, dense, merges=True):
    """Check output, every gradient and the merged weight of a disturbed adapter against a dense formula."""
    disturb(adapter)
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(2, 5, layer.in_features, generator=draw, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 5, layer.out_features, generator=draw, dtype=torch.float64)
    leaves = {n: t.detach().clone() for n, t in (*adapter.named_parameters(), *adapter.named_buffers())}
    names = [n for n, _ in adapter.named_parameters()]
    for name in names:
        leaves[name].requires_grad_()

    expected = dense(leaves, layer.weight, x)
    wanted = torch.autograd.grad((expected * upstream).sum(), [x, *(leaves[n] for n in names)])
    output = adapter(x, x @ layer.weight.T)
    found = torch.autograd.grad((output * upstream).sum(), [x, *adapter.parameters()])

    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    for name, one, other in zip(["x", *names], found, wanted, strict=True):
        assert other.abs().max() > 0, f"the dense formula gives {name} no gradient, so comparing it proves nothing"
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"gradient of {n}: {m}")
    if merges:
        merged = layer.weight + adapter.delta_weight()
        torch.testing.assert_close(x @ merged.T, output, rtol=1e-9, atol=1e-9)


def check_stacks(build, shared_input=False):
    """Check that three adapters of ``build(seed)``, stacked and run by vmap, equal the three alone."""
    adapters = [disturb(build(seed), seed=seed) for seed in (10, 11, 12)]
    weight = build_layer(*reversed(adapters[0].delta_weight().shape)).weight
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(3, 4, 7, weight.shape[1], generator=draw, dtype=torch.float64)
    x, dims = (x[0], (0, 0, None, None)) if shared_input else (x, 0)
    base = x @ weight.T
    parameters, buffers = torch.func.stack_module_state(adapters)

    def one(p, b, x, y):
        return torch.func.functional_call(adapters[0], (p, b), (x, y))

    stacked = torch.func.vmap(one, in_dims=dims)(parameters, buffers, x, base)
    stacked.square().sum().backward()
    for lane, adapter in enumerate(adapters):
        alone = adapter(x, base) if shared_input else adapter(x[lane], base[lane])
        torch.testing.assert_close(stacked[lane], alone, rtol=1e-12, atol=1e-12)
        alone.square().sum().backward()
        for name, parameter in adapter.named_parameters():
            torch.testing.assert_close(parameters[name].grad[lane], parameter.grad, rtol=1e-10, atol=1e-11)


def build_restarting(method, trained, in_features, out_features, seed=0, dtype=torch.float64, random=True):
    """Return a method that merges, its layer and adapter; ``trained`` and what was merged random: no term is zero."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(in_features, out_features, bias=False, dtype=dtype).requires_grad_(False)
    layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
    adapter = method.adapter(layer, generator)
    if random:
        with torch.no_grad():
            for each in (adapter.get_parameter(trained), adapter.merged):
                each.copy_(torch.randn(each.shape, generator=generator))
    return method, layer, adapter


def train_restarting(method, layer, adapter, total_steps, on_step=lambda step, optimizer: None, peak=0.01, rows=40):
    """Run a real AdamW on random regression, calling the method as the harness does. Return the optimizer.

    After no step may the method have changed what the adapter computes.
    """
    generator = torch.Generator().manual_seed(99)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=peak, weight_decay=0.0)
    x = torch.randn(rows, layer.in_features, generator=generator, dtype=layer.weight.dtype)
    target = torch.randn(rows, layer.out_features, generator=generator, dtype=layer.weight.dtype)
    for step in range(total_steps):
        rate = method.learning_rate_multiplier(step, total_steps, lambda _: 1.0)
        optimizer.param_groups[0]["lr"] = peak * rate
        (adapter(x, x @ layer.weight.T) - target).square().mean().backward()
        optimizer.step()
        before = adapter.delta_weight().detach().clone()
        method.after_step(StepInfo(step + 1, total_steps, {"layer": adapter}, optimizer, generator))
        torch.testing.assert_close(adapter.delta_weight(), before, rtol=1e-12, atol=1e-12)
        on_step(step + 1, optimizer)
        optimizer.zero_grad()
    return optimizer


def check_low_precision(method):
    """Check that on a bfloat16 layer parameters stay float32, and output is bfloat16 and as right as that."""
    layer = build_layer(60, 100, torch.bfloat16)
    adapter = disturb(method.adapter(layer, torch.Generator().manual_seed(0)))
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    x = torch.randn(3, 60, generator=torch.Generator().manual_seed(5)).bfloat16()
    output = adapter(x, x @ layer.weight.T)
    assert output.dtype == torch.bfloat16
    exact = x.double() @ (layer.weight.double() + adapter.delta_weight().double()).T
    torch.testing.assert_close(output.double(), exact, rtol=2e-2, atol=2e-2)

    layer = build_layer(60, 100, torch.float32)
    adapter = disturb(method.adapter(layer, torch.Generator().manual_seed(0)))
    output = adapter(x.float(), x.float() @ layer.weight.T)
    assert output.dtype == torch.float32
    exact = x.double() @ (layer.weight.double() + adapter.delta_weight().double()).T
    torch.testing.assert_close(output.double(), exact, rtol=1e-4, atol=1e-4)


def check_size_and_identity(method, layer, generator):
    """Check the live parameter count, and that the untrained adapter changes not one bit."""
    adapter = method.adapter(layer, generator)
    live = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
    assert live == method.trainable_parameters(layer.in_features, layer.out_features)
    x = torch.randn(4, layer.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    base = x @ layer.weight.T
    assert torch.equal(adapter(x, base), base)
    assert not adapter.delta_weight().any()


def peft_layer(layer, **config):
    """Return PEFT's LoRA layer over a copy of ``layer``, in float64."""
    peft = pytest.importorskip("peft")
    model = nn.Module()
    model.proj = build_layer(layer.in_features, layer.out_features, torch.float32)  # PiSSA refuses float64
    model.proj.weight.data.copy_(layer.weight)
    settings = peft.LoraConfig(target_modules=["proj"], lora_dropout=0.0, **config)
    wrapped = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
    proj = wrapped.base_model.model.proj.double()
    proj.get_base_layer().weight.data.copy_(layer.weight)
    return proj


def check_against_peft(adapter, layer, theirs, pairs):
    """Copy our parameters into PEFT's layer, then compare output, gradients and merged weight.

    Args:
        adapter: Ours.
        layer: The frozen layer, as pretrained.
        theirs: PEFT's layer.
        pairs: Our parameter's name -> PEFT's parameter.
    """
    with torch.no_grad():
        for name, parameter in pairs.items():
            parameter.copy_(adapter.get_parameter(name).reshape(parameter.shape))
    x = torch.randn(6, layer.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    upstream = torch.randn(6, layer.out_features, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    ours = adapter(x, x @ layer.weight.T)
    (ours * upstream).sum().backward()
    reference = theirs(x)
    (reference * upstream).sum().backward()
    torch.testing.assert_close(ours, reference, rtol=1e-8, atol=1e-8)
    for name, parameter in pairs.items():
        ours_grad = adapter.get_parameter(name).grad.reshape(parameter.shape)
        torch.testing.assert_close(ours_grad, parameter.grad, rtol=1e-8, atol=1e-8)
    theirs.merge()
    merged = layer.weight + adapter.delta_weight()
    torch.testing.assert_close(merged, theirs.get_base_layer().weight, rtol=1e-8, atol=1e-8)


class Kit:
    """The functions above, handed to tests as one fixture because test folders are not packages."""

    build_layer = staticmethod(build_layer)
    build_restarting = staticmethod(build_restarting)
    train_restarting = staticmethod(train_restarting)
    disturb = staticmethod(disturb)
    check_against_dense = staticmethod(check_against_dense)
    check_stacks = staticmethod(check_stacks)
    check_low_precision = staticmethod(check_low_precision)
    check_size_and_identity = staticmethod(check_size_and_identity)
    peft_layer = staticmethod(peft_layer)
    check_against_peft = staticmethod(check_against_peft)


@pytest.fixture
def kit():
    """Return the shared checks."""
    return Kit
