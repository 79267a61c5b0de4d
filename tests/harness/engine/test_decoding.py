"""Greedy decoding against the plain way: one prompt at a time, no padding, no tricks."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    MistralConfig,
    MistralForCausalLM,
)

from harness.bases import resolve
from harness.engine import decoder, decoding
from harness.engine.attention import use_capturable_attention
from harness.engine.decoder import ROOM, Decoder, is_capturable
from harness.engine.decoding import continuations, generate
from harness.engine.training import evaluating

TOKENIZER = AutoTokenizer.from_pretrained(resolve("nano"))
WORDS = len(TOKENIZER)


def draw(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, WORDS, (length,), generator=generator).tolist() for length in lengths]


LENGTHS = [7, 3, 12, 5, 5, 9, 2]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_greedy_decoding_equals_one_prompt_at_a_time(model, batch_size):
    prompts = draw(LENGTHS, seed=1)
    expected = []
    for prompt in prompts:
        output = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=8,
            do_sample=False, pad_token_id=TOKENIZER.pad_token_id, eos_token_id=TOKENIZER.eos_token_id,
        )[0, len(prompt) :].tolist()  # fmt: skip
        end = output.index(TOKENIZER.eos_token_id) if TOKENIZER.eos_token_id in output else len(output)
        expected.append(output[:end])
    assert generate(model, TOKENIZER, prompts, 8, batch_size) == expected
    assert len({tuple(each) for each in expected}) > 1


@pytest.mark.parametrize(
    "liking",
    [{"repetition_penalty": 5.0}, {"no_repeat_ngram_size": 1}, {"suppress_tokens": list(range(0, WORDS, 2))}],
    ids=lambda liking: next(iter(liking)),
)
def test_greedy_decoding_heeds_nothing_that_the_models_authors_like(model, liking, monkeypatch):
    prompts = draw(LENGTHS, seed=7)
    plain = generate(model, TOKENIZER, prompts, 20)
    liked = GenerationConfig(**liking)
    monkeypatch.setattr(model, "generation_config", liked)
    assert generate(model, TOKENIZER, prompts, 20) == plain
    assert model.generation_config is liked, "and it is theirs again afterwards"
    ids, mask = padded(prompts)
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": TOKENIZER.pad_token_id}
    heeded = model.generate(ids, attention_mask=mask, eos_token_id=TOKENIZER.eos_token_id, **options)
    assert not torch.equal(heeded[:, ids.shape[1] :], continuations(model, TOKENIZER, ids, mask, 20)), (
        "heeded, it counts"
    )


def test_continuations_are_cut_before_the_end_of_text(model):
    """Every token of this output is the end of text, so nothing is left, unless a least number is asked for."""

    class Eager:
        pad_token_id = TOKENIZER.pad_token_id

    prompts = draw([4, 6], seed=2)
    first = generate(model, TOKENIZER, prompts[:1], 1)[0]
    Eager.eos_token_id = first[0]
    assert generate(model, Eager, prompts[:1], 5) == [[]]
    longer = generate(model, Eager, prompts[:1], 5, min_new_tokens=3)[0]
    assert len(longer) >= 3
    assert Eager.eos_token_id not in longer


def padded(prompts):
    width = max(map(len, prompts))
    ids = torch.tensor([[TOKENIZER.pad_token_id] * (width - len(each)) + each for each in prompts])
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts])
    return ids, mask


@pytest.mark.parametrize("begins", ["padded before", "padded behind", "padded behind, without a mask"])
@pytest.mark.parametrize(("most", "least"), [(1, 0), (2, 0), (3, 2), (40, 0), (40, 20)])
def test_the_step_that_a_gpu_captures_gives_the_same_tokens(model, most, least, begins, monkeypatch):
    model = copy.deepcopy(model)
    if begins == "padded before":
        monkeypatch.setitem(decoder._pads_behind, model, False)  # as if its positions were those of the cache
    elif begins == "padded behind, without a mask":
        use_capturable_attention(model)
    ids, mask = padded(draw(LENGTHS, seed=3))
    prepared = []

    def prepare(step, _):
        prepared.append(step)
        return step

    class Tokenizer:
        pad_token_id = TOKENIZER.pad_token_id
        eos_token_id = int(continuations(model, TOKENIZER, ids, mask, 5)[0, 4])  # some text ends early

    expected = continuations(model, Tokenizer, ids, mask, most, least)
    found = Decoder(model, Tokenizer, len(ids), ids.shape[1] + most, most, prepare)(ids, mask, least)
    shared = min(found.shape[1], expected.shape[1])
    assert torch.equal(found[:, :shared], expected[:, :shared])
    assert (found[:, shared:] == Tokenizer.pad_token_id).all(), "behind the end of every text is padding"
    assert len(prepared) == (most > 2)


def uncaptured(step, _):
    return step


class Spy:
    """Notes where in memory the model's inputs lie, call by call."""

    def __init__(self, model):
        self.model, self.calls = model, []
        self.handle = model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, _, arguments, options):
        cache = options["past_key_values"].layers[0]
        tensors = [options[name] for name in ("input_ids", "attention_mask", "position_ids")]
        if cache.is_initialized:
            tensors += [cache.keys, cache.values, cache.cumulative_length]
        self.calls.append((options["input_ids"].shape[1], [each.data_ptr() for each in tensors]))


def test_batches_follow_each_other_through_one_captured_step(model):
    """What is captured for one batch may be replayed for the next: it reads and writes the same places."""
    batches = [draw([12, 9, 11], seed=11), draw([5, 4], seed=12), draw([12, 3, 8], seed=13)]
    prepared = []

    def prepare(step, _):
        prepared.append(step)
        return step

    decoder = Decoder(model, TOKENIZER, 3, 20, 8, prepare)
    spy = Spy(model)
    try:
        found = [decoder(*padded(batch), min_new_tokens=8) for batch in batches]
    finally:
        spy.handle.remove()
    steps = [places for tokens, places in spy.calls if tokens == 1]
    assert len(prepared) == 1
    assert len(steps) == 3 * 7
    assert steps == steps[:1] * len(steps)
    expected = [continuations(model, TOKENIZER, *padded(batch), 8, 8) for batch in batches]
    assert [each.tolist() for each in found] == [each.tolist() for each in expected]
    assert decoder.takes(2, 10)
    assert not decoder.takes(2, 9), "too short for so much room"
    assert not decoder.takes(4, 20)
    assert not decoder.takes(3, 21)


def test_it_stops_when_every_text_has_ended(model):
    ids, mask = padded(draw([4], seed=4))

    class Tokenizer:
        pad_token_id = TOKENIZER.pad_token_id
        eos_token_id = int(continuations(model, TOKENIZER, ids, mask, 1)[0, 0])

    assert Decoder(model, Tokenizer, 1, 504, 500, uncaptured)(ids, mask).shape[1] < 50


@pytest.mark.parametrize("captures", [False, True])
def test_it_stops_when_every_text_holds_a_stop_string(model, captures):
    ids, mask = padded(draw([4, 6], seed=6))
    plain = continuations(model, TOKENIZER, ids, mask, 200)
    texts = TOKENIZER.batch_decode(plain)
    stop = [text[10:14] for text in texts]
    if captures:
        found = Decoder(model, TOKENIZER, 2, 206, 200, uncaptured)(ids, mask, stop=stop)
    else:
        found = continuations(model, TOKENIZER, ids, mask, 200, stop=stop)
    assert found.shape[1] < 100
    for text, said in zip(texts, TOKENIZER.batch_decode(found), strict=True):
        first = min(text.index(each) + len(each) for each in stop if each in text)
        assert said[:first] == text[:first]


def windowed(kind):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "mistral":
        return MistralForCausalLM(
            MistralConfig(vocab_size=WORDS, **shape, num_key_value_heads=1, sliding_window=48)
        ).eval()
    config = Gemma3TextConfig(
        vocab_size=WORDS, **shape, num_key_value_heads=1, head_dim=8, sliding_window=48,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    return Gemma3ForCausalLM(config).eval()


def test_only_models_whose_cache_counts_in_tensors_are_captured(model):
    assert is_capturable(model, 100)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    assert is_capturable(MistralForCausalLM(MistralConfig(vocab_size=9, **shape, sliding_window=None)), 100)
    assert is_capturable(windowed("mistral"), 48)
    assert not is_capturable(windowed("mistral"), 49)
    assert is_capturable(windowed("gemma"), 48)
    assert not is_capturable(windowed("gemma"), 49)


@pytest.mark.parametrize("kind", ["mistral", "gemma"])
def test_texts_that_a_window_holds_are_decoded_as_without_one(kind):
    model = windowed(kind).double()
    ids, mask = padded(draw(LENGTHS, seed=3))
    expected = continuations(model, TOKENIZER, ids, mask, 20)
    found = Decoder(model, TOKENIZER, len(ids), ids.shape[1] + 20, 20, uncaptured)(ids, mask)
    assert torch.equal(found[:, : expected.shape[1]], expected)
    assert len({tuple(row) for row in found.tolist()}) > 1


@pytest.mark.parametrize(("least", "batch_size"), [(0, 2), (160, 1), (10_000, 1)])
def test_texts_of_one_size_follow_each_other_and_every_text_has_room(least, batch_size):
    lengths = [30, 3, 100, 45, 60, 99, 51, 7, 52, 20, 98]
    needed = [length + 8 for length in lengths]
    batches = list(decoding._batches(lengths, needed, decoding.Company.ANY, batch_size, least))
    assert sorted(row for rows, _ in batches for row in rows) == list(range(len(lengths)))
    assert all(needed[row] <= room <= ROOM * needed[row] for rows, room in batches for row in rows)
    rooms = [room for _, room in batches]
    assert rooms == sorted(rooms, reverse=True)
    assert len(set(rooms)) == 3
    for rows, room in batches:
        assert len(rows) <= max(batch_size, least // room)


@pytest.mark.gpu
@pytest.mark.parametrize("least", [0, 20])
def test_a_gpu_decodes_captured(model, least, gpu, caplog, monkeypatch):
    monkeypatch.setattr(decoding, "GPU_TOKENS", 0)  # several batches, of which one is captured
    model = copy.deepcopy(model).to(gpu).double()  # in double precision no two tokens are equally likely
    prompts = draw(LENGTHS, seed=5)
    found = generate(model, TOKENIZER, prompts, 40, 3, least)
    assert not caplog.records, "no warning that it could not be captured"
    assert found == generate(copy.deepcopy(model).cpu(), TOKENIZER, prompts, 40, 3, least)


@pytest.mark.gpu
def test_a_gpu_stops_at_a_stop_string(model, gpu, caplog):
    model = copy.deepcopy(model).to(gpu).double()
    ids, mask = (each.to(gpu) for each in padded(draw([4], seed=6)))
    text = TOKENIZER.decode(continuations(model, TOKENIZER, ids, mask, 100)[0])
    found = continuations(model, TOKENIZER, ids, mask, 100, stop=[text[10:14]])
    assert not caplog.records
    assert found.shape[1] < 60
    assert TOKENIZER.decode(found[0]).startswith(text[:14])


def test_texts_that_disturb_each_other_are_decoded_alone(model, monkeypatch):
    """As with a recurrent model whose code mixes the states of a batch."""
    prompts = draw([5, 5, 3, 3, 7], seed=8)
    expected = [generate(model, TOKENIZER, [prompt], 4, min_new_tokens=4)[0] for prompt in prompts]
    widths = []

    def disturbed(*arguments, **options):
        output = forward(*arguments, **options)
        widths.append(len(output.logits))
        output.logits += torch.arange(len(output.logits))[:, None, None].flip(0) * torch.arange(output.logits.shape[-1])
        return output

    forward = model.forward
    monkeypatch.setattr(model, "forward", disturbed)
    monkeypatch.setattr(decoding, "_company", {})  # it was found out before
    assert generate(model, TOKENIZER, prompts, 4, min_new_tokens=4) == expected
    assert 2 in widths, "it was tried"
    assert widths[-1] == 1


def test_what_one_trial_did_to_the_model_does_not_decide_how_all_are_decoded(kit):
    base = kit.make_base()
    lane = kit.make_lane(base, "lora")
    with torch.no_grad():
        for parameter in lane.parameters():
            parameter.fill_(torch.nan)
    with evaluating(base, lane) as model:
        assert decoding.company(model, lane.context.tokenizer) is decoding.Company.ANY
