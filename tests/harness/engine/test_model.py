"""Which model is meant, and which of its linear layers may be adapted."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import suppress

import pytest
import torch
import transformers

from harness.bases import resolve
from harness.contract.task import ModelKind, Task
from harness.engine.layers import linear_layers
from harness.engine.model import ModelChoice, build_on_meta, choose_model, load_model, load_tokenizer
from harness.errors import DataError

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=300)


def build(config, auto):
    with torch.device("meta"):
        return auto.from_config(config(**SMALL, pad_token_id=0))


@pytest.mark.parametrize(
    ("config", "body", "per_block"),
    [
        (transformers.LlamaConfig, "model.", 7),  # q, k, v, o, gate, up, down
        (transformers.GPT2Config, "transformer.", 4),  # qkv in one, output, and two of the MLP
        (transformers.RobertaConfig, "roberta.", 6),  # query, key, value, output, and two of the MLP
    ],
    ids=["llama", "gpt2", "roberta"],
)
def test_a_head_that_no_pattern_names_gets_no_adapter(config, body, per_block):
    found = linear_layers(build(config, transformers.AutoModelForSequenceClassification), ())
    blocks = 2
    assert all(name.startswith(body) for name in found)
    assert len(found) == blocks * per_block


def test_a_body_without_a_head_keeps_every_layer():
    assert len(linear_layers(build(transformers.LlamaConfig, transformers.AutoModel), ())) == 2 * 7


def test_a_language_model_loses_its_output_embeddings_alone():
    model = build(transformers.RobertaConfig, transformers.AutoModelForMaskedLM)
    found = linear_layers(model, ())
    assert "lm_head.dense" in found
    assert "lm_head.decoder" not in found
    assert len(found) == 2 * 6 + 1


@pytest.mark.parametrize(("trains", "left"), [((), "score.weight"), (("score",), None)])
def test_weights_that_nobody_has_and_nobody_trains_are_refused(trains, left):
    class Sorting(Task):
        name, model_kind = "sorting", ModelKind.CLASSIFICATION

    Sorting.trains = trains
    choice = choose_model("nano", None, Sorting(), None)
    if left is None:
        _, fresh = load_model(choice, Sorting(), None, "float32", torch.device("cpu"))
        assert fresh == ["score.weight"]
        return
    with pytest.raises(DataError, match=f"no weights for {left}, and task 'sorting' trains only adapters"):
        load_model(choice, Sorting(), None, "float32", torch.device("cpu"))


@pytest.mark.parametrize("trains", [("score",), ()])
def test_a_checkpoint_s_head_of_other_classes_is_drawn_anew_and_that_is_said(tmp_path, trains, caplog):
    """As of a model that was trained on MNLI's three, and is to learn RTE's two."""

    class Sorting(Task):
        name, model_kind = "sorting", ModelKind.CLASSIFICATION

    Sorting.trains = trains
    config = transformers.LlamaConfig(**SMALL, pad_token_id=0, num_labels=3)
    transformers.LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    choice = ModelChoice(str(tmp_path), "0")
    Sorting.model_arguments = lambda self, recipe: {"num_labels": 2}
    if not trains:
        with pytest.raises(DataError, match=r"no weights for score.weight, and task 'sorting' trains only adapters"):
            load_model(choice, Sorting(), None, "float32", torch.device("cpu"))
        return
    model, fresh = load_model(choice, Sorting(), None, "float32", torch.device("cpu"))
    assert fresh == ["score.weight"]
    assert model.score.weight.shape == (2, 32)
    said = (
        "score.weight has the shape (3, 32) in the checkpoint, and (2, 32) for task 'sorting': each trial draws its own"
    )
    assert said in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors", "pytorch_model.bin", "config.json", "generation_config.json", "tokenizer.json",
        "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "qwen.tiktoken", "chat_template.jinja",
    ],
)  # fmt: skip
def test_every_file_that_a_model_is_read_from_identifies_its_folder(tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(resolve("nano"), folder)

    def identity():
        return choose_model(str(folder), None, Task(), None).revision

    found = [identity()]
    for content in ("one", "two"):
        (folder / name).write_text(content)
        found.append(identity())
    assert len(set(found)) == 3
    (folder / "README.md").write_text("nobody computes with this")
    assert identity() == found[-1]


def test_a_linear_layer_that_computes_something_else_gets_no_adapter():
    class Router(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).softmax(-1)

    class Renamed(torch.nn.Linear):
        pass

    model = torch.nn.ModuleDict({"plain": torch.nn.Linear(3, 4), "router": Router(3, 4), "renamed": Renamed(3, 5)})
    assert linear_layers(model, ()) == {"plain": (3, 4), "renamed": (3, 5)}


EVIL = """
from pathlib import Path
from transformers import PretrainedConfig

Path({canary!r}).touch()


class EvilConfig(PretrainedConfig):
    model_type = "evil"
"""


@pytest.mark.parametrize("answer", ["y\n", "yes\n" * 100])
def test_a_model_folder_s_own_code_never_runs_whatever_standard_input_says(tmp_path, monkeypatch, answer):
    folder, canary = tmp_path / "model", tmp_path / "it ran"
    shutil.copytree(resolve("nano"), folder)
    (folder / "evil.py").write_text(EVIL.format(canary=str(canary)))
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.T", None]}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "evil", "auto_map": names}))
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    task, choice = Task(), ModelChoice(str(folder), "0")
    for load in (
        lambda: build_on_meta(choice, task, None),
        lambda: load_model(choice, task, None, "float32", torch.device("cpu")),
    ):
        with pytest.raises(DataError, match="contains custom code"):
            load()
    with suppress(DataError):  # this one takes the tokenizer's own file, and leaves the code alone
        load_tokenizer(choice, task, None)
    assert not canary.exists()


def test_weights_in_pickles_are_refused_before_they_are_loaded(tmp_path):
    folder, canary = tmp_path / "model", tmp_path / "it ran"
    shutil.copytree(resolve("nano"), folder)
    (folder / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    torch.save({"weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pickles \(\.bin\).*save_pretrained"):
        choose_model(str(folder), None, Task(), None)
    with pytest.raises((OSError, DataError)):
        load_model(ModelChoice(str(folder), "0"), Task(), None, "float32", torch.device("cpu"))
    assert not canary.exists()
