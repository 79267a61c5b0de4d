"""C4 pretraining: packing, the shuffled and resumable stream, shapes, perplexity and singular values."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from itertools import islice

import pytest
import torch
import transformers

from harness import ConfigError, DataError, Example, Source, TaskContext
from harness.bases import resolve
from harness.data.tables import identify_tables
from harness.engine.layers import set_submodule, trained_modules
from harness.engine.slots import LinearSlot
from harness_benchmarks.corpus import (
    Corpus,
    Documents,
    WindowCache,
    Windows,
    is_held_out,
    read_texts,
    validation_windows,
)
from harness_benchmarks.tasks import c4

torch.set_num_threads(1)
TEXTS = [f"document number {i}" for i in range(300)]
KEPT = [text for text in TEXTS if not is_held_out(text)]


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(resolve("nano"))


@pytest.fixture
def files(tmp_path):
    """Return three C4-format files, gzipped and not."""
    paths = []
    for number in range(3):
        lines = "".join(json.dumps({"text": text, "url": "-"}) + "\n" for text in TEXTS[number::3]).encode()
        path = tmp_path / f"train-{number:05d}-of-00003.jsonl{'.gz' if number else ''}"
        path.write_bytes(gzip.compress(lines) if number else lines)
        paths.append(str(path))
    return paths


@pytest.fixture
def data_dir(tmp_path):
    folder = tmp_path / "data/text/c4"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        lines = "".join(json.dumps({"text": f"{split} {text}"}) + "\n" for text in TEXTS)
        (folder / f"{split}.jsonl").write_text(lines)
    return tmp_path / "data"


def context(tokenizer, data_dir, **changes):
    recipe = replace(c4.C4Task.recipes["smoke"], **{"max_length": 32, "validation_windows": 4, **changes})
    return TaskContext(tokenizer=tokenizer, recipe=recipe, seed=0, data_dir=data_dir)


def test_an_epoch_has_every_kept_document_once_in_an_order_of_its_own(files):
    documents = Documents(files, seed=0, buffer=20)
    epochs = [list(islice(documents, len(KEPT))) for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [sorted(KEPT)] * 2
    assert epochs[0] != epochs[1]
    assert epochs[0] != KEPT
    again = list(islice(Documents(files, seed=0, buffer=20), len(KEPT)))
    assert again == epochs[0]
    assert list(islice(Documents(files, seed=1, buffer=20), len(KEPT))) != epochs[0]


@pytest.mark.parametrize("read", [0, 1, 57, 250, len(KEPT), 2 * len(KEPT) + 3])
def test_the_stream_resumes_where_it_stopped(files, read):
    whole = list(islice(Documents(files, seed=3, buffer=20), read + 400))
    stopped = Documents(files, seed=3, buffer=20)
    assert list(islice(stopped, read)) == whole[:read]
    state = json.loads(json.dumps(stopped.state()))
    assert list(islice(Documents(files, seed=3, buffer=20, state=state), 400)) == whole[read:]


def test_windows_resume_in_the_middle_of_a_document(files, tokenizer):
    def fresh():
        return Windows(Documents(files, seed=3, buffer=20), tokenizer, 16)

    whole = list(islice(fresh(), 100))
    stopped = fresh()
    assert list(islice(stopped, 37)) == whole[:37]
    state = json.loads(json.dumps(stopped.state()))
    assert list(islice(Windows.resume(state, files, 3, tokenizer, 16, buffer=20), 63)) == whole[37:]


def test_packing_joins_documents_by_the_end_of_text_and_drops_the_rest(tokenizer):
    # With a byte-level tokenizer: a b EOS c | d e EOS f | g EOS
    windows = list(Windows(iter(["ab", "cde", "fg"]), tokenizer, 4))
    end = tokenizer.eos_token_id
    assert windows == [[97, 98, end, 99], [100, 101, end, 102]]


def test_every_reader_of_a_cache_sees_the_same_windows_and_each_is_made_once(files, tokenizer):
    expected = list(islice(Windows(Documents(files, seed=0), tokenizer, 16), 30))
    source = Windows(Documents(files, seed=0), tokenizer, 16)
    cache = WindowCache(source, 16)
    first, second = iter(cache), iter(cache)
    read = [next(first) for _ in range(10)]
    assert [list(e.input_ids) for e in islice(second, 30)] == expected
    read += islice(first, 20)
    assert [list(e.input_ids) for e in read] == expected
    assert all(e.labels == e.input_ids for e in read)
    assert next(source) == next(islice(Windows(Documents(files, seed=0), tokenizer, 16), 30, None))


def test_held_out_documents_are_validation_and_never_trained_on(tokenizer, data_dir):
    data = c4.C4Task().load(context(tokenizer, data_dir, validation_windows=1_000))
    trained = "".join(tokenizer.decode(e.input_ids) for e in islice(data.train, 1_000))
    held_out = "".join(tokenizer.decode(e.input_ids) for e in data.splits["validation"])
    test = "".join(tokenizer.decode(e.input_ids) for e in data.splits["test"])
    out = [f"train {text}" for text in TEXTS if is_held_out(f"train {text}")]
    assert out
    assert all(f"{text}{tokenizer.eos_token}" not in trained for text in out)
    assert held_out.startswith(out[0])
    assert "validation" not in trained + held_out
    assert test.startswith("validation document number 0")


def test_original_c4_file_names_are_found_and_absent_ones_named(tmp_path):
    corpus = Corpus(Source(hub_id="allenai/c4", folder="c4"))
    (tmp_path / "c4").mkdir()
    name = "c4-train.00001-of-01024.json.gz"
    (tmp_path / "c4" / name).write_bytes(gzip.compress(b'{"text": "x"}\n'))
    assert corpus.files("train", tmp_path) == [str(tmp_path / "c4" / name)]
    with pytest.raises(DataError, match=r"c4/validation\.jsonl.*allenai/c4"):
        corpus.files("validation", tmp_path)


def test_the_hub_files_are_those_of_the_pinned_revision():
    train, validation = (c4.CORPUS.files(split, None) for split in ("train", "validation"))
    root = "hf://datasets/allenai/c4@1588ec454efa1a09f29cd18ddd04fe05fc8653a2/en/"
    assert (train[0], len(train)) == (root + "c4-train.00000-of-01024.json.gz", 1_024)
    assert (validation[-1], len(validation)) == (root + "c4-validation.00007-of-00008.json.gz", 8)


def test_a_hub_file_is_fetched_at_the_pinned_revision(monkeypatch, files):
    asked = []

    def fetch(repository, name, **rest):
        asked.append((repository, name, rest))
        return files[1]

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    assert list(read_texts("hf://datasets/allenai/c4@abc/en/x.json.gz")) == TEXTS[1::3]
    assert asked == [("allenai/c4", "en/x.json.gz", {"repo_type": "dataset", "revision": "abc"})]


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "good"}\n{"txt": "bad"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl, line 2.*'text'"):
        list(read_texts(str(tmp_path / "train.jsonl")))


def test_the_identity_follows_the_content(data_dir):
    task, recipe = c4.C4Task(), c4.C4Task.recipes["smoke"]
    before = identify_tables(task.tables(recipe), data_dir)
    path = data_dir / "text/c4/train.jsonl"
    path.write_text(path.read_text() + '{"text": "one more"}\n')
    assert identify_tables(task.tables(recipe), data_dir) != before


def test_too_little_text_is_an_error(tokenizer, files):
    with pytest.raises(DataError, match="shorter than one window of 1000000 tokens"):
        validation_windows(files, tokenizer, 1_000_000, 4)


@pytest.mark.parametrize(
    ("size", "millions"), [("9m", 9), ("35m", 35), ("60m", 60), ("130m", 130), ("250m", 250), ("1.3b", 1_300)]
)
def test_shapes_have_the_parameters_that_their_names_say(size, millions):
    task = c4.at_size(size)()
    recipe = task.recipes["paper"]
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(task.model_config(recipe))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=0.04)
    kinds = {name.rpartition(".")[2] for name in trained_modules(model, task.trains)}
    assert kinds == {"embed_tokens", "lm_head", "norm", "input_layernorm", "post_attention_layernorm"}


def test_a_sized_task_refuses_another_size():
    recipe = replace(c4.C4Task.recipes["smoke"], size="60m")
    with pytest.raises(ConfigError, match=r"'c4/9m' has size '9m', not '60m'"):
        c4.at_size("9m")().model_config(recipe)


def test_a_tokenizer_that_does_not_fit_the_vocabulary_is_refused(tokenizer, data_dir):
    with pytest.raises(ConfigError, match=r"vocabulary=300, but the tokenizer .* has 259"):
        c4.C4Task().load(context(tokenizer, data_dir, vocabulary=300))


def test_perplexity_equals_a_plain_loop(tokenizer, data_dir):
    one = context(tokenizer, data_dir)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(c4.C4Task().model_config(one.recipe)).eval()
    windows = c4.C4Task().load(one).splits["test"]
    with torch.no_grad():
        found = c4.C4Task().evaluate(model, one, windows)
        losses = []
        for window in windows:
            ids = torch.tensor([window.input_ids])
            losses.append(model(input_ids=ids, labels=ids).loss)
    loss = torch.stack(losses).mean()
    assert found.metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert found.metrics["perplexity"] == pytest.approx(loss.exp().item(), rel=1e-5)
    assert found.items["loss"] == pytest.approx([each.item() for each in losses], rel=1e-5)
    assert found.metrics["large_singular_values"] is None  # no adapter
    assert set(found.metrics) == set(c4.C4Task.metrics)
    assert set(found.reasons) == {name for name, value in found.metrics.items() if value is None}


class Delta:
    """An adapter of a known weight change, as the engine puts it into a slot."""

    def __init__(self, weight):
        self.weight, self.modules = weight, [self]

    def delta_weight(self):
        return self.weight

    def __call__(self, x, base_output):
        return base_output + x @ self.weight.T


def test_singular_values_of_the_weight_change_are_counted_per_projection(tokenizer, data_dir):
    one = context(tokenizer, data_dir)
    model = transformers.LlamaForCausalLM(c4.C4Task().model_config(one.recipe)).eval()
    sizes = {"model.layers.0.self_attn.q_proj": [5.0, 0.2, 0.05], "model.layers.3.self_attn.q_proj": [0.101, 0.099],
             "model.layers.0.mlp.down_proj": [1.0, 1.0, 1.0, 1.0]}  # fmt: skip
    for name, values in sizes.items():
        slot = LinearSlot(model.get_submodule(name))
        set_submodule(model, name, slot)
        out_features, in_features = slot.linear[0].weight.shape
        left, right = (torch.linalg.qr(torch.randn(n, len(values)))[0] for n in (out_features, in_features))
        slot.parts = ((Delta(left @ torch.diag(torch.tensor(values)) @ right.T), 1),)
    with torch.no_grad():
        found = c4.C4Task().evaluate(model, one, [Example([1, 2, 3], [1, 2, 3])])
    assert found.metrics["large_singular_values_q_proj"] == (2 + 1) / 2
    assert found.metrics["large_singular_values_down_proj"] == 4
    assert found.metrics["large_singular_values"] == pytest.approx((2 + 1 + 4) / 3)
    assert found.metrics["large_singular_values_up_proj"] is None
