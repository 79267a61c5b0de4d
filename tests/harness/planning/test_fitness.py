"""A base model that cannot serve a task is refused before anything trains, with the reason and in one line."""

from __future__ import annotations

import json
import sys

import pytest
import transformers
from transformers import AutoTokenizer

from harness import cli
from harness.bases import resolve

TOKENIZER = AutoTokenizer.from_pretrained(resolve("nano"))
WORDS = {"vocab_size": len(TOKENIZER), "pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SEQUENCE = {
    "d_model": 32, "decoder_layers": 2, "encoder_layers": 2, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4, "max_position_embeddings": 512,
}  # fmt: skip
MODELS = {
    "bert": transformers.BertConfig(**WORDS, **SHAPE),
    "falcon": transformers.FalconConfig(**WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    "gpt2": transformers.GPT2Config(**WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=32),
    "llama": transformers.LlamaConfig(**WORDS, **SHAPE),
    "mamba": transformers.MambaConfig(**WORDS, hidden_size=32, num_hidden_layers=2, state_size=4),
    "mixtral": transformers.MixtralConfig(**WORDS, **SHAPE, num_key_value_heads=2, num_local_experts=4),
    "bart": transformers.BartConfig(**WORDS, **SEQUENCE, is_encoder_decoder=False, is_decoder=True),
}


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes a small model's folder, without weights: a plan reads none."""

    def write(name):
        path = tmp_path / name
        MODELS[name].save_pretrained(path)
        TOKENIZER.save_pretrained(path)
        return path

    return write


def plan(path, capsys):
    given = ["--model", str(path), "--methods", "lora", "--task", "uuid", "--budget", "lora:r=4"]
    return run(["harness", "plan", *given], capsys)


def run(command, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stop:
            cli.main()
    said = capsys.readouterr()
    return stop.value.code, said.out, said.err


def refusal(path, capsys):
    code, _, said = plan(path, capsys)
    assert code == 2
    assert "Traceback" not in said
    return said


def test_a_language_model_in_which_tokens_see_their_labels(folder, capsys):
    assert "a later token changes what is predicted before it" in refusal(folder("bert"), capsys)


def test_a_model_with_fewer_positions_than_a_text_has_tokens(folder, capsys):
    assert "the longest text has 73 tokens, and the model only 32 positions" in refusal(folder("gpt2"), capsys)


def test_a_tokenizer_without_special_tokens(folder, capsys):
    path = folder("llama")
    settings = json.loads((path / "tokenizer_config.json").read_text())
    for name in ("pad_token", "eos_token", "bos_token", "unk_token"):
        settings.pop(name, None)
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "its tokenizer has no eos_token and no pad_token" in refusal(path, capsys)


@pytest.mark.parametrize("command", ["plan", "show"])
def test_a_task_that_counts_on_a_token_is_not_asked_before_the_token_is_looked_for(folder, capsys, tmp_path, command):
    path, data = folder("llama"), tmp_path / "mine.jsonl"
    settings = json.loads((path / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    data.write_text("".join(json.dumps({"prompt": f"q{i}", "response": "a"}) + "\n" for i in range(20)))
    given = ["plan", "--data", str(data)] if command == "plan" else ["data", "show", str(data)]
    code, out, said = run(["harness", *given, "--model", str(path)], capsys)
    assert (code, "its tokenizer has no eos_token" in said, "Traceback" in said) == (2, True, False)
    assert ("prompt = prompt" in out) == (command == "show")  # what was understood is worth seeing even so


def test_a_classifier_that_names_no_padding_is_told_the_tokenizers(folder, capsys, tmp_path):
    """As of most language models (GPT-2, Llama 3, Mistral): their last token is looked for from the end."""
    path, data = folder("llama"), tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps({"text": f"text {i}", "label": "ab"[i % 2]}) + "\n" for i in range(20)))
    for name, key in (("config.json", "pad_token_id"), ("tokenizer_config.json", "pad_token")):
        settings = json.loads((path / name).read_text())
        del settings[key]
        (path / name).write_text(json.dumps(settings))
    code, _, said = run(["harness", "plan", "--data", str(data), "--model", str(path), "--methods", "lora"], capsys)
    assert code == 0, said


def test_an_encoder_decoder(folder, capsys, tmp_path):
    transformers.T5Config(**WORDS, d_model=32, num_layers=1, num_heads=2).save_pretrained(tmp_path / "t5")
    assert "is an encoder-decoder (t5)" in refusal(tmp_path / "t5", capsys)


@pytest.mark.parametrize("text", ["{", '{"model_type": "unheard-of"}'], ids=["no JSON", "no known family"])
def test_a_configuration_that_cannot_be_read(text, tmp_path, capsys):
    (tmp_path / "config.json").write_text(text)
    assert "cannot be read" in refusal(tmp_path, capsys)


@pytest.mark.parametrize(
    ("name", "count", "note"),
    [
        # r (in + out), r = 4: in_proj 32 -> 128, x_proj 64 -> 10, out_proj 64 -> 32; not dt_proj, whose weight is read.
        ("mamba", 2 * 4 * (160 + 74 + 96), "does not depend on by any gradient: backbone.layers.*.mixer.dt_proj"),
        # Self-attention and the two of the MLP; not the attention to an encoder that is not there.
        ("bart", 2 * 4 * (4 * 64 + 2 * 80), "model.decoder.layers.*.encoder_attn.k_proj"),
        # query_key_value 32 -> 48 (one key and value for all heads), dense, and two of the MLP of 4 x 32.
        ("falcon", 2 * 4 * (80 + 64 + 2 * 160), ""),
        # Attention alone and what chooses experts, whose matrices stand in one tensor.
        ("mixtral", 2 * 4 * (2 * 64 + 2 * 48), "many matrices in one tensor: model.layers.*.mlp.experts.gate_up_proj"),
    ],
)
def test_a_plan_counts_what_can_train_and_says_what_cannot(folder, capsys, name, count, note):
    code, out, err = plan(folder(name), capsys)
    assert code == 0, err
    assert f" {count:,} " in out
    assert note in out
