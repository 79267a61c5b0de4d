"""GLUE: official metrics against scikit-learn and SciPy, splits that do not mix, any architecture."""

from __future__ import annotations

import copy
import json
import socket
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import transformers
from tokenizers.processors import TemplateProcessing

from harness import DataError, Example, ModelKind, TaskContext
from harness.bases import resolve
from harness.data.tables import identify_tables
from harness.engine.layers import linear_layers, select_layers, trained_modules
from harness.engine.shared import Shared
from harness.planning.plan import plan_cells
from harness.planning.registry import build_registry
from harness.planning.search import pending
from harness.planning.suite import build_suite
from harness.results.store import Store
from harness.running.recording import Recording
from harness.running.worker import Worker
from harness_benchmarks.tasks import glue

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(resolve("nano"))


def context(tokenizer, task, data_dir, **changes):
    return TaskContext(tokenizer=tokenizer, recipe=replace(task.recipes["smoke"], **changes), seed=0, data_dir=data_dir)


def write(folder, split, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def mrpc_rows(count, name):
    return [{"sentence1": f"{name} {i}", "sentence2": "x" * (i % 7), "label": i % 2, "idx": i} for i in range(count)]


@pytest.mark.parametrize("task", ["cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte"])
def test_classification_metrics_equal_scikit_learns(task):
    draw = np.random.default_rng(0)
    given, right = draw.integers(0, 2, 200), draw.integers(0, 2, 200)
    given[:60] = right[:60]
    found = glue.official(task).compute(predictions=given, references=right)
    expected = {"accuracy": sklearn.metrics.accuracy_score(right, given)}
    if task == "cola":
        expected["matthews"] = sklearn.metrics.matthews_corrcoef(right, given)
    if task in ("mrpc", "qqp"):
        expected["f1"] = sklearn.metrics.f1_score(right, given)
    assert found == pytest.approx(expected)


def test_regression_metrics_equal_scipys_with_tied_scores():
    draw = np.random.default_rng(1)
    right = draw.integers(0, 6, 150).astype(float)
    given = np.round(right + draw.normal(0, 1.5, 150), 1)
    found = glue.official("stsb").compute(predictions=given, references=right)
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(given, right).statistic)
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(given, right).statistic)


def test_a_constant_prediction_has_no_correlation_and_no_f1():
    assert glue.official("cola").compute(predictions=[1, 1, 1], references=[1, 0, 1])["matthews"] == 0.0
    assert glue.official("mrpc").compute(predictions=[0, 0], references=[0, 0])["f1"] == 0.0
    assert glue.official("stsb").compute(predictions=[2.0, 2.0], references=[1.0, 3.0])["pearson"] == 0.0


def test_the_metric_module_loads_without_a_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the metric asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    glue.official.cache_clear()
    assert glue.official("rte").compute(predictions=[1, 0], references=[1, 1]) == {"accuracy": 0.5}


def test_train_held_out_and_test_rows_never_mix(tokenizer, tmp_path):
    write(tmp_path / "glue/mrpc", "train", mrpc_rows(60, "train"))
    write(tmp_path / "glue/mrpc", "validation", mrpc_rows(9, "validation"))
    data = glue.Mrpc().load(context(tokenizer, glue.Mrpc, tmp_path, train_rows=0))

    def texts(examples):
        return {tokenizer.decode(example.input_ids).partition("\n")[0] for example in examples}

    train, held_out = texts(data.train), texts(data.splits["validation"]["held_out"])
    assert len(held_out) == 6
    assert train | held_out == {f"train {i}" for i in range(60)}
    assert not train & held_out
    assert texts(data.splits["test"]["validation"]) == {f"validation {i}" for i in range(9)}


def test_the_held_out_slice_is_the_same_for_every_seed(tokenizer, tmp_path):
    write(tmp_path / "glue/mrpc", "train", mrpc_rows(60, "train"))
    write(tmp_path / "glue/mrpc", "validation", mrpc_rows(9, "validation"))
    one = context(tokenizer, glue.Mrpc, tmp_path)
    first, second = (glue.Mrpc().load(replace(one, seed=seed)).splits["validation"]["held_out"] for seed in (0, 5))
    assert [list(e.input_ids) for e in first] == [list(e.input_ids) for e in second]


def test_missing_rows_name_the_file_and_the_hub_id(tmp_path):
    write(tmp_path / "glue/mnli", "validation_matched", [])
    with pytest.raises(DataError, match=r"glue/mnli/train\.jsonl.*nyu-mll/glue"):
        identify_tables(glue.Mnli().tables(glue.Mnli.recipes["smoke"]), tmp_path)


def test_of_a_long_pair_the_longer_text_is_cut(tokenizer):
    both, short = glue.encode(tokenizer, [["a" * 50, "ab"], ["b" * 50, "b" * 50]], [0, 1], 21)
    assert tokenizer.decode(both.input_ids) == "a" * 10 + "\n" + "b" * 10
    assert tokenizer.decode(short.input_ids) == "ab\n" + "b" * 18
    assert (both.labels, short.labels) == (0, 1)


def test_where_the_tokenizer_ends_every_text_it_is_ended_also_when_it_is_cut(tokenizer):
    """As T5's does, whose model looks for the end; its output is that of transformers."""
    ending = copy.deepcopy(tokenizer)
    ending.padding_side = "right"  # T5's; its decoder has no mask
    end = (ending.eos_token, ending.eos_token_id)
    ending.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end[0]}", pair=f"$A {end[0]} $B:0 {end[0]}:0", special_tokens=[end]
    )
    texts = ["a", "abc", "a" * 50]
    alone = glue.encode(ending, [texts], [0, 1, 0], 21)
    pairs = glue.encode(ending, [texts, texts[::-1]], [0, 1, 0], 21)
    for examples, ends in ((alone, 1), (pairs, 2)):
        assert [list(each.input_ids).count(end[1]) for each in examples] == [ends] * 3
        assert {int(each.input_ids[-1]) for each in examples} == {end[1]}
        assert max(len(each.input_ids) for each in examples) == 21
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0,
        pad_token_id=ending.pad_token_id, eos_token_id=end[1],
    )  # fmt: skip
    model = transformers.T5ForSequenceClassification(config).eval()
    for given, examples in (([texts], alone), ([texts, texts[::-1]], pairs)):
        inputs = ending(*given, padding=True, truncation=True, max_length=21, return_tensors="pt")
        with torch.no_grad():
            expected = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        found = glue.predict(model, examples, ending.pad_token_id, batch_size=2)
        assert found == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_token_that_begins_and_could_end_a_text_begins_it(tokenizer):
    """OPT's one special token."""
    beginning = copy.deepcopy(tokenizer)
    end = (beginning.eos_token, beginning.eos_token_id)
    beginning.backend_tokenizer.post_processor = TemplateProcessing(single=f"{end[0]} $A", special_tokens=[end])
    (example,) = glue.encode(beginning, [["ab"]], [0], 21)
    assert list(example.input_ids) == beginning("ab")["input_ids"]
    assert example.input_ids[0] == end[1]


class FirstToken(torch.nn.Module):
    """Answers class 1 where the first token is odd; the score is that token over 100."""

    def __init__(self, outputs=2):
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(()))
        self.outputs = outputs

    def forward(self, input_ids, attention_mask):
        assert bool((attention_mask[:, 0] == 1).all())
        first = input_ids[:, 0].float()
        one = (first % 2)[:, None]
        return SimpleNamespace(logits=torch.cat([1 - one, one], 1) if self.outputs == 2 else first[:, None] / 100)


def test_evaluation_scores_each_item_in_the_datas_order(tokenizer):
    examples = [Example([1, 5, 6], 1), Example([2], 1), Example([4, 4], 0), Example([3, 1, 1, 1], 1)]
    found = glue.Mrpc().evaluate(
        FirstToken(), context(tokenizer, glue.Mrpc, None, batch_size=2), {"validation": examples}
    )
    assert found.items["accuracy"] == [1.0, 0.0, 1.0, 1.0]
    assert sum(found.items["f1"]) / 4 == pytest.approx(0.8)  # what each item adds to a score of the whole set
    assert found.metrics == pytest.approx({"accuracy": 0.75, "f1": 0.8})  # 2 of 2 found right, 2 of 3 found
    assert found.chance == pytest.approx({"accuracy": 0.75, "f1": 6 / 7})  # always class 1: 3 of 4, all of 3 found


def test_sts_b_predicts_a_number(tokenizer):
    examples = [Example([100], 1.0), Example([200], 2.5), Example([50], 0.0)]
    found = glue.Stsb().evaluate(FirstToken(1), context(tokenizer, glue.Stsb, None), {"validation": examples})
    assert found.items["squared_error"] == pytest.approx([0.0, 0.25, 0.25])
    assert found.metrics["pearson"] == pytest.approx(scipy.stats.pearsonr([1, 2, 0.5], [1, 2.5, 0]).statistic)
    assert set(found.metrics) == set(glue.Stsb.metrics)
    assert found.chance == {"pearson": 0.0, "spearman": 0.0}


@pytest.mark.parametrize("task", [glue.Cola, glue.Mrpc, glue.Qqp, glue.Stsb])
def test_what_is_no_mean_of_items_is_recomputed_from_what_was_given_and_what_is_right(task, tokenizer):
    numbers = task.model_kind is ModelKind.REGRESSION
    draw = np.random.default_rng(0)
    right = draw.uniform(0, 5, 20) if numbers else draw.integers(2, size=20)
    examples = [Example([int(draw.integers(1, 500))], each.item()) for each in right]
    found = task().evaluate(FirstToken(1 if numbers else 2), context(tokenizer, task, None), {"validation": examples})
    again = task.recompute(found.items)
    main = task.main_metric
    assert again[main] == pytest.approx(found.metrics[main], rel=1e-12)
    assert again[main] != 0
    kept = "given_score" if numbers else "given_class"
    changed = {**found.items, kept: found.items[kept][::-1]}
    assert task.recompute(changed)[main] != pytest.approx(found.metrics[main])
    assert task.recompute({"accuracy": found.items.get("accuracy", [])}) == {}, "records from before hold neither"


def test_mnli_scores_both_kinds_of_genres_apart(tokenizer):
    right, wrong = Example([1, 1], 1), Example([2, 2], 1)
    split = {"validation_matched": [right, wrong], "validation_mismatched": [right]}
    found = glue.Mnli().evaluate(FirstToken(), context(tokenizer, glue.Mnli, None), split)
    assert found.metrics == {"accuracy": 0.5, "accuracy_mismatched": 1.0}
    assert found.chance == {"accuracy": 1.0, "accuracy_mismatched": 1.0}
    found = glue.Mnli().evaluate(FirstToken(), context(tokenizer, glue.Mnli, None), {"held_out": [right]})
    assert found.metrics == {"accuracy": 1.0, "accuracy_mismatched": None}
    assert "matched genres" in found.reasons["accuracy_mismatched"]


SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=300)


@pytest.mark.parametrize(
    ("kind", "adapted", "trained"),
    [
        (transformers.RobertaConfig, ["query", "value"], ["classifier"]),
        (transformers.BertConfig, ["query", "value"], ["bert.pooler", "classifier"]),
        (transformers.DebertaV2Config, ["query_proj", "value_proj"], ["pooler", "classifier"]),
        (transformers.LlamaConfig, ["q_proj", "v_proj"], ["score"]),
        (transformers.DistilBertConfig, ["q_lin", "v_lin"], ["pre_classifier", "classifier"]),
        (transformers.XLMConfig, ["q_lin", "v_lin"], ["sequence_summary"]),
    ],
    ids=lambda each: getattr(each, "model_type", ""),
)
def test_query_value_and_head_are_found_in_every_architecture(kind, adapted, trained):
    config = kind(**SMALL, **glue.Mrpc().model_arguments(None))
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    chosen = select_layers(linear_layers(model, glue.Mrpc.trains), glue.Mrpc.targets)
    assert sorted({name.rpartition(".")[2] for name in chosen}) == adapted
    assert len(chosen) == 2 * SMALL["num_hidden_layers"]
    whole = trained_modules(model, glue.Mrpc.trains)
    assert whole == trained


@pytest.mark.parametrize("kind", [transformers.BartConfig, transformers.T5Config, transformers.MT5Config])
def test_both_halves_of_an_encoder_decoder_are_adapted_and_its_head_trains(kind):
    config = kind(**SMALL, decoder_layers=2, num_decoder_layers=2, decoder_start_token_id=0)
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    chosen = select_layers(linear_layers(model, glue.Mrpc.trains), glue.Mrpc.targets)
    assert len(chosen) == 2 * (2 + 2 * 2)  # of the encoder's attention, and of the decoder's two
    assert trained_modules(model, glue.Mrpc.trains) == ["classification_head"]


@pytest.fixture(scope="module", params=["bert", "roberta"])
def encoder(request, encoders, tmp_path_factory):
    """A folder with a small encoder that has a head, its tokenizer, and the model as transformers loads it."""
    folder = tmp_path_factory.mktemp("headed")
    torch.manual_seed(1)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(encoders[request.param]).eval()
    for name, parameter in model.named_parameters():
        if name.startswith("classifier"):
            torch.nn.init.normal_(parameter)  # its usual scale would hide what the encoder says
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoders[request.param])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return SimpleNamespace(name=request.param, folder=folder, model=model, tokenizer=tokenizer)


def pairs_of(tables, split):
    lines = (tables / f"glue/mrpc/{split}.jsonl").read_text().splitlines()
    return [(row["sentence1"], row["sentence2"], row["label"]) for row in map(json.loads, lines)]


def plain(encoder, pairs, **changes):
    """Return what the model of transformers makes of its tokenizer's own output."""
    first, second, labels = zip(*pairs, strict=True)
    inputs = encoder.tokenizer(list(first), list(second), padding=True, return_tensors="pt")
    with torch.no_grad():
        return encoder.model(**{**inputs, "labels": torch.tensor(labels), **changes})


def test_an_encoder_is_told_which_text_a_token_is_of_if_it_was_pretrained_so(encoder, tables):
    data = glue.Mrpc().load(context(encoder.tokenizer, glue.Mrpc, tables))
    pairs = pairs_of(tables, "validation")
    examples = data.splits["test"]["validation"]
    for example, (first, second, _) in zip(examples, pairs, strict=True):
        assert list(example.input_ids) == encoder.tokenizer(first, second)["input_ids"]
        if encoder.name == "bert":
            first_tokens = len(encoder.tokenizer(first)["input_ids"])
            assert list(example.token_type_ids) == [int(place >= first_tokens) for place in range(len(example[0]))]
    all_examples = [*data.train, *data.splits["validation"]["held_out"], *examples]
    assert {example.token_type_ids is None for example in all_examples} == {encoder.name == "roberta"}
    alone = glue.Cola().load(context(encoder.tokenizer, glue.Cola, tables))
    assert all(example.token_type_ids is None for example in alone.train)  # zeros, which a model takes anyway


def test_predictions_on_pairs_are_those_of_transformers(encoder, tables):
    examples = glue.Mrpc().load(context(encoder.tokenizer, glue.Mrpc, tables)).splits["test"]["validation"]
    pairs = pairs_of(tables, "validation")
    with torch.no_grad():
        found = glue.predict(encoder.model, examples, encoder.tokenizer.pad_token_id, batch_size=4)
        untyped = [example._replace(token_type_ids=None) for example in examples]
        without = glue.predict(encoder.model, untyped, encoder.tokenizer.pad_token_id, batch_size=4)
    assert found == pytest.approx(plain(encoder, pairs).logits.numpy(), abs=1e-5)
    assert np.allclose(found, without, atol=1e-3) is (encoder.name == "roberta")


def test_the_training_loss_on_pairs_is_that_of_transformers(encoder, tables, tmp_path):
    registry, events = build_registry(block=["trackers:mlflow"]), []
    recipe = {"steps": 1, "batch_size": 36, "train_rows": 0}  # all but the tenth held out, so their order is no matter
    suite = {"tasks": ["glue/mrpc"], "methods": ["lora"], "model": str(encoder.folder), "recipe": recipe}
    trials = pending(plan_cells(build_suite(suite), registry, tables, "float32"), lambda trial: None)
    Worker(registry, Shared(torch.device("cpu"), tables), Recording(Store(str(tmp_path)), {}), events.append).run(
        trials, 1
    )
    (record,) = (event["record"] for event in events if event["event"] == "record")
    train = glue.Mrpc().load(context(encoder.tokenizer, glue.Mrpc, tables, train_rows=0)).train
    trained = {tuple(example.input_ids) for example in train}
    pairs = [each for each in pairs_of(tables, "train") if tuple(encoder.tokenizer(*each[:2])["input_ids"]) in trained]
    assert len(pairs) == len(train) == 36
    # LoRA starts as no change at all, so the first loss is the plain model's.
    expected = float(plain(encoder, pairs).loss)
    assert record["history"][0]["metrics"]["train/loss"] == pytest.approx(expected, rel=1e-5)
    zeros = torch.zeros(36, max(map(len, trained)), dtype=torch.long)
    untyped = float(plain(encoder, pairs, token_type_ids=zeros).loss)
    assert (untyped == pytest.approx(expected, rel=1e-2)) is (encoder.name == "roberta")


@pytest.mark.parametrize(
    ("kind", "label", "message"),
    [
        (glue.Cola, -1, r"glue/cola/validation, row 3: label -1 is none of 0 to 1 \(GLUE's hidden test labels are -1"),
        (glue.Cola, 2, r"row 3: label 2 is none of 0 to 1"),
        (glue.Cola, 0.5, r"label 0\.5 is none"),
        (glue.Cola, None, r"label None is none"),
        (glue.Cola, True, r"label True is none"),
        (glue.Stsb, 5.5, r"label 5\.5 is not a number from 0 to 5"),
        (glue.Stsb, "high", r"label 'high' is not a number"),
        (glue.Stsb, None, r"label None is not a number"),
    ],
)
def test_a_label_that_the_task_has_not_is_refused(tmp_path, kind, label, message):
    columns = dict.fromkeys(kind.columns if kind is glue.Stsb else ("sentence",), "text")
    folder = tmp_path / kind.source.folder
    folder.mkdir(parents=True)
    good = [json.dumps({**columns, "label": 1})] * 20
    (folder / "train.jsonl").write_text("\n".join(good))
    (folder / "validation.jsonl").write_text("\n".join([*good[:2], json.dumps({**columns, "label": label})]))
    with pytest.raises(DataError, match=message):
        kind().check(TaskContext(tokenizer=None, recipe=kind.recipes["smoke"], seed=0, data_dir=tmp_path))


def test_pearson_without_each_item_is_that_of_the_others():
    given, right = np.random.default_rng(0).standard_normal((2, 30))
    given, right = (given + right).astype(np.float32), np.float32(5) + right.astype(np.float32)
    expected = [glue.pearson(np.delete(given, place), np.delete(right, place)) for place in range(30)]
    assert glue.pearson_without_each(given, right) == pytest.approx(expected, abs=1e-12)
