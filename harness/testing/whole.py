"""Checks of methods that attach to a whole model: called as ``transformers`` calls it, counted, saved, merged."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor

from harness.contract.method import Method, adapted_layers, attaches
from harness.engine.attached import count_attached
from harness.testing.contract import check, difference, expect, if_trains, is_close, some
from harness.testing.language import VOCABULARY, LanguageProblem, on_meta
from harness.testing.problem import TinyTrial

WRITTEN = 4  # tokens
DECODED = 1e-4  # relative difference: transformers computes positions in float32


def on_attached(kind: type[Method]) -> str | None:
    """Apply to methods that attach to a whole model."""
    return None if attaches(kind) else "it lives on linear layers"


def if_attached_trains(kind: type[Method]) -> str | None:
    """Apply to methods that attach parameters of their own."""
    return on_attached(kind) or if_trains(kind)


def if_merges(kind: type[Method]) -> str | None:
    """Apply to methods that attach and say how to merge what they attached."""
    return on_attached(kind) or (
        "it does not override merge_attached()" if kind.merge_attached is Method.merge_attached else None
    )


@check(on_attached, if_raised="drawing on the CPU from the generator, then moving to the model's device")
def check_attached_count_without_weights(method: Method) -> None:
    """Attached to a model without weights, it trains as many parameters as attached to one with weights."""
    trial = TinyTrial(method)
    skeleton = on_meta()
    counted = count_attached(method, skeleton, tuple(adapted_layers(skeleton)))
    live = sum(p.numel() for p in trial.trainable().values())
    expect(
        counted == live,
        f"attached on the meta device it trains {counted:,} parameters, and {live:,} with weights",
        "shapes that follow from the config and the model's own shapes",
    )


@check(on_attached, if_raised="handling input_ids or inputs_embeds, and attention_mask, as transformers gives them")
def check_attached_output_is_the_texts(method: Method) -> None:
    """The attached model has one output per token of the text, also where its head sees only some of them."""
    trial = TinyTrial(method).calibrate()
    problem = _language(trial)
    tokens = problem.batches[0][0]
    output = trial.output()
    expect(
        output.shape == (*tokens.shape, VOCABULARY),
        f"for texts of shape {tuple(tokens.shape)} the logits are of shape {tuple(output.shape)}",
        "cutting what stands before the text off the hidden states of model.base_model, before the output head",
    )
    caught: list[Tensor] = []
    head = problem.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        with torch.no_grad():
            problem.logits(tokens)
    finally:
        hook.remove()
    expect(
        len(caught) == 1 and caught[0].shape[:2] == tokens.shape,
        f"get_output_embeddings() sees {[tuple(each.shape) for each in caught]} for texts of {tuple(tokens.shape)}",
        "a wrapper that passes get_output_embeddings() on, and a head that sees the text alone",
    )


@check(if_attached_trains, if_raised="also taking one token at a time, with past_key_values from the tokens before")
def check_attached_decodes_with_a_cache(method: Method) -> None:
    """Token by token, with a cache and behind padding, it computes what it computes of the whole text at once."""
    trial = TinyTrial(method, dtype=torch.float64).calibrate().train(4)
    problem = _language(trial)
    texts = problem.batches[0][0][:3, :5]
    ones, length = torch.ones_like(texts), texts.shape[1]
    padded = torch.cat([torch.zeros_like(texts[:, :2]), texts], 1)
    mask = torch.cat([torch.zeros_like(ones[:, :2]), ones], 1)
    for what, ids, shown in (("with a cache", texts, ones), ("behind padding", padded, mask)):
        with torch.no_grad():
            written: Any = problem.model.generate(
                input_ids=ids, attention_mask=shown, max_new_tokens=WRITTEN, do_sample=False, use_cache=True,
                pad_token_id=0, output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
            tokens = written.sequences[:, -(length + WRITTEN) : -1]
            expected = problem.logits(tokens)[:, length - 1 :]
        actual = torch.stack(written.logits, 1)
        expect(
            is_close(actual.double(), expected.double(), DECODED),
            f"decoding {what}, the logits are others than of the whole text ({difference(actual, expected)})",
            "extending attention_mask by what stands before the text, at every step, and adding it at the first only",
        )


@check(if_attached_trains)
def check_attached_half_precision(method: Method) -> None:
    """In bfloat16 the attached model's loss is finite, and each parameter that trains gets a finite gradient."""
    trial = TinyTrial(method, dtype=torch.bfloat16).calibrate()
    loss = trial.problem.loss(cast(Any, trial.problem.batches[0]))
    expect(bool(torch.isfinite(loss)), f"the loss is {loss.item()}", "the dtypes of what is added")
    loss.backward()
    bad = [n for n, p in trial.trainable().items() if p.grad is None or not bool(torch.isfinite(p.grad).all())]
    expect(not bad, f"{some(bad)} has no finite gradient", "dtypes, and what reaches the output")


@check(if_attached_trains)
def check_attached_state_round_trip(method: Method) -> None:
    """What trained, put into a model to which it was attached anew with the same seed, gives the same output."""
    trial = TinyTrial(method).calibrate().train()
    fresh = TinyTrial(method).calibrate()
    with torch.no_grad():
        for name, parameter in fresh.trainable().items():
            parameter.copy_(trial.trainable()[name])
    expected, actual = trial.output(), fresh.output()
    expect(
        torch.equal(actual, expected),
        f"the reloaded model's output differs ({difference(actual, expected)})",
        "a parameter for all that does not follow from config, seed and pretrained weights",
    )


@check(if_merges)
def check_attached_merge_preserves_output(method: Method) -> None:
    """``merge_attached`` returns a model of the class that it was, with nothing attached and the same output."""
    trial = TinyTrial(method, dtype=torch.float64).calibrate().train()
    expected = trial.output()
    plain = LanguageProblem(torch.float64)
    merged: Any = method.merge_attached(copy.deepcopy(trial.problem.model))
    names = sorted(name for name, _ in merged.named_parameters())
    expect(
        type(merged) is type(plain.model) and names == sorted(name for name, _ in plain.model.named_parameters()),
        f"merge_attached() returns a {type(merged).__name__} with parameters such as {some(names)}",
        "returning the model itself, with every wrapper taken out",
    )
    plain.model = merged.eval()
    with torch.no_grad():
        actual = plain.output()
    expect(is_close(actual, expected, 1e-5), f"the merged model's output differs ({difference(actual, expected)})",
           "the sign and the scale of what is merged")  # fmt: skip


def _language(trial: TinyTrial) -> LanguageProblem:
    return cast(LanguageProblem, trial.problem)
