"""A frozen layer's product with low-rank updates added in place: values, gradients, and who may be run so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness import Dropout, LowRankAdapter
from harness.engine.low_rank import Thin, adapted, is_thin
from harness.engine.readers import Readers
from harness.engine.slots import Leaves, LinearSlot, Stack, is_alike
from harness.errors import HarnessError

ROWS, TOKENS, INS, OUTS, RANK = 2, 5, 12, 7, 3


class Pair(LowRankAdapter):
    def __init__(self, layer, scale=2.0, dropout=None, seed=0):
        super().__init__(layer, scale, dropout)
        generator = torch.Generator().manual_seed(seed)
        self.a = nn.Parameter(torch.randn(RANK, layer.in_features, generator=generator, dtype=self.dtype))
        self.b = nn.Parameter(torch.randn(layer.out_features, RANK, generator=generator, dtype=self.dtype))

    def factors(self):
        return self.a, self.b


class Doubled(Pair):
    def forward(self, x, base_output):
        return 2 * super().forward(x, base_output)


class OtherUpdate(Pair):
    def update(self, x):
        return -super().update(x)


def layer(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Linear(INS, OUTS, bias=False, dtype=dtype).requires_grad_(False)


def dense(x, weight, lanes, parts):
    """Each lane's rows times its own dense matrix, written out."""
    rows = x.view(lanes, -1, x.shape[-1])
    outputs = []
    for lane in range(lanes):
        matrix = weight
        for part in parts:
            if part.first <= lane < part.first + len(part.down):
                matrix = matrix + part.scale * part.up[lane - part.first] @ part.down[lane - part.first]
        outputs.append(rows[lane] @ matrix.T)
    return torch.stack(outputs).view(*x.shape[:-1], -1)


def make_parts(spans):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    return [
        Thin(first, draw(last - first, RANK, INS), draw(last - first, OUTS, RANK), scale)
        for first, last, scale in spans
    ]


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    ("lanes", "spans"),
    [(1, [(0, 1, 2.0)]), (3, [(0, 3, 0.5)]), (4, [(0, 2, 1.0), (3, 4, 0.5)])],
    ids=["alone", "stacked", "two kinds and a lane without"],
)
def test_outputs_and_gradients_are_those_of_each_lanes_dense_matrix(lanes, spans, compiled):
    x = torch.randn(lanes * ROWS, TOKENS, INS, dtype=torch.float64).requires_grad_()
    weight, parts = layer().weight, make_parts(spans)
    tensors = [each for part in parts for each in (part.down, part.up)]

    def run(x, *tensors):
        again = [part._replace(down=tensors[2 * n], up=tensors[2 * n + 1]) for n, part in enumerate(parts)]
        return adapted(x, weight, lanes, again)

    run = torch.compile(run, backend="aot_eager", fullgraph=True) if compiled else run
    found, expected = run(x, *tensors), dense(x, weight, lanes, parts)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, [x, *tensors], upstream),
        torch.autograd.grad(expected, [x, *tensors], upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_what_needs_no_gradient_gets_none():
    """The first layer's input, and the factor that a method does not train."""
    x = torch.randn(ROWS, TOKENS, INS, dtype=torch.float64)
    (part,) = make_parts([(0, 1, 2.0)])
    part.down.requires_grad_(False)
    found, expected = adapted(x, layer().weight, 1, [part]), dense(x, layer().weight, 1, [part])
    mine, theirs = (torch.autograd.grad(each.square().sum(), [part.up]) for each in (found, expected))
    torch.testing.assert_close(mine, theirs)


def test_the_product_is_not_written_over_by_a_later_use_of_the_layer():
    x = torch.randn(ROWS, TOKENS, INS, dtype=torch.float64)
    parts = make_parts([(0, 1, 2.0)])
    first = adapted(x, layer().weight, 1, parts)
    kept = first.detach().clone()
    adapted(2 * x, layer().weight, 1, parts)
    torch.testing.assert_close(first, kept, rtol=0, atol=0)


def test_only_an_adapter_that_does_nothing_else_is_run_so():
    generator = torch.Generator().manual_seed(0)
    assert is_thin(Pair(layer()))
    assert is_thin(Pair(layer(), dropout=Dropout(0.0, generator)))
    assert not is_thin(Pair(layer(), dropout=Dropout(0.1, generator)))
    assert not is_thin(Doubled(layer()))
    assert not is_thin(OtherUpdate(layer()))
    assert not is_thin(layer())


@pytest.mark.parametrize("kind", [Pair, Doubled, OtherUpdate])
def test_a_slot_does_what_the_adapters_forward_says(kind):
    """Also one that overrides what the fast way relies on, beside others, in lane order."""
    frozen = layer()
    slot, leaves = LinearSlot(frozen), Leaves(torch.float64)
    adapters = [Pair(frozen, seed=0), kind(frozen, seed=1), kind(frozen, seed=2), Doubled(frozen, seed=3)]
    groups = [adapters[:1], adapters[1:3], adapters[3:]]
    x = torch.randn(4 * ROWS, TOKENS, INS, dtype=torch.float64)
    base = x @ frozen.weight.T
    expected = torch.cat([each(*pair) for each, *pair in zip(adapters, x.split(ROWS), base.split(ROWS), strict=True)])
    slot.parts = tuple((Stack(group, leaves), len(group)) for group in groups)
    torch.testing.assert_close(slot(x), expected)


class TrainedScale(Pair):
    """Of one number."""

    def __init__(self, layer, seed=0):
        super().__init__(layer, nn.Parameter(torch.tensor(1.5 + seed, dtype=torch.float64)), seed=seed)


class ScaleOfEveryRank(Pair):
    """A buffer."""

    def __init__(self, layer, seed=0):
        super().__init__(layer, seed=seed)
        del self.scale
        self.register_buffer("scale", torch.arange(1.0, 1 + RANK, dtype=torch.float64) + seed)


class TwoNames(Pair):
    """One parameter and one buffer stand under two names each."""

    def __init__(self, layer, seed=0):
        super().__init__(layer, seed=seed)
        self.also_a = self.a
        self.register_buffer("shift", torch.full((RANK, 1), 0.5 + seed, dtype=torch.float64))
        self.register_buffer("also_shift", self.shift)

    def factors(self):
        return self.a + self.also_a + self.shift * self.also_shift, self.b


class OneForBoth(Pair):
    """The factors are one tensor, and not laid out row by row."""

    def factors(self):
        return self.a, self.a.T[:OUTS]


class OnlyWhileTraining(Pair):
    def factors(self):
        return (self.a if self.training else 3 * self.a), self.b


class OfOtherPrecision(Pair):
    def factors(self):
        return self.a.bfloat16(), self.b.half()


class OfRankZero(Pair):
    """Zero."""

    def factors(self):
        return self.a[:0], self.b[:, :0]


class Spread(Pair):
    def factors(self):
        return self.a[:1].expand(RANK, -1), self.b[:, :1].expand(-1, RANK)


class Called(Pair):
    def __call__(self, x, base_output):
        return 2 * super().__call__(x, base_output)


class Hooked(Pair):
    def __init__(self, layer, seed=0):
        super().__init__(layer, seed=seed)
        self.register_forward_hook(lambda module, inputs, output: 2 * output)


class DropoutOfAStranger(Pair):
    def __init__(self, layer, seed=0):
        super().__init__(layer, dropout=nn.Identity(), seed=seed)


class DropoutThatScales(Pair):
    class Kind(Dropout):
        def forward(self, x):
            return 3 * x

    def __init__(self, layer, seed=0):
        super().__init__(layer, dropout=self.Kind(0.0, torch.Generator()), seed=seed)


STRANGE = [
    TrainedScale, ScaleOfEveryRank, TwoNames, OneForBoth, OnlyWhileTraining, OfOtherPrecision, OfRankZero, Spread,
    Called, Hooked, DropoutOfAStranger, DropoutThatScales,
]  # fmt: skip


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("trains", [True, False])
def test_what_a_stranger_writes_runs_as_its_forward_says(kind, lanes, trains):
    """Outputs and gradients, alone and stacked, and as evaluation reads it."""
    frozen = layer()
    adapters = [kind(frozen, seed=seed).train(trains) for seed in range(lanes)]
    parameters = [each for adapter in adapters for each in adapter.parameters()]
    x = torch.randn(lanes * ROWS, TOKENS, INS, dtype=torch.float64).requires_grad_()
    base = x @ frozen.weight.T
    expected = torch.cat([each(*pair) for each, *pair in zip(adapters, x.split(ROWS), base.split(ROWS), strict=True)])
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [x, *parameters], upstream, allow_unused=True)
    slot, leaves = LinearSlot(frozen), Leaves(torch.float64)
    if lanes == 1:
        slot.parts = ((Readers({"layer": adapters[0]}, torch.float64, copies=True)["layer"], 1),)
        torch.testing.assert_close(slot(x), expected)
    slot.parts = ((Stack(adapters, leaves), lanes),)
    found = slot(x)
    torch.testing.assert_close(found, expected)
    found.backward(upstream)
    leaves.gradients_up()
    for mine, theirs in zip([x.grad, *(each.grad for each in parameters)], wanted, strict=True):
        torch.testing.assert_close(*(torch.zeros(1) if each is None else each for each in (mine, theirs)))


@pytest.mark.parametrize("shape", [(0, TOKENS), (2, 0), (0,)])
@pytest.mark.parametrize("lanes", [1, 2])
def test_an_expert_that_gets_no_token_puts_out_none(shape, lanes):
    frozen, leaves = layer(), Leaves(torch.float64)
    slot = LinearSlot(frozen)
    slot.parts = ((Stack([Pair(frozen, seed=seed) for seed in range(lanes)], leaves), lanes),)
    x = torch.zeros(*shape, INS, dtype=torch.float64).requires_grad_()
    found = slot(x)
    assert found.shape == (*shape, OUTS)
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_lanes_that_differ_in_a_plain_number_are_not_run_as_one():
    one, other = Pair(layer(), scale=1.0), Pair(layer(), scale=1.5)
    assert is_alike(one, Pair(layer(), scale=1.0, seed=1))
    assert not is_alike(one, other)


def test_a_buffer_that_stands_at_two_layers_stays_one_in_a_pack():
    """What a method writes to it at one layer is read at the other."""

    def shared():
        adapters = [Pair(layer()) for _ in range(2)]
        for each in adapters:
            each.register_buffer(
                "mask", torch.ones(RANK, dtype=torch.float64) if each is adapters[0] else adapters[0].mask
            )
        return adapters

    lanes, leaves = [shared() for _ in range(2)], Leaves(torch.bfloat16)
    stacks = [Stack([lane[place] for lane in lanes], leaves) for place in range(2)]
    lanes[1][0].mask.zero_()
    leaves.values_down()
    assert [stack.buffers["mask"].sum(1).tolist() for stack in stacks] == [[RANK, 0], [RANK, 0]]
    assert lanes[1][1].mask.sum() == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda self: (self.b, self.a), r"\(7, 3\) and \(3, 12\) on a layer with I=12, O=7: return down \(R, I\)"),
        (lambda self: (self.a, self.b[:1]), r"\(3, 12\) and \(1, 3\)"),
        (lambda self: self.a, "Parameter|Tensor"),
        (lambda self: None, "NoneType"),
        (LowRankAdapter.factors, r"has no factors\(\): return down"),
    ],
    ids=["swapped", "broadcast", "one", "none", "missing"],
)
@pytest.mark.parametrize("lanes", [1, 2])
def test_factors_of_another_shape_are_named(given, said, lanes):
    kind, frozen = type("Strange", (Pair,), {"factors": given}), layer()
    slot = LinearSlot(frozen)
    slot.parts = ((Stack([kind(frozen, seed=seed) for seed in range(lanes)], Leaves(torch.float64)), lanes),)
    x = torch.randn(lanes, INS, dtype=torch.float64)
    with pytest.raises(HarnessError, match=f"Strange.*({said})"):
        slot(x)
    with pytest.raises(HarnessError, match=f"Strange.*({said})"):
        kind(frozen).delta_weight()


@pytest.mark.gpu
def test_on_a_gpu_in_half_precision_it_is_as_exact_as_rounding_allows(gpu):
    x, weight = torch.randn(6, 50, 64, device=gpu), torch.randn(48, 64, device=gpu)
    down, up = torch.randn(3, 8, 64, device=gpu), torch.randn(3, 48, 8, device=gpu)
    low = [each.bfloat16().requires_grad_() for each in (x, down, up)]
    high = [each.detach().double().requires_grad_() for each in low]
    found = adapted(low[0], weight.bfloat16(), 3, [Thin(0, low[1], low[2], 2.0)])
    expected = dense(high[0], weight.bfloat16().double(), 3, [Thin(0, high[1], high[2], 2.0)])
    upstream = torch.randn_like(found)
    pairs = [
        (found, expected),
        *zip(
            torch.autograd.grad(found, low, upstream),
            torch.autograd.grad(expected, high, upstream.double()),
            strict=True,
        ),
    ]
    for mine, theirs in pairs:
        assert (mine.double() - theirs).norm() < 0.01 * theirs.norm()
