"""GLUE: sentence and sentence-pair classification (STS-B: regression), on any encoder or decoder.

Adapters on the query and value projections, as in MELoRA; the classification head trains whole, the same for every
method. GLUE's test labels are not public, so scores are on its validation split, and choices (learning rate, step) are
made on a slice of train that no trial trains on.

Source: Wang et al., "GLUE", arXiv:1804.07461; settings of the paper scale: Ren et al., "MELoRA", arXiv:2402.17263,
and its published scripts (RoBERTa-base: ``--model FacebookAI/roberta-base``).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from harness import (
    DataError,
    Evaluation,
    Example,
    Metric,
    ModelKind,
    Recipe,
    Source,
    Table,
    Task,
    TaskContext,
    TaskData,
    hookimpl,
    predict,
    pseudo_values,
    read_rows,
    setting,
    tokenised_once,
)
from harness_benchmarks import REVISION

SCRIPT = Path(__file__).parent.parent / "metrics" / "glue_official.py"
MOST_HELD_OUT = 2_000  # rows of train that choices are made on; a tenth of it, if that is less

HIDDEN_TEST = "GLUE's test labels are not public: the public validation split is scored, and never used for choices."
METRICS: Mapping[str, Metric] = {
    "accuracy": Metric("Accuracy", "fraction", True, "Share of right answers on the validation split."),
    "accuracy_mismatched": Metric("Accuracy, mismatched", "fraction", True, "On genres that were not trained on."),
    "f1": Metric("F1", "fraction", True, "Of class 1 (paraphrase), on the validation split."),
    "matthews": Metric("Matthews correlation", "correlation", True, "On the validation split, in -1..1."),
    "pearson": Metric("Pearson correlation", "correlation", True, "With the human scores of the validation split."),
    "spearman": Metric("Spearman correlation", "correlation", True, "Of ranks, on the validation split."),
    "squared_error": Metric("Squared error", "points²", False, "Mean on the scale 0..5 of the validation split."),
}


@dataclass(frozen=True, kw_only=True)
class GlueRecipe(Recipe):
    """A recipe that can stop short of whole tables."""

    train_rows: int | Literal["all"] = setting(
        "all", "most rows to train on, drawn at random", kind=int, formerly=0, minimum=1
    )
    test_rows: int | Literal["all"] = setting(
        "all", "most rows to score, the first ones", kind=int, formerly=0, minimum=1
    )


def _first(rows: Sequence[Any], count: int | Literal["all"]) -> Sequence[Any]:
    return rows if count == "all" else rows[:count]


class GlueTask(Task):
    """One GLUE task. Subclasses name the columns."""

    paper = "https://arxiv.org/abs/2402.17263"
    model_kind = ModelKind.CLASSIFICATION
    seeded_data = False
    columns: ClassVar[tuple[str, ...]] = ("sentence1", "sentence2")
    classes: ClassVar[int] = 2
    lowest: ClassVar[float] = 0.0  # score of a regression
    highest: ClassVar[float] = 5.0
    splits: ClassVar[tuple[str, ...]] = ("validation",)
    # Names in RoBERTa, BERT and DeBERTa, in decoders and BART, in DistilBERT and XLM, in T5; a model has some of them.
    targets = ("query", "value", "query_proj", "value_proj", "q_proj", "v_proj", "q_lin", "v_lin", "q", "v")
    trains = ("classifier", "pre_classifier", "score", "pooler", "classification_head", "sequence_summary")

    def tables(self, recipe: Any) -> Sequence[Table]:
        """Return the training table and those that are scored."""
        return [Table(self.source, split) for split in ("train", *self.splits)]

    def model_arguments(self, recipe: Any) -> Mapping[str, Any]:
        """Ask for a head with one output per class, without dropout: a head's dropout has no seed of its own."""
        return {"num_labels": self.classes, "classifier_dropout": 0.0, "pooler_dropout": 0.0}

    def check(self, context: TaskContext) -> None:
        """Refuse labels that the task has not, such as the -1 of GLUE's hidden test labels."""
        for split in ("train", *self.splits):
            for number, row in enumerate(read_rows(self.source, split, context.data_dir), 1):
                self._label(row, f"{self.source.folder}/{split}, row {number}")

    def _label(self, row: Mapping[str, Any], where: str) -> int | float:
        """Return a row's label as a number of the task's range.

        Raises:
            DataError: It is none.
        """
        label = row.get("label")
        if self.model_kind is ModelKind.REGRESSION:
            try:
                score = float(label)  # type: ignore[arg-type]
            except (TypeError, ValueError):
                score = math.nan
            if not self.lowest <= score <= self.highest:
                allowed = f"a number from {self.lowest:g} to {self.highest:g}"
                raise DataError(f"data: {where}: label {label!r} is not {allowed}; leave the row out, or correct it")
            return score
        if isinstance(label, bool) or str(label) not in map(str, range(self.classes)):
            hidden = " (GLUE's hidden test labels are -1: such a table cannot be scored)" if str(label) == "-1" else ""
            raise DataError(
                f"data: {where}: label {label!r} is none of 0 to {self.classes - 1}{hidden}; leave the row out, or "
                "correct it"
            )
        return int(label)  # type: ignore[arg-type]

    def load(self, context: TaskContext) -> TaskData:
        """Tokenise the tables, and hold a slice of train out."""
        recipe = context.recipe
        rows = read_rows(self.source, "train", context.data_dir)
        if len(rows) < 10:
            raise DataError(f"task {self.name!r}: {len(rows)} training rows are too few to hold a tenth out")
        order = list(range(len(rows)))
        random.Random("held out").shuffle(order)  # noqa: S311 - the same slice for every trial and scale
        count = min(MOST_HELD_OUT, len(rows) // 10)
        held_out, train = [rows[i] for i in order[:count]], [rows[i] for i in order[count:]]
        tests = {split: read_rows(self.source, split, context.data_dir) for split in self.splits}
        return TaskData(
            train=self._encode(_first(train, recipe.train_rows), context),
            splits={
                "validation": {"held_out": self._encode(_first(held_out, recipe.test_rows), context)},
                "test": {name: self._encode(_first(test, recipe.test_rows), context) for name, test in tests.items()},
            },
        )

    def validation_examples(self, split: Mapping[str, Sequence[Example]]) -> Sequence[Example]:
        """Return the rows held out of training."""
        return split["held_out"]

    @classmethod
    def recompute(cls, items: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
        """Return the official metrics of what was given and what is right, where records hold both."""
        what, kind = ("score", float) if cls.model_kind is ModelKind.REGRESSION else ("class", int)
        given, right = (np.asarray(items.get(f"{who}_{what}", ()), dtype=kind) for who in ("given", "right"))
        if not len(given) or len(given) != len(right):
            return {}
        scores = official(cls.name.rpartition("/")[2]).compute(predictions=given, references=right)
        return {name: float(value) for name, value in scores.items()}

    def evaluate(self, model: Any, context: TaskContext, split: Any) -> Evaluation:
        """Return the official metrics on each part of the split; the first part is the main one."""
        (main, *others) = split
        metrics: dict[str, float | None] = {}
        items: dict[str, list[float]] = {}
        chance: dict[str, float] = {}
        for part in (main, *others):
            outputs = predict(model, split[part], context.tokenizer.pad_token_id, context.recipe.batch_size)
            right = np.asarray([example.labels for example in split[part]])
            given = outputs[:, 0] if self.model_kind is ModelKind.REGRESSION else outputs.argmax(-1)
            suffix = "" if part == main else "_" + part.rpartition("_")[2]
            score = official(self.name.rpartition("/")[2]).compute
            scores = score(predictions=given, references=right)
            metrics |= {f"{name}{suffix}": float(value) for name, value in scores.items()}
            if self.model_kind is ModelKind.REGRESSION:
                items["pearson"] = pseudo_values(pearson, given, right, without_each=pearson_without_each)
                items["squared_error"] = ((given - right) ** 2).tolist()
                items |= {"given_score": given.astype(float).tolist(), "right_score": right.astype(float).tolist()}
                metrics["squared_error"] = float(((given - right) ** 2).mean())
                chance = dict.fromkeys(scores, 0.0)  # one score for all rows correlates with nothing
            else:
                constant = [score(predictions=np.full_like(right, each), references=right) for each in set(right)]
                chance |= {f"{name}{suffix}": max(float(each[name]) for each in constant) for name in scores}
                items[f"accuracy{suffix}"] = (given == right).astype(float).tolist()
                others_than_means = scores.keys() - {"accuracy"}
                if others_than_means:
                    items[f"given_class{suffix}"] = given.astype(float).tolist()
                    items[f"right_class{suffix}"] = right.astype(float).tolist()
                for name in others_than_means:
                    items[f"{name}{suffix}"] = pseudo_values(
                        lambda a, b, name=name, score=score: score(predictions=a, references=b)[name], given, right
                    )
        absent = [name for name in self.metrics if name not in metrics]
        return Evaluation(
            metrics=metrics | dict.fromkeys(absent),
            reasons=dict.fromkeys(absent, "choices are made on held-out training rows, all of the matched genres"),
            items=items,
            chance=chance,
        )

    def _encode(self, rows: Sequence[Mapping[str, Any]], context: TaskContext) -> Sequence[Example]:
        tokenizer, length = context.tokenizer, context.recipe.max_length
        texts = [[str(row[column]) for row in rows] for column in self.columns]
        labels: Any = [self._label(row, f"{self.source.folder}, row {place}") for place, row in enumerate(rows, 1)]
        content = [json.dumps(each) for each in zip(labels, *texts, strict=True)]
        return tokenised_once(content, [length], tokenizer, lambda: encode(tokenizer, texts, labels, length))


def encode(
    tokenizer: Any, texts: Sequence[Sequence[str]], labels: Sequence[int] | Sequence[float], length: int
) -> list[Example]:
    """Return texts or pairs of texts (one sequence per column) as examples of at most ``length`` tokens, int32.

    A tokenizer with a separator (an encoder's), or which ends every text itself (T5's), joins a pair its own way, and
    says which text each token is of where its model was pretrained with that. Any other gets a line break between the
    two. Of a pair that is too long, the longer text is cut.
    """
    ends_texts = tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
    if tokenizer.sep_token is not None or ends_texts:
        found = tokenizer(*texts, truncation=True, max_length=length)
        types = found.get("token_type_ids") or ()
        if not any(map(any, types)):  # single texts: what a model takes anyway
            types = [None] * len(labels)
        return [
            Example(_array(ids), label, None if kinds is None else _array(kinds))
            for ids, label, kinds in zip(found["input_ids"], labels, types, strict=True)
        ]
    start = tokenizer("")["input_ids"]
    columns = [tokenizer(list(column), add_special_tokens=False)["input_ids"] for column in texts]
    between = tokenizer("\n", add_special_tokens=False)["input_ids"] if len(columns) == 2 else []
    room = length - len(start) - len(between)
    results = []
    for label, first, *rest in zip(labels, *columns, strict=True):
        second = rest[0] if rest else []
        second = second[: max(room // 2, room - len(first))]
        results.append(Example(_array([*start, *first[: room - len(second)], *between, *second]), label))
    return results


def _array(numbers: Sequence[int]) -> Any:
    return np.asarray(numbers, dtype=np.int32)


def pearson(given: Any, right: Any) -> float:
    """Return Pearson's correlation."""
    return float(np.corrcoef(given, right)[0, 1])


def pearson_without_each(given: Any, right: Any) -> Any:
    """Return Pearson's correlation of all items but one, for each that is left out, (n,).

    Without item i, a sum of products of deviations is less by n / (n - 1) of that item's.
    """
    x, y = (each - each.mean() for each in (given.astype(float), right.astype(float)))
    share = len(x) / (len(x) - 1)
    xx, yy, xy = (a @ b - share * a * b for a, b in ((x, x), (y, y), (x, y)))
    return xy / np.sqrt(xx * yy)


@cache
def official(task: str) -> Any:
    """Return GLUE's metrics of a task as an ``evaluate`` module, loaded from this distribution."""
    import evaluate

    return evaluate.load(str(SCRIPT), task, keep_in_memory=True)


def melora_recipes(epochs: float, batch_size: int = 128, learning_rate: float = 4e-4, max_length: int = 256) -> Any:
    """Return a task's recipes; the arguments are those of MELoRA's scripts for RoBERTa-base."""
    return {
        # Seconds show that everything runs, no more: a byte-level model of a million parameters stays near chance.
        "smoke": GlueRecipe(
            steps=40, batch_size=16, max_length=128, learning_rate=3e-3, warmup_fraction=0.06,
            train_rows=640, test_rows=200,
        ),
        "small": GlueRecipe(
            steps=1_000, batch_size=32, max_length=256, learning_rate=5e-4, warmup_fraction=0.06, weight_decay=0.1,
            evaluate_at=(250, 500, 750),
        ),
        "paper": GlueRecipe(
            epochs=epochs, batch_size=batch_size, max_length=max_length, learning_rate=learning_rate,
            warmup_fraction=0.06, weight_decay=0.1,
        ),
    }  # fmt: skip


def glue_source(config: str, licence: str, note: str = "") -> Source:
    """Return where a GLUE table is."""
    return Source(
        hub_id="nyu-mll/glue", config=config, revision="bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c", licence=licence,
        folder=f"glue/{config}", note=" ".join(filter(None, (HIDDEN_TEST, note, REVISION))),
    )  # fmt: skip


def chosen(*names: str) -> Mapping[str, Metric]:
    """Return the metrics of these names."""
    return {name: METRICS[name] for name in names}


class Cola(GlueTask):
    """Is the sentence acceptable English?"""

    name, title, columns = "glue/cola", "GLUE CoLA", ("sentence",)
    source = glue_source("cola", "published sentences, research use")
    main_metric, metrics = "matthews", chosen("matthews", "accuracy")
    recipes = melora_recipes(epochs=8, batch_size=64)


class Sst2(GlueTask):
    """Is the film review positive?"""

    name, title, columns = "glue/sst2", "GLUE SST-2", ("sentence",)
    source = glue_source("sst2", "none stated")
    main_metric, metrics = "accuracy", chosen("accuracy")
    recipes = melora_recipes(epochs=60, learning_rate=5e-4)


class Mrpc(GlueTask):
    """Do the sentences say the same?"""

    name, title = "glue/mrpc", "GLUE MRPC"
    source = glue_source("mrpc", "Microsoft Research, research use")
    main_metric, metrics = "accuracy", chosen("accuracy", "f1")
    recipes = melora_recipes(epochs=30)


class Stsb(GlueTask):
    """How similar are the sentences, from 0 to 5?"""

    name, title, model_kind, classes = "glue/stsb", "GLUE STS-B", ModelKind.REGRESSION, 1
    source = glue_source("stsb", "CC BY-SA 4.0 and others, by origin")
    main_metric, metrics = "pearson", chosen("pearson", "spearman", "squared_error")
    recipes = melora_recipes(epochs=40)


class Qqp(GlueTask):
    """Do the questions ask the same?"""

    name, title, columns = "glue/qqp", "GLUE QQP", ("question1", "question2")
    source = glue_source("qqp", "Quora, non-commercial")
    main_metric, metrics = "accuracy", chosen("accuracy", "f1")
    recipes = melora_recipes(epochs=25)


class Mnli(GlueTask):
    """Does the premise entail the hypothesis, contradict it, or neither?"""

    name, title, columns, classes = "glue/mnli", "GLUE MNLI", ("premise", "hypothesis"), 3
    splits = ("validation_matched", "validation_mismatched")
    source = glue_source("mnli", "OANC and others, by genre", "The mismatched genres are scored apart.")
    main_metric, metrics = "accuracy", chosen("accuracy", "accuracy_mismatched")
    recipes = melora_recipes(epochs=30, learning_rate=5e-4)


class Qnli(GlueTask):
    """Does the sentence answer the question?"""

    name, title, columns = "glue/qnli", "GLUE QNLI", ("question", "sentence")
    source = glue_source("qnli", "CC BY-SA 4.0 (from SQuAD)")
    main_metric, metrics = "accuracy", chosen("accuracy")
    recipes = melora_recipes(epochs=25)


class Rte(GlueTask):
    """Does the first sentence entail the second?"""

    name, title = "glue/rte", "GLUE RTE"
    source = glue_source("rte", "research use")
    main_metric, metrics = "accuracy", chosen("accuracy")
    recipes = melora_recipes(epochs=80, max_length=512)


@hookimpl
def harness_register_tasks() -> list[type[Task]]:
    """Register the eight tasks that GLUE averages over, less WNLI, as the papers do."""
    return [Cola, Sst2, Mrpc, Stsb, Qqp, Mnli, Qnli, Rte]
