"""Texts that lie flat, one after another, get what they get in rows of their own; models that cannot are found out."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BloomConfig,
    BloomForCausalLM,
    DistilBertConfig,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    ModernBertConfig,
    RobertaConfig,
    T5Config,
)

from harness.contract.method import Method, MethodConfig, MethodTraits
from harness.contract.task import Example, ModelKind, TaskData
from harness.engine.attached import attach, is_as_before
from harness.engine.attention import attention
from harness.engine.pack import Pack
from harness.engine.resident import Base

SHAPE = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "pad_token_id": 0}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}


def llama():
    return LlamaForCausalLM(LlamaConfig(**SHAPE, **HEADS))


def gemma(window=64):
    config = Gemma3TextConfig(**SHAPE, **HEADS, head_dim=6, sliding_window=window, bos_token_id=1, eos_token_id=2)
    return Gemma3ForCausalLM(config)


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=24, n_layer=2, n_head=2, n_positions=64))


def mistral():
    return MistralForCausalLM(MistralConfig(**SHAPE, **HEADS, sliding_window=7))


def bloom():
    return BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=24, n_layer=2, n_head=2))


def mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=24, num_hidden_layers=2, state_size=4))


def base_of(build, kit, flat=True, task=None):
    torch.manual_seed(0)
    model = build().double().requires_grad_(False).eval()
    with torch.no_grad():  # so that attention matters
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return Base(model, task or kit.ToyTask(), "float64", lays_flat=flat)


@pytest.mark.parametrize(
    ("build", "longest"),
    [(llama, 2**30), (gemma, 64), (gpt2, 2**30), (mistral, 7), (bloom, 0), (mamba, 0)],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_which_models_can_have_texts_lie_flat(build, longest, kit):
    assert base_of(build, kit).longest_flat == longest


def test_texts_lie_flat_only_where_asked_for_on_a_cpu(kit):
    assert kit.make_base().longest_flat == 0
    assert kit.make_classifier("decoder").longest_flat == 0


@pytest.mark.parametrize("build", [llama, gemma, gpt2])
@pytest.mark.parametrize("micro_batch_size", ["auto", 2])
def test_lanes_lose_flat_what_they_lose_in_rows(build, micro_batch_size, kit):
    settings = [("lora", 1e-2, 0), ("mora", 3e-3, 1), ("dora", 3e-3, 2), ("lora", 3e-3, 0)]

    def run(flat):
        base = base_of(build, kit, flat)
        lanes = [kit.make_lane(base, *each, micro_batch_size=micro_batch_size, clip_norm=0.1) for each in settings]
        return kit.run(base, lanes)

    rows, flat = run(flat=False), run(flat=True)
    assert rows.losses.keys() == flat.losses.keys()
    for trial_id, expected in rows.losses.items():
        assert flat.losses[trial_id] == pytest.approx(expected, rel=1e-9)
    assert all(lane.forms for lane in flat.finished_lanes)


def test_a_pack_of_flat_texts_loses_what_its_lanes_lose_alone(kit, packable):
    settings = [(1e-2, 0), (1e-2, 1), (3e-3, 1)]
    solo = [kit.run(base := base_of(llama, kit), [kit.make_lane(base, packable, *each)]) for each in settings]
    base = base_of(llama, kit)
    kit.assert_same_as_solo(kit.run(base, [kit.make_lane(base, packable, *each) for each in settings]), solo)


def test_texts_longer_than_a_window_have_rows_of_their_own(kit):
    base = base_of(mistral, kit)
    lane = kit.make_lane(base, "lora")
    pack = Pack(base, [lane])
    pack.step()
    assert max(len(row.ids) for row in lane.rows()) > 7
    assert lane.padded_tokens > lane.train_tokens, "each is padded to the longest"


@pytest.mark.parametrize("classifier", [None, "bert"])
def test_flat_texts_are_hardly_padded(classifier, kit):
    base = classifier_base(classifier, kit) if classifier else base_of(llama, kit)
    data = base.task.load(kit.make_lane(base, "lora").context)
    data = TaskData([example for example in data.train] * 20, data.splits)
    lanes = [kit.make_lane(base, "lora", seed=seed, batch_size=32, steps=30, data=data) for seed in range(3)]
    kit.run(base, lanes)
    assert {lane.forms for lane in lanes} == {lanes[0].forms}
    assert lanes[0].forms <= 8
    padding = [1 - lane.train_tokens / lane.padded_tokens for lane in lanes]
    assert max(padding) < 0.1


DEPTH = {"num_attention_heads": 4, "max_position_embeddings": 64}
CLASSIFIERS = {
    "bert": BertConfig(**SHAPE, **DEPTH),
    "roberta": RobertaConfig(**{**SHAPE, "pad_token_id": 1}, **DEPTH),  # its positions begin at 2
    "distilbert": DistilBertConfig(
        vocab_size=40, dim=24, hidden_dim=36, n_layers=2, n_heads=4, max_position_embeddings=64
    ),
    "modernbert": ModernBertConfig(**SHAPE, **DEPTH, local_attention=32, cls_token_id=1, sep_token_id=2),
    "llama": LlamaConfig(**SHAPE, **HEADS),
    "gpt2": GPT2Config(vocab_size=40, n_embd=24, n_layer=2, n_head=2, n_positions=64, pad_token_id=0),
    "mean of tokens": ModernBertConfig(**SHAPE, **DEPTH, classifier_pooling="mean", cls_token_id=1, sep_token_id=2),
    "one block for all": AlbertConfig(**SHAPE, **DEPTH, embedding_size=24),
    "encoder and decoder": T5Config(
        vocab_size=40, d_model=24, d_kv=6, d_ff=36, num_layers=2, num_heads=4, pad_token_id=0, decoder_start_token_id=0
    ),
}


def classifier_base(name, kit, flat=True, kind=ModelKind.CLASSIFICATION):
    config = CLASSIFIERS[name]
    config.num_labels = 1 if kind is ModelKind.REGRESSION else 2
    task = type("Toy", (kit.ToyClassification,), {"model_kind": kind, "trains": ("score", "classifier")})()
    return base_of(lambda: AutoModelForSequenceClassification.from_config(config), kit, flat, task)


@pytest.mark.parametrize(
    ("name", "longest"),
    [("bert", 2**30), ("roberta", 2**30), ("modernbert", 16), ("llama", 2**30), ("mean of tokens", 0),
     ("one block for all", 0)],
)  # fmt: skip
def test_which_classifiers_can_have_texts_lie_flat(name, longest, kit):
    """Those whose head sees one token of a text; of a window that reaches to both sides half."""
    assert classifier_base(name, kit).longest_flat == longest


def pairs(kind):
    """Return texts of two parts, as an encoder's tokenizer gives them, with labels of either kind."""
    generator = torch.Generator().manual_seed(1)
    examples = []
    for n in (4, 9, 5, 12, 7, 6):
        ids = torch.randint(3, 40, (n,), generator=generator).tolist()
        label = ids[0] % 2 if kind is ModelKind.CLASSIFICATION else ids[0] / 40
        if n == 9:
            ids[-1] = 0  # for some models' padding
        examples.append(Example(ids, label, [0] * (n // 2) + [1] * (n - n // 2)))
    return examples


def texts_of(examples):
    return [each._replace(token_type_ids=None) for each in examples]


@pytest.mark.parametrize("kind", [ModelKind.CLASSIFICATION, ModelKind.REGRESSION])
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert", "llama", "gpt2"])
def test_classifiers_lose_flat_what_they_lose_in_rows(name, kind, kit):
    settings = [("lora", 1e-2, 0), ("mora", 3e-3, 1), ("dora", 3e-3, 2), ("lora", 3e-3, 0)]
    examples = pairs(kind) if name == "bert" else texts_of(pairs(kind))
    data = TaskData(examples, {"validation": [[3, 4]], "test": [[3, 4]]})

    def run(flat):
        base = classifier_base(name, kit, flat, kind)
        lanes = [kit.make_lane(base, *each, steps=5, data=data, micro_batch_size=2) for each in settings]
        return kit.run(base, lanes)

    rows, flat = run(flat=False), run(flat=True)
    assert not [lane.error for lane in flat.finished_lanes if lane.error]
    assert rows.losses.keys() == flat.losses.keys()
    for trial_id, expected in rows.losses.items():
        assert flat.losses[trial_id] == pytest.approx(expected, rel=1e-9)
    assert all(lane.forms for lane in flat.finished_lanes), "they lay flat"
    assert not any(lane.forms for lane in rows.finished_lanes)


PADDING = {"roberta": 1}
ODD = {
    "the padding token within": [[5, 9, 0, 4], [0, 7, 8], [6, 3, 0, 0], [4], [8, 9, 3], [5, 5]],
    "nothing but padding": [[5, 9, 4], [0, 0, 0], [0], [6, 3], [8, 9, 3, 4], [0, 0]],
    "no token": [[], [5, 9, 4], [], [6, 3], [8, 9, 3, 4], []],
}


class Once:
    """Texts that are read one after another, so that nobody knows how long the next ones are."""

    def __init__(self, examples):
        self.examples = examples

    def __iter__(self):
        return iter(self.examples)


def flat_and_rows(kit, name, examples, methods=("lora", "dora"), **recipe):
    """Return the lanes' losses with texts that lie flat, and with texts in rows."""
    found = []
    for flat in (True, False):
        base = classifier_base(name, kit, flat)
        data = TaskData(examples, {"validation": [[3, 4]], "test": [[3, 4]]})
        lanes = [kit.make_lane(base, method, 1e-3, seed, steps=4, data=data, **recipe)
                 for seed, method in enumerate(methods)]  # fmt: skip
        for lane in lanes:
            lane.context.tokenizer.pad_token_id = PADDING.get(name, 0)
        recorder = kit.run(base, lanes)
        assert not [lane.error for lane in lanes if lane.error]
        assert all(lane.forms for lane in lanes) == flat
        found.append(torch.tensor([recorder.losses[lane.trial.id] for lane in lanes]))
    return found


@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
@pytest.mark.parametrize("texts", ODD.values(), ids=ODD)
def test_odd_texts_lose_flat_what_they_lose_in_rows(name, texts, kit):
    """RoBERTa gives its padding token no position of its own, wherever that stands."""
    rows = [[PADDING.get(name, 0) if token == 0 else token for token in text] for text in texts]
    flat, rows = flat_and_rows(kit, name, [Example(text, place % 2) for place, text in enumerate(rows)])
    torch.testing.assert_close(flat, rows, rtol=1e-6, atol=0)


def test_texts_without_types_beside_some_with_types_are_all_of_the_first(kit):
    examples = pairs(ModelKind.CLASSIFICATION)
    mixed = [each._replace(token_type_ids=None) if place % 2 else each for place, each in enumerate(examples)]
    same = [each._replace(token_type_ids=[0] * len(each.input_ids)) if place % 2 else each
            for place, each in enumerate(examples)]  # fmt: skip
    expected = flat_and_rows(kit, "bert", same)
    for found, wanted in zip(flat_and_rows(kit, "bert", mixed), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(*expected, rtol=1e-6, atol=0)


def test_a_text_longer_than_foreseen_and_than_a_window_has_a_row(kit):
    examples = [
        Example([3 + (length * n * n + n) % 37 for n in range(length)], length % 2)
        for length in (5, 9, 30, 4, 33, 7, 20)
    ]
    flat, rows = flat_and_rows(kit, "modernbert", Once(examples), max_length=16)
    torch.testing.assert_close(flat, rows, rtol=1e-6, atol=0)


def test_what_fills_a_row_up_needs_no_more_positions_than_there_are(kit):
    examples = [Example([3 + place] * 34, place % 2) for place in range(31)]
    flat, rows = flat_and_rows(kit, "bert", Once(examples), methods=["lora"], batch_size=31, max_length=512)
    torch.testing.assert_close(flat, rows, rtol=1e-6, atol=0)


def test_a_head_that_sees_the_mean_is_found_however_little_that_shows(kit):
    def build():
        model = AutoModelForSequenceClassification.from_config(CLASSIFIERS["mean of tokens"])
        model.classifier.bias.data.fill_(1e4)
        return model

    assert base_of(build, kit, task=kit.ToyClassification()).longest_flat == 0


def test_a_table_of_positions_is_heeded_however_little_that_shows(kit):
    """All tokens have one large part in common, beside which positions are within what rounding would change."""

    def build():
        model = AutoModelForSequenceClassification.from_config(CLASSIFIERS["roberta"])
        model.roberta.encoder.layer[-1].output.LayerNorm.bias.data.fill_(1e3)
        return model

    assert base_of(build, kit, task=kit.ToyClassification()).layout.uncounted == 1


def test_a_mask_of_a_models_own_is_not_lost_where_texts_lie_flat():
    tensor = torch.zeros(1, 2, 4, 8)
    ends = torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(ValueError, match="no mask"):
        attention(None, tensor, tensor, tensor, torch.zeros(1, 1, 4, 4), cu_seq_lens_q=ends, max_length_q=4)


class Attached(Method):
    """Trains everything, with another attention."""

    name, title, paper, formula = "attached", "Attached", "https://example.org", "all"
    Config, traits = MethodConfig, MethodTraits()

    def attach(self, model, generator):
        model.set_attn_implementation("eager")
        model.requires_grad_(True)


def test_a_method_that_attaches_another_attention_has_texts_in_rows(kit):
    """No other attention knows where texts begin that lie flat."""
    base = classifier_base("bert", kit)
    private = attach(Attached(MethodConfig()), copy.deepcopy(base.model), (), torch.Generator())
    assert not is_as_before(private)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_on_a_gpu_classifiers_lose_captured_and_flat_what_they_lose_in_rows(name, kit, gpu, caplog):
    config = copy.deepcopy(CLASSIFIERS[name])
    config.hidden_size, config.head_dim, config.num_labels = 64, 16, 2  # the kernel takes heads of eights
    examples = pairs(ModelKind.CLASSIFICATION) if name == "bert" else texts_of(pairs(ModelKind.CLASSIFICATION))
    data = TaskData(examples, {"validation": [[3, 4]], "test": [[3, 4]]})

    def run(flat):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).to(gpu, torch.bfloat16).requires_grad_(False)
        base = Base(model, kit.ToyClassification(), "bfloat16", lays_flat=flat)
        assert bool(base.longest_flat) == flat
        return kit.run(base, [kit.make_lane(base, "lora", 1e-2, seed, steps=20, data=data) for seed in (0, 1)])

    rows, flat = run(flat=False), run(flat=True)
    for trial_id, expected in rows.losses.items():
        assert flat.losses[trial_id] == pytest.approx(expected, rel=0.05)
    assert not [record for record in caplog.records if "captured" in record.getMessage()]
