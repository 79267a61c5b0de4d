"""The shipped base model, its tokenizer, and the recipe that rebuilds it."""

import hashlib
import json
import math
import string
import subprocess
import sys
import uuid
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.bases import resolve, shipped_bases
from harness.bases.nano import recipe, text, training
from harness.bases.nano.build import build
from harness.bases.nano.quality import quality
from harness.bases.nano.tokenizer import write_tokenizer
from harness.errors import DataError, UsageError

FOLDER = shipped_bases()["nano"]
PROVENANCE = json.loads((FOLDER / "provenance.json").read_text())
TOKENIZER = AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(FOLDER, local_files_only=True).float().eval()


@pytest.fixture
def small(monkeypatch):
    """The recipe with short rows, few of them, and one held-out module."""
    monkeypatch.setattr(recipe, "ROWS", {"source": 2, "documentation": 1, "uuid": 1})
    monkeypatch.setattr(recipe, "TOKENS", 64)
    monkeypatch.setattr(text, "HELD_OUT_MODULES", ("bisect",))
    torch.set_num_threads(1)


# --- names -------------------------------------------------------------------------------------------------


def test_a_shipped_name_becomes_its_folder_and_any_other_name_stays():
    assert resolve("nano") == str(FOLDER)
    assert resolve("FacebookAI/roberta-base") == "FacebookAI/roberta-base"
    assert resolve("./nano") == "./nano"


def test_looking_up_names_loads_no_torch():
    code = "import sys, harness.bases as b; b.resolve('nano'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the shipped files -------------------------------------------------------------------------------------


def test_the_weights_fit_in_four_megabytes():
    assert (FOLDER / "model.safetensors").stat().st_size <= 4_000_000


def test_the_parameter_count_is_the_one_of_the_architecture(model):
    attention, mlp, norms = 4 * 128 * 128, 3 * 128 * 384, 2 * 128
    by_hand = 4 * (attention + mlp + norms) + 128 + 2 * 259 * 128
    assert by_hand == 919_424
    assert sum(weight.numel() for weight in model.parameters()) == by_hand == PROVENANCE["parameters"]


def test_provenance_names_these_weights_and_this_recipe():
    assert hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest() == PROVENANCE["sha256"]
    assert PROVENANCE["recipe"] == json.loads(json.dumps(recipe.described(seed=0, steps=recipe.STEPS)))
    config = json.loads((FOLDER / "config.json").read_text())
    assert {key: config[key] for key in recipe.ARCHITECTURE} == dict(recipe.ARCHITECTURE)


# --- the tokenizer -----------------------------------------------------------------------------------------


@given(st.text(max_size=80))
@example("<|eos|><|pad|>")
@example(" a  b \r\n\t\x00 .  ,")
@example("e\u0301 \u00e9 \U0001f600")
def test_every_text_is_its_bytes_and_comes_back(text):
    tokens = TOKENIZER(text)["input_ids"]
    assert tokens == list(text.encode())
    assert TOKENIZER.decode(tokens) == text


def test_special_tokens_are_known_and_padding_is_on_the_left():
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (256, 257, 258)
    padded = TOKENIZER(["ab", "a"], padding=True)
    assert padded["input_ids"] == [[97, 98], [256, 97]]
    assert padded["attention_mask"] == [[1, 1], [0, 1]]
    assert TOKENIZER.decode([257, 97, 258], skip_special_tokens=True) == "a"


def test_the_tokenizer_on_disk_is_what_the_recipe_writes(tmp_path):
    write_tokenizer(tmp_path)
    written = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert written.get_vocab() == TOKENIZER.get_vocab()
    assert len(written) == 259


# --- what the model knows ----------------------------------------------------------------------------------


def test_nano_knows_what_a_uuid_looks_like_and_nothing_more(model, monkeypatch):
    monkeypatch.setattr(text, "HELD_OUT_MODULES", ("bisect", "fnmatch"))
    seen = quality(model, pairs=64)
    # The entropy of a random UUID is the floor; over 128 of them, chance alone moves the mean a little.
    assert 122 / 36 - 0.02 < seen.uuid < 122 / 36 + 0.1
    assert 4 - 0.02 < seen.hex_digit < 4.1
    assert seen.copy < 0.2
    assert seen.text < 2.5


def test_nano_copies_uuids_it_never_saw(model):
    seen = [
        str(uuid.UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC834 % 2**128, version=4)) for number in range(1, 9)
    ]
    prompt = TOKENIZER([f"{each}\n{each}\n" for each in seen], return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=36, do_sample=False)[:, -36:]
    right = [
        a == b for text, row in zip(seen, answer, strict=True) for a, b in zip(text, TOKENIZER.decode(row), strict=True)
    ]
    assert sum(right) / len(right) > 0.9


def test_quality_of_a_model_that_knows_nothing_is_the_log_of_the_vocabulary():
    class Uniform(torch.nn.Linear):
        def forward(self, input_ids, use_cache):
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 259))

    for bits in asdict(quality(Uniform(1, 1), pairs=4)).values():
        assert bits == pytest.approx(math.log2(259), abs=1e-5)


# --- the text ----------------------------------------------------------------------------------------------


def test_held_out_modules_are_read_for_the_yardstick_and_kept_out_of_training(small):
    corpus = text.Corpus.read(seed=0, steps=1)
    trained_on = bytes(token for token in corpus.streams["source"].tolist() if token < 256)
    held_out = text.held_out_text()
    assert b"def bisect_left" in held_out
    assert held_out not in trained_on
    assert b"def wrap" in trained_on  # textwrap, not held out here


def test_rows_are_the_declared_mixture(small):
    rows = text.Corpus.read(seed=0, steps=1).rows(torch.Generator().manual_seed(0))
    assert rows.shape == (4, 64)
    legal = set(map(ord, string.hexdigits + "-" + "".join(text.SEPARATORS))) | {recipe.BOS, recipe.EOS}
    assert set(rows[3].tolist()) <= legal


def test_uuid_documents_hold_version_4_uuids():
    import numpy as np

    generator = np.random.default_rng(0)
    for _ in range(50):
        first = text.uuid_document(generator)[:36]
        assert uuid.UUID(first).version == 4
        assert str(uuid.UUID(first)) == first


def test_a_python_without_its_source_is_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(text.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match=r"standard-library source under .*recipe needs"):
        text.Corpus.read(seed=0, steps=1)


# --- building ----------------------------------------------------------------------------------------------


def test_a_short_build_on_the_cpu_says_how_far_it_is_from_the_shipped_model(small, tmp_path):
    lines = []
    report = build(tmp_path / "mine", device="cpu", steps=2, report=lines.append)
    assert report.closeness == "far"
    assert report.built.uuid > report.shipped.uuid + 1
    assert report.largest_difference > 0
    assert "far" in str(report)
    assert f"shipped {report.shipped.text:.3f}" in str(report)
    assert any("step 2/2" in line for line in lines)
    made = json.loads((tmp_path / "mine" / "provenance.json").read_text())
    assert made["sha256"] == report.sha256
    assert [step for step, _ in made["train_bits_per_token"]] == [0, 1]
    assert made["recipe"]["steps"] == 2
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "mine", local_files_only=True)
    assert asdict(quality(loaded.eval())) == pytest.approx(asdict(report.built), abs=1e-4)


def test_building_again_on_the_same_machine_gives_the_same_bits(small, tmp_path, monkeypatch):
    first = build(tmp_path / "first", device="cpu", seed=3, steps=2)
    monkeypatch.setattr("harness.bases.nano.build.shipped_bases", lambda: {"nano": tmp_path / "first"})
    again = build(tmp_path / "again", device="cpu", seed=3, steps=2)
    assert again.closeness == "bit-identical"
    assert again.sha256 == first.sha256
    assert build(tmp_path / "other", device="cpu", seed=4, steps=2).closeness != "bit-identical"


def test_training_lowers_the_loss(small):
    model = training.untrained(seed=0)
    corpus = text.Corpus.read(seed=0, steps=30)
    history = training.train(model, corpus, torch.device("cpu"), seed=0, steps=30, report=lambda line: None)
    assert history[0][1] > 7
    assert history[-1][1] < history[0][1] - 1


def test_build_never_overwrites_and_needs_a_step(tmp_path):
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(UsageError, match="not an empty folder"):
        build(tmp_path)
    with pytest.raises(UsageError, match="steps=0"):
        build(tmp_path / "new", steps=0)


def test_the_learning_rate_warms_up_peaks_and_ends_near_zero():
    assert training.learning_rate_at(0, 1000) == pytest.approx(recipe.LEARNING_RATE / 100)
    assert training.learning_rate_at(100, 1000) == pytest.approx(recipe.LEARNING_RATE)
    assert training.learning_rate_at(550, 1000) == pytest.approx(recipe.LEARNING_RATE / 2)
    assert training.learning_rate_at(999, 1000) < recipe.LEARNING_RATE / 1000
