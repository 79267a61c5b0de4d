"""The section of docs/analyses.md that says what each analysis finds on a small model: every number from the findings.

A paper's statement stands beside ours, and whether they agree follows from the numbers by the rules below.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from statistics import fmean

from harness.results.findings import Findings, mean_of

NAMES = {
    "lora": "LoRA", "relora": "ReLoRA", "melora": "MELoRA", "mora": "MoRA", "remora": "ReMoRA", "dora": "DoRA",
    "pissa": "PiSSA", "milora": "MiLoRA", "full": "full fine-tuning",
}  # fmt: skip
MANY = 2.0  # times as many are "many more"
CLEAR = 1.5  # times as much as at random is more than chance
LITTLE = 0.1  # of a norm
PROJECTIONS = {
    "q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output", "gate_proj": "gate", "up_proj": "up",
    "down_proj": "down",
}  # fmt: skip

INTRODUCTION = """## On a small model

What each prints and draws (`--figure`) for SmolLM2-135M, over all {layers} linear layers of its blocks. The first three look at one trial a method:
{steps} updates of {batch} windows of {tokens} tokens of financial news, at LoRA's count of rank 8, each at the learning rate that a search
chose, one seed. The papers looked at models fifty times as large and at other data, after thousands of updates. `benchmarks/analyses` has the
suite, the command that draws all of this, and that wrote this section. Numbers are means over layers.
"""


def section(found: Mapping[str, Sequence[Findings]], recipe: Mapping[str, int]) -> str:
    """Return the section.

    Args:
        found: By the analysis; the label of a trial's is its method. Of the error of quantising, other ranks may follow.
        recipe: Of the trials.
    """
    layers = len(found["spectrum"][0].layers)
    introduction = INTRODUCTION.format(
        layers=layers, steps=recipe["steps"], batch=recipe["batch_size"], tokens=recipe["max_length"]
    )
    parts = (
        ("spectrum", "Singular values of the change by projection", _spectrum),
        ("subspace", "Similarity of the change's directions to the weight's", _subspace),
        ("amplification", "Amplification and norms", _amplification),
        ("quantisation-error", "Spectra of the weight and of its residual", _quantisation),
        ("fast-svd", "Error and seconds of the randomised SVD", _fast_svd),
    )
    texts = [
        f"### {name}\n\n![{what}](analysis-{name}.png)\n\n{fill(write(found[name]))}\n" for name, what, write in parts
    ]
    return "\n".join([introduction, *texts])


def fill(text: str) -> str:
    """Return text in lines of the page's width."""
    return textwrap.fill(" ".join(text.split()), 140, break_long_words=False, break_on_hyphens=False)


def verdict(claims: Sequence[bool]) -> str:
    """Return whether a paper's statement, of one or more parts, is what was found."""
    if all(claims):
        return "**agrees**"
    return "**agrees in part**" if any(claims) else "**does not agree**"


def _means(several: Sequence[Findings], column: str) -> dict[str, float]:
    """Return a number by method, over all layers."""
    found = {each.name: mean_of(layer.values[column] for layer in each.layers.values()) for each in several}
    return {name: value for name, value in found.items() if value is not None}


def _listed(values: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{NAMES[name]} {value:{form}}" for name, value in values.items())


def _spectrum(several: Sequence[Findings]) -> str:
    large, rank = _means(several, "large"), _means(several, "effective_rank")
    threshold = several[0].settings["threshold"]
    pairs = [pair for pair in (("mora", "lora"), ("remora", "relora")) if set(pair) <= set(large)]
    text = (
        f"MoRA's paper says that MoRA and ReMoRA change weights by many more singular values above {threshold:g} than LoRA and ReLoRA\n"
        f"(figure 5). Here, a layer: {_listed(large, '.1f')}: {verdict([large[a] >= MANY * large[b] for a, b in pairs])}."
    )
    if "melora" in large:
        text += (
            "\nMELoRA's paper says that MELoRA has more of them than LoRA (figure 3): "
            f"{verdict([large['melora'] > large['lora']])}."
        )
    return f"{text} LoRA's change has rank 8 and cannot have more. The effective rank of the change: {_listed(rank, '.0f')}."


def _subspace(several: Sequence[Findings]) -> str:
    top, bottom, random = (_means(several, f"left_{which}") for which in ("top", "bottom", "random"))
    claims = [
        bottom["milora"] > top["milora"] and bottom["milora"] > CLEAR * random["milora"],
        top["pissa"] > bottom["pissa"] and top["pissa"] > CLEAR * random["pissa"],
        max(top["lora"], bottom["lora"]) < CLEAR * random["lora"],
    ]
    numbers = ", ".join(f"{NAMES[name]} {bottom[name]:.2f} and {top[name]:.2f}" for name in top)
    return (
        "MiLoRA's paper says that its change stays in the weight's bottom directions, PiSSA's in its top ones, LoRA's in neither (figure 2).\n"
        f"Here, on the outputs' side, to the {several[0].settings['of_weight']} bottom and top directions: {numbers}. At random it is "
        f"{fmean(random.values()):.2f}:\n{verdict(claims)}" + _which(claims, ("of MiLoRA", "of PiSSA", "of LoRA")) + "."
    )


def _which(claims: Sequence[bool], names: Sequence[str]) -> str:
    """Return of which parts a statement that is right in part is not what was found."""
    wrong = [name for name, is_so in zip(names, claims, strict=True) if not is_so]
    return f", not {' and '.join(wrong)}" if 0 < len(wrong) < len(claims) else ""


def _amplification(several: Sequence[Findings]) -> str:
    factor, norm = _means(several, "amplification"), _means(several, "update_norm")
    return (
        f"MiLoRA's paper says that it amplifies less than LoRA (table 7). Here {_listed(factor, '.2f')}:\n"
        f"{verdict([factor['milora'] < factor['lora']])}. The norm of the change: {_listed(norm, '.2f')}."
    )


def _reductions(findings: Findings) -> list[float]:
    """Return the share of the error that QPiSSA and LoftQ make up for, over all layers."""
    return [_means([findings], f"{method}_reduction")[findings.name] for method in ("qpissa", "loftq")]


def _at_other_ranks(several: Sequence[Findings]) -> str:
    if not several:
        return ""
    found = {each.settings["r"]: _reductions(each) for each in several}
    numbers = ", ".join(
        f"{100 * mine:.1f} % and {100 * other:.1f} % at r = {r}" for r, (mine, other) in sorted(found.items())
    )
    return f" At other ranks, over all layers: {numbers}."


def _quantisation(several: Sequence[Findings]) -> str:
    findings, *others = several
    groups = {name: layers for name, layers in findings.by_projection().items() if name != "all"}
    shares = {
        name: [fmean(layer.values[f"{method}_reduction"] or 0.0 for layer in layers) for method in ("qpissa", "loftq")]
        for name, layers in groups.items()
    }
    mine = _reductions(findings)
    before, after = (_means([findings], f"{what}_kurtosis")[findings.name] for what in ("weight", "residual"))

    def listed(is_more: bool) -> str:
        return ", ".join(
            f"{PROJECTIONS.get(name, name)} ({qpissa:.1%} and {loftq:.1%})".replace("%", " %")
            for name, (qpissa, loftq) in shares.items()
            if (qpissa > loftq) is is_more
        )

    claims = [qpissa > loftq for qpissa, loftq in shares.values()]
    less = (
        ""
        if all(claims)
        else f"\nand **for less** at {listed(False)}, whose spectra are flatter: the gain is the spectrum's"
    )
    more = f"QPiSSA for more at {listed(True)}" if any(claims) else "QPiSSA nowhere for more"
    return (
        "PiSSA's paper says that QPiSSA reduces the error of quantising more than LoftQ at every rank and projection (tables 3 and 6).\n"
        f"Here, at r = {findings.settings['r']}, QPiSSA makes up for {100 * mine[0]:.1f} % of it and LoftQ for {100 * mine[1]:.1f} %, {more}{less}: "
        f"{verdict(claims)}.{_at_other_ranks(others)}\nIt says that the residual is nearer to a normal distribution, for which NF4 is made; the excess kurtosis is {after:.2f}\n"
        f"instead of {before:.2f}: {verdict([abs(after) < abs(before)])}. `quantisation-error:r=N` looks at another rank, `iterations=N` at more rounds."
    )


def _fast_svd(several: Sequence[Findings]) -> str:
    (findings,) = several
    layers = list(findings.layers.values())
    exact = sum(layer.values["exact_seconds"] or 0.0 for layer in layers)
    last = len(layers[0].curves["seconds"])
    places = sorted({min(4, last), last})
    seconds = {place: sum(layer.curves["seconds"][place - 1] for layer in layers) for place in places}
    errors = {place: fmean(layer.curves["errors"][place - 1] for layer in layers) for place in places}
    times = ", ".join(f"{place} iterations {value:.1f} s" for place, value in seconds.items())
    missed = ", ".join(f"{100 * value:.0f} % of its norm after {place}" for place, value in errors.items())
    return (
        "PiSSA's paper says that a few iterations take seconds where the exact SVD takes minutes, and err little (table 4). Here the exact SVD of\n"
        f"all {len(layers)} layers takes {exact:.1f} s on one core, {times}: {verdict([seconds[places[0]] < exact / 10])}. The rank-{findings.settings['r']} "
        f"part that they find differs from the exact\none by {missed}: {verdict([errors[places[0]] < LITTLE])}. Without oversampling, "
        "neighbouring singular values are told apart by many iterations\nonly. The layer's function at the start does not suffer, since the residual "
        "is taken from what was found."
    )
