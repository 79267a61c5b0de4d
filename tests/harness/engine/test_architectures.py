"""Every architecture of transformers that a task can use: harness computes, trains, merges and exports it right.

The families are those of transformers' own tables of models, made tiny by the names that their configurations give to
sizes. A family that cannot be made so is in ``UNBUILT`` with the reason, and a model that is refused is in ``REFUSED``:
both lists are checked, so that nothing stays in them without need. A few families of each kind run by default, the
others are marked slow; continuous integration runs all.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from harness.bases import resolve
from harness.contract.task import IGNORE, Evaluation, Example, ModelKind, TaskData
from harness.engine.behaviour import check_behaviour, check_gradients, position_limit
from harness.engine.decoder import Decoder, is_capturable, pads_behind
from harness.engine.decoding import Company, company, generate
from harness.engine.evaluation import negative_log_likelihoods
from harness.engine.layers import find_layers, present_as_linear, select_layers
from harness.engine.losses import check_loss
from harness.engine.memory import keep
from harness.engine.model import choose_model
from harness.engine.probe import stand_in, use_cache
from harness.engine.resident import Base
from harness.engine.trained import TrainedTrial
from harness.engine.training import evaluating
from harness.errors import ConfigError, UsageError
from harness.results.export import STATE_MODELS, export_merged, export_peft

TOKENIZER = AutoTokenizer.from_pretrained(resolve("nano"))
TOKENIZER.pad_token = TOKENIZER.convert_ids_to_tokens(0)  # some tables of positions must hold the padding's number
END = TOKENIZER.eos_token_id
POSITIONS = 64

# What configurations call sizes, and how small they get.
SIZES: Mapping[str, int] = {
    "vocab_size": len(TOKENIZER), "vocab_size_per_layer_input": len(TOKENIZER), "entity_vocab_size": 20,
    "pronunciation_vocab_size": 20, "shape_vocab_size": 20, "encoder_hash_byte_group_vocab": 64,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "emb_dim", "dim", "lru_width"), 32),
    "attention_hidden_size": 32, "entity_emb_size": 16, "hidden_size_per_layer_input": 8,
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "d_inner", "dff", "dim_ff", "hidden_dim"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 16),
    "moe_shared_expert_intermediate_size": 16,
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    "num_key_value_heads": 2, "head_dim": 8, "rotary_dim": 4, "rotary_ndims": 4, "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2, "swa_head_dim": 8,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), POSITIONS),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_top_k", "top_k_experts", "moe_k"), 2), "n_group": 1, "topk_group": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "qk_head_dim": 16, "index_head_dim": 8, "index_n_heads": 2, "index_topk": 16,
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size", "d_state"), 4),
    "time_step_rank": 4, "mamba_dt_rank": 4, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_num_heads": 4,
    "mamba_head_dim": 16, "n_mamba_heads": 4, "mamba_headdim": 16, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_nextn_predict_layers": 0,
    "first_k_dense_replace": 1,
}  # fmt: skip
TOKENS = {"pad_token_id": TOKENIZER.pad_token_id, "bos_token_id": TOKENIZER.bos_token_id,
          "eos_token_id": TOKENIZER.eos_token_id}  # fmt: skip

HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
CONVOLUTION = {"layer_types": ["conv", "full_attention"]}
SHARED_BLOCK = {"layer_types": ["mamba", "hybrid"] * 2, "num_hidden_layers": 4, "attention_hidden_size": 64,
                "attention_head_dim": 16}  # fmt: skip
NGRAMS = {
    **HYBRID, "ngram_vocab_size_base": 100, "split_ngram_parts": 2, "hc_lowrank": 8, "indexer_n_heads": 2,
    "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16, "indexer_compress_ratio": 2,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 1e4}
# Settings that go together with sizes in a way that names do not tell; ``None`` leaves the family's own.
SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "bailing_hybrid": HYBRID,
    "beam": {"mlp_layer_types": ["dense", "sparse"]},
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_top_k": 2},
    },
    "deepseek_v2": {"topk_method": "greedy", "num_experts_per_tok": 2},
    "doge": {"num_key_value_heads": 4},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "num_key_value_heads": 2},
    "esm": {"vocab_size": len(TOKENIZER), "mask_token_id": 1},
    "esmc": {"num_key_value_heads": 4, "vocab_size": len(TOKENIZER)},
    "falcon": {"head_dim": None},
    "funnel": {"num_hidden_layers": None, "block_sizes": [1, 1]},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4": {"text_config": {"final_logit_softcapping": 30.0}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite": {"logits_scaling": 8.0},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    # With one expert for a token, the family's own default and no published model's, routers have no effect to train.
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2},
    "kimi_linear": HYBRID,
    "layoutlmv3": {"hidden_size": 48, "coordinate_size": 8, "shape_size": 8},
    "lfm2_moe": CONVOLUTION,
    "lfm3": CONVOLUTION,
    "lilt": {"hidden_size": 48},
    "longformer": {"attention_window": 16},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "ministral": {"head_dim": 8},
    "mistral4": {"head_dim": 16, "num_key_value_heads": 4},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "nemotron_h": {"layer_types": ["mamba", "attention", "moe"], "n_groups": 2},
    "prophetnet": {"num_hidden_layers": None},
    "qwen3_5": {"text_config": HYBRID},
    "qwen3_5_moe": {"text_config": HYBRID},
    "qwen3_5_moe_text": HYBRID,
    "qwen3_5_text": HYBRID,
    "qwen3_next": HYBRID,
    "qwen4_exp": {"text_config": NGRAMS},
    "qwen4_exp_text": NGRAMS,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"is_decoder": True, "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16]},
    "t5": {"decoder_start_token_id": 0},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": SHARED_BLOCK,
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_hidden_layers": 4,
        "mamba_ngroups": 1,
        "intermediate_size": 48,
        "num_key_value_heads": None,
        "head_dim": None,
        "mamba_headdim": None,
        "attention_hidden_size": None,
    },
}


def tiny_config(family: str) -> PretrainedConfig:
    """Return a small configuration of a family."""
    kind = CONFIG_MAPPING[family]
    return kind(**_small(kind, SPECIAL.get(family, {})))


def _small(kind: type[PretrainedConfig], changes: Mapping[str, Any]) -> dict[str, Any]:
    default, subs = kind(), getattr(kind, "sub_configs", {})
    values: dict[str, Any] = {}
    for name, size in SIZES.items():
        try:
            usual = getattr(default, name, None)
        except Exception:  # noqa: BLE001 - of configurations whose layers differ in it
            continue
        if isinstance(usual, int) and not isinstance(usual, bool) and usual > size:
            values[name] = size
    values |= {k: v for k, v in TOKENS.items() if isinstance(getattr(default, k, None), int) or k == "pad_token_id"}
    if getattr(default, "kv_lora_rank", None):
        values["num_key_value_heads"] = values.get("num_attention_heads", 4)
    for name in subs:
        if isinstance(sub := getattr(default, name, None), PretrainedConfig):
            values[name] = _small(type(sub), changes.get(name, {}))
    values |= {name: value for name, value in changes.items() if name not in subs}
    return {name: value for name, value in values.items() if value is not None}


AUTO = {
    ModelKind.CAUSAL_LM: transformers.AutoModelForCausalLM,
    ModelKind.CLASSIFICATION: transformers.AutoModelForSequenceClassification,
}


def tiny_model(kind: ModelKind, family: str) -> Any:
    torch.manual_seed(0)
    model = AUTO[kind].from_config(tiny_config(family))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)  # so that what layers do is seen in the logits
            if not parameter.count_nonzero():
                parameter.add_(0.1)  # a factor of zero would let no gradient through
    return model.requires_grad_(False).eval()


MOST_PARAMETERS = 4_000_000


class Texts:
    """Random tokens of different lengths, each text ended, as some classifiers want it; nothing is scored."""

    def load(self, context):
        generator = torch.Generator().manual_seed(context.seed)
        rows = [[*torch.randint(3, 250, (n,), generator=generator).tolist(), END] for n in (5, 9, 7, 6, 8, 5)]
        is_language = self.model_kind is ModelKind.CAUSAL_LM
        examples = [Example(row, [IGNORE, IGNORE, *row[2:]] if is_language else row[0] % 2) for row in rows]
        return TaskData(examples, {"validation": [], "test": []})

    def evaluate(self, model, context, split):
        return Evaluation({"loss": 0.0})


IDS = torch.cat([torch.arange(3, 33).reshape(3, 10), torch.full((3, 1), END)], 1)


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def distance(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def takes(model, tokens):
    ids = torch.full((1, tokens), 8)
    ids[0, -1] = END
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (RuntimeError, IndexError, ValueError):
        return False
    return True


def check(twin, kind):
    """Do what planning does."""
    check_behaviour(twin, kind)
    check_gradients(twin)
    if kind is ModelKind.CAUSAL_LM:
        check_loss(twin)


def refusal_of_peft(trained, folder):
    """Return why an export to PEFT is refused; ``None`` where it is done."""
    try:
        export_peft(trained, folder)
    except UsageError as error:
        return str(error)
    return None


def examine(kit, kind, family, tmp_path):
    """Check everything that harness promises of a model, from its plan to its export."""
    folder = tmp_path / "base"
    made = tiny_model(kind, family)
    made.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)

    def load(path):
        use_cache(config := AutoConfig.from_pretrained(path), False)  # as the harness loads it to train
        return AUTO[kind].from_pretrained(path, config=config, dtype=dtype).requires_grad_(False).eval()

    dtype = torch.float64
    has_experts = any(parameter.ndim == 3 for parameter in made.parameters())
    if has_experts or family in FLOAT32_ONLY:  # the kernels of experts know no float64
        dtype = torch.float32
    rounding = 1e-9 if dtype is torch.float64 else 1e-4
    model = load(folder)
    with torch.device("meta"):
        skeleton = AUTO[kind].from_config(tiny_config(family))
    task = type("Toy", (Texts, kit.ToyTask), {"model_kind": kind})()
    planned = find_layers(skeleton, ())
    twin = stand_in(skeleton)
    if (expected := REFUSED[kind].get(family)) is not None:
        with pytest.raises(ConfigError, match=expected):
            check(twin, kind)
        if kind is ModelKind.CAUSAL_LM:
            with pytest.raises(ConfigError, match=expected):
                Base(model, task, "float32")
        return
    if twin is not None:
        check(twin, kind)
    if family in WITHOUT_LAYERS:
        with pytest.raises(UsageError, match="no linear layer that an adapter could work in"):
            select_layers(planned.shapes, ())
        return
    plain, untouched = (copy.deepcopy(model) for _ in range(2))
    base = Base(model, task, str(dtype).removeprefix("torch."), lays_flat=True)
    assert base.layers == planned.shapes, "what a plan counts is what trains"
    limit = position_limit(plain)
    assert limit == (None if twin is None else position_limit(twin))
    assert takes(plain, limit or 4 * POSITIONS)
    assert limit is None or not takes(plain, limit + 1)
    expected = logits(plain)
    assert distance(logits(base.model), expected) < rounding, "it computes what plain transformers computes"

    lanes = [kit.make_lane(base, "lora", learning_rate=1e-2 * (1 + seed), seed=seed, steps=3) for seed in (0, 1)]
    before = {k: v.clone() for k, v in lanes[1].state().items()}
    together = kit.run(base, lanes)
    base.longest_flat = 0  # together, texts lay flat where they can; alone, each has a row, and memory is short
    alone = kit.make_lane(base, "lora", learning_rate=2e-2, seed=1, steps=3)
    alone.recomputes, alone.rows_at_once = True, 2
    by_itself = kit.run(base, [alone])
    assert not [lane.error for lane in (*lanes, alone) if lane.error]
    assert together.losses[alone.trial.id] == pytest.approx(by_itself.losses[alone.trial.id], rel=max(rounding, 1e-6))
    assert not [name for name, value in lanes[1].state().items() if torch.equal(value, before[name])], "all have moved"

    with evaluating(base, alone) as active:
        tuned = logits(active)
    assert distance(tuned, expected) > 1e-6
    for name, adapter in alone.adapters.items():
        present_as_linear(plain.get_submodule(name)).weight.data.add_(adapter.delta_weight().detach())
    assert distance(logits(plain), tuned) < 10 * rounding, "merged, it computes what it does with the adapters"

    choice = choose_model(str(folder), None, task, alone.recipe)
    trial = replace(alone.trial, model=choice.name, model_revision=choice.revision)
    trained = TrainedTrial(trial, kit.registry.method("lora"), task, alone.state())
    is_usual = not trained.has_stacked_experts and model.config.model_type not in STATE_MODELS
    if (refusal := refusal_of_peft(trained, tmp_path / "peft")) is None:
        adapted = PeftModel.from_pretrained(untouched, tmp_path / "peft").eval()
        assert distance(logits(adapted), tuned) < 1e-4, "PEFT computes the same"
    else:
        assert "PEFT cannot adapt" in refusal
        assert not is_usual, refusal
    export_merged(trained, tmp_path / "merged")
    assert distance(logits(load(tmp_path / "merged")), tuned) < 1e-4, "transformers computes the same"

    if kind is ModelKind.CAUSAL_LM:
        row = IDS[0].tolist()
        (found,) = negative_log_likelihoods(plain, [Example(row, row)], TOKENIZER.pad_token_id)
        (wanted,) = cross_entropy(logits(plain)[:1, :-1].transpose(1, 2).double(), IDS[:1, 1:], reduction="none").sum(1)
        assert found == pytest.approx(float(wanted), rel=rounding), "its loss is that of its own logits"
        prompts = [list(range(3, 3 + length)) for length in (9, 4, 7, 4)]
        one_by_one = [generate(plain, TOKENIZER, [prompt], 5, min_new_tokens=5)[0] for prompt in prompts]
        assert generate(plain, TOKENIZER, prompts, 5, min_new_tokens=5) == one_by_one
        if company(plain, TOKENIZER) is Company.ANY and is_capturable(plain, 14):  # as a GPU decodes them
            ids, mask = (torch.zeros(4, 9, dtype=torch.long) for _ in range(2))
            for row, prompt in enumerate(prompts):
                ids[row, 9 - len(prompt) :], mask[row, 9 - len(prompt) :] = torch.tensor(prompt), 1
            decoder = Decoder(plain, TOKENIZER, 4, 14, 5, lambda step, _: step)
            assert decoder(ids, mask, 5).tolist() == one_by_one
            assert pads_behind(plain)


LANGUAGE = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
CLASSIFYING = sorted(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
LOOKS_AHEAD, MINDS_PADDING = "a later token changes what is predicted before it", "padding a text changes"
NO_GRADIENT = "no gradient comes through it"

# Families that no small configuration makes, or whose model takes no text alone, with the reason.
UNBUILT: Mapping[ModelKind, Mapping[str, str]] = {
    ModelKind.CAUSAL_LM: {
        "blt": "its parts have sizes that depend on each other in more ways",
        "dots3_note": "its layers differ in sizes",
        "dots3_note_text": "its layers differ in sizes",
        "emu3": "it is saved as its text part, which is no family of its own",
        "gemma3n": "its images want the package timm",
        "gemma4_assistant": "it drafts for another model, whose states it reads",
        "gemma4_unified_assistant": "it drafts for another model, whose states it reads",
        "mllama": "it is saved as its text part, which is no family of its own",
        "musicgen": "it writes audio, conditioned on a text",
        "musicgen_melody": "it writes audio, conditioned on a text",
        "phi4_multimodal": "its parts for images and sound have fixed sizes",
        "xlstm": "its state has another shape than its code expects",
    },
    ModelKind.CLASSIFICATION: {
        "layoutlmv2": "its images want the package detectron2",
        "perceiver": "its parts for images have fixed sizes",
    },
}
# Families that planning refuses, with what it says.
REFUSED: Mapping[ModelKind, Mapping[str, str]] = {
    ModelKind.CAUSAL_LM: {
        **dict.fromkeys(
            ("bert", "bert-generation", "big_bird", "camembert", "cpmant", "data2vec-text", "electra", "ernie",
             "megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm",
             "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod"), LOOKS_AHEAD
        ),
        "prophetnet": "its loss cannot be taken from what its output head sees",
        "reformer": NO_GRADIENT,
    },
    ModelKind.CLASSIFICATION: {
        **dict.fromkeys(
            ("canine", "convbert", "fnet", "mobilebert", "nystromformer", "t5gemma", "t5gemma2", "xlnet", "yoso"),
            MINDS_PADDING,
        ),
        "reformer": NO_GRADIENT,
    },
}  # fmt: skip
FLOAT32_ONLY = ("mra", "prophetnet", "xglm")  # their own code computes nothing, or NaN, in float64
WITHOUT_LAYERS = ("ibert",)  # whose layers round to integers: planning says that adapters have nowhere to work
BY_DEFAULT = {
    ModelKind.CAUSAL_LM: ("bart", "bert", "bloom", "falcon", "gemma3_text", "gpt2", "llama", "mamba", "mixtral", "opt"),
    ModelKind.CLASSIFICATION: ("albert", "deberta-v2", "fnet", "llama", "roberta"),
}
MINUTES = ("kimi_linear",)  # without a GPU's kernel it computes its attention token by token


def families(kind, names):
    """Return the families of a table as parameters of a test: those that can be made, most of them marked slow."""
    for name in names:
        marks = [] if name in BY_DEFAULT[kind] else [pytest.mark.exhaustive if name in MINUTES else pytest.mark.slow]
        if name not in UNBUILT[kind]:
            yield pytest.param(name, marks=marks)


@pytest.fixture(autouse=True)
def _what_is_loaded_stays():
    """A family's code stays in memory: not collected again with every trial of the next."""
    keep()


@pytest.mark.parametrize("family", families(ModelKind.CAUSAL_LM, LANGUAGE))
def test_a_language_model_trains_and_leaves_as_it_should(kit, family, tmp_path):
    examine(kit, ModelKind.CAUSAL_LM, family, tmp_path)


@pytest.mark.parametrize("family", families(ModelKind.CLASSIFICATION, CLASSIFYING))
def test_a_classifier_trains_and_leaves_as_it_should(kit, family, tmp_path):
    examine(kit, ModelKind.CLASSIFICATION, family, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "family"), [(kind, name) for kind, names in UNBUILT.items() for name in names])
def test_a_family_said_to_be_out_of_reach_is(kind, family, tmp_path):
    with pytest.raises(Exception):  # noqa: B017, PT011 - which one is its own affair
        make(kind, family, tmp_path)


def make(kind, family, folder):
    with torch.device("meta"):
        empty = AUTO[kind].from_config(tiny_config(family))
    assert sum(parameter.numel() for parameter in empty.parameters()) < MOST_PARAMETERS
    model = tiny_model(kind, family)
    logits(model)
    model.save_pretrained(folder)
    AUTO[kind].from_pretrained(folder)


def test_nothing_is_listed_that_transformers_does_not_have():
    for table in (UNBUILT, REFUSED, BY_DEFAULT):
        assert set(table[ModelKind.CAUSAL_LM]) <= set(LANGUAGE)
        assert set(table[ModelKind.CLASSIFICATION]) <= set(CLASSIFYING)


# Not Falcon: its code brings a number from the CPU in every step, so it runs uncaptured, and slower.
CAPTURED = ("gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "olmo2", "opt", "phi3", "qwen3")


@pytest.mark.gpu
@pytest.mark.parametrize("family", CAPTURED)
def test_a_gpu_trains_texts_of_many_lengths_captured(kit, family, gpu, caplog):
    """Together and alone, lanes lose the same, and no step is run uncaptured for want of a capture that works."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, POSITIONS - 4, (40,), generator=generator).tolist()
    rows = [torch.randint(3, 250, (length,), generator=generator).tolist() for length in lengths]
    data = TaskData([Example(row, row) for row in rows], {"validation": rows, "test": rows})
    task = type("Toy", (Texts, kit.ToyTask), {"model_kind": ModelKind.CAUSAL_LM})()

    def lanes(seeds):
        base = Base(tiny_model(ModelKind.CAUSAL_LM, family).to(gpu), task, "float32")
        return base, [kit.make_lane(base, "lora", 1e-3, seed, data=data, steps=30, batch_size=4) for seed in seeds]

    together = kit.run(*lanes((0, 1)))
    for seed in (0, 1):
        ((trial_id, expected),) = kit.run(*lanes((seed,))).losses.items()
        assert together.losses[trial_id] == pytest.approx(expected, rel=1e-3)
    assert not [record for record in caplog.records if "captured" in record.getMessage()]
