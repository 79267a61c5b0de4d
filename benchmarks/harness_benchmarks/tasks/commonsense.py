"""Commonsense reasoning in the setting of LLM-Adapters: eight sets, one model, answers generated as words.

Source: Hu et al., "LLM-Adapters", arXiv:2304.01933; recipe of Wang et al., "MiLoRA", arXiv:2406.09044, table 1
(``--targets q_proj,k_proj,v_proj,up_proj,down_proj``).
Local tables are LLM-Adapters' own files, one folder per set. From the hub, the original sets are put into the same
words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from harness import (
    Evaluation,
    Example,
    Metric,
    Recipe,
    Source,
    Table,
    Task,
    TaskContext,
    TaskData,
    UsageError,
    hookimpl,
    read_rows,
    setting,
)
from harness_benchmarks import REVISION, forgetting
from harness_benchmarks.tasks.instructions import (
    AnswersRecipe,
    Question,
    Split,
    encode_all,
    instruction_prompt,
    prompts_tokens,
    same,
    split_off,
    subsample,
    text_of,
    write_answers,
)

Row = Mapping[str, Any]


def options(kind: str, texts: Sequence[str], gap: str = " ") -> str:
    """Return numbered choices and the list of answers allowed, as LLM-Adapters writes them."""
    lines = gap.join(f"{kind.capitalize()}{place}: {text}" for place, text in enumerate(texts, 1))
    return f"{lines}\n\nAnswer format: {'/'.join(f'{kind}{place}' for place in range(1, len(texts) + 1))}"


def row_of(instruction: str, answer: str) -> Row:
    """Return a row of LLM-Adapters' tables."""
    return {"instruction": instruction, "answer": answer, "output": f"the correct answer is {answer}"}


CHOOSE = "Please choose the correct answer to the question: "


def from_boolq(row: Row) -> Row:
    """Put a BoolQ row into LLM-Adapters' words. The passage is not shown, as there."""
    question = f"Please answer the following question with true or false, question: {row['question']}?"
    return row_of(f"{question}\n\nAnswer format: true/false", str(bool(row["answer"])).lower())


def from_piqa(row: Row) -> Row:
    """Put a PIQA row into LLM-Adapters' words."""
    listed = options("solution", [row["sol1"], row["sol2"]], "\n\n")
    question = f"Please choose the correct solution to the question: {row['goal']}"
    return row_of(f"{question}\n\n{listed}", f"solution{int(row['label']) + 1}")


def from_social_i_qa(row: Row) -> Row:
    """Put a Social IQA row into LLM-Adapters' words."""
    listed = options("answer", [row["answerA"], row["answerB"], row["answerC"]])
    return row_of(f"{CHOOSE}{row['context']} {row['question']}\n\n{listed}", f"answer{int(row['label'])}")


def from_hellaswag(row: Row) -> Row:
    """Put a HellaSwag row into LLM-Adapters' words."""
    sentence = f"{row['activity_label']}: {row['ctx']}"
    question = f"Please choose the correct ending to complete the given sentence: {sentence}"
    return row_of(f"{question}\n\n{options('ending', row['endings'])}", f"ending{int(row['label']) + 1}")


def from_winogrande(row: Row) -> Row:
    """Put a WinoGrande row into LLM-Adapters' words, which leave no empty line before the answer format here."""
    listed = options("option", [row["option1"], row["option2"]]).replace("\n\n", " ")
    question = "Please choose the correct answer to fill in the blank to complete the given sentence: "
    return row_of(f"{question}{row['sentence']}\n\n{listed}", f"option{int(row['answer'])}")


def from_choices(row: Row) -> Row:
    """Put an ARC or OpenBookQA row into LLM-Adapters' words; choices may be labelled by letters or by digits."""
    choices = row["choices"]
    right = choices["label"].index(row["answerKey"]) + 1
    question = row["question"] if "question" in row else row["question_stem"]
    return row_of(f"{CHOOSE}{question}\n\n{options('answer', choices['text'])}", f"answer{right}")


@dataclass(frozen=True)
class CommonsenseSet:
    """One of the eight sets.

    Attributes:
        source: Where it is.
        hub_test: The hub's split that serves as test set.
        convert: From a row of the hub to LLM-Adapters' words.
        answers: Matches an answer in generated text.
    """

    source: Source
    hub_test: str
    convert: Callable[[Row], Row]
    answers: str


def _source(hub_id: str, config: str, revision: str, licence: str, folder: str) -> Source:
    return Source(hub_id, config, revision, licence, f"commonsense/{folder}", REVISION)


_ARC = "210d026faf9955653af8916fad021475a3f00453"
ANSWERS = r"answer[1-5]"
SETS: Mapping[str, CommonsenseSet] = {
    "boolq": CommonsenseSet(
        _source("google/boolq", "", "35b264d03638db9f4ce671b711558bf7ff0f80d5", "CC BY-SA 3.0", "boolq"),
        "validation", from_boolq, r"true|false",
    ),
    "piqa": CommonsenseSet(
        _source("lighteval/piqa", "plain_text", "41782e6bf0ef7de82a2ca8a9feb1dca042837fae", "AFL 3.0", "piqa"),
        "validation", from_piqa, r"solution[12]",
    ),
    "social_i_qa": CommonsenseSet(
        _source("lighteval/siqa", "", "54c6a1f8cb6daf4f5abf24a601852612fb35eb25", "CC BY 4.0", "social_i_qa"),
        "validation", from_social_i_qa, ANSWERS,
    ),
    "hellaswag": CommonsenseSet(
        _source("Rowan/hellaswag", "", "218ec52e09a7e7462a5400043bb9a69a41d06b76", "MIT", "hellaswag"),
        "validation", from_hellaswag, r"ending[1-4]",
    ),
    "winogrande": CommonsenseSet(
        _source(
            "allenai/winogrande", "winogrande_xl", "01e74176c63542e6b0bcb004dcdea22d94fb67b5", "CC BY", "winogrande"
        ),
        "validation", from_winogrande, r"option[12]",
    ),
    "ARC-Easy": CommonsenseSet(
        _source("allenai/ai2_arc", "ARC-Easy", _ARC, "CC BY-SA 4.0", "ARC-Easy"), "test", from_choices, ANSWERS
    ),
    "ARC-Challenge": CommonsenseSet(
        _source("allenai/ai2_arc", "ARC-Challenge", _ARC, "CC BY-SA 4.0", "ARC-Challenge"),
        "test", from_choices, ANSWERS,
    ),
    "openbookqa": CommonsenseSet(
        _source("allenai/openbookqa", "main", "388097ea7776314e93a529163e0fea805b8a6454", "Apache-2.0", "openbookqa"),
        "test", from_choices, ANSWERS,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CommonsenseRecipe(AnswersRecipe):
    """A recipe with the sets in use."""

    sets: str = setting("all", "sets to evaluate on, joined by '+'")
    train_sets: str = setting("all", "sets to train on, joined by '+'")
    held_out: int = setting(100, "rows of each training set kept for validation", minimum=1)
    max_new_tokens: int = setting(32, "longest generated answer, in tokens", minimum=1)
    evaluation_batch_size: int = setting(64, "prompts per batch when evaluating", minimum=1)


class CommonsenseTask(Task):
    """Eight commonsense sets, trained on together."""

    name = "commonsense"
    title = "Commonsense reasoning"
    paper = "https://arxiv.org/abs/2304.01933"
    seeded_data = False
    source = Source(
        folder="commonsense",
        licence="by set",
        note="Test is the labelled validation split of BoolQ, PIQA, Social IQA, HellaSwag and WinoGrande (their test "
        "labels are hidden), the test split of the others, as in LLM-Adapters. Validation is a slice of each training "
        "set, fixed by a hash of the question and taken out of training, as is every row whose question is also a test "
        "question. From the hub, WinoGrande trains on its largest size once; LLM-Adapters' commonsense_170k repeats "
        f"rows of the smaller sizes. {REVISION}",
    )
    main_metric = "average"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "average": Metric(
            "Average accuracy", "fraction", True, "Mean of the sets' accuracies, each set counting the same."
        ),
        **{
            name: Metric(name, "fraction", True, f"Share of {name} questions answered right, greedy decoding.")
            for name in SETS
        },
        **forgetting.METRICS,
    }
    recipes: ClassVar[Mapping[str, Recipe]] = {
        "smoke": CommonsenseRecipe(
            sets="boolq+ARC-Easy",
            train_sets="boolq+ARC-Easy",
            steps=20,
            batch_size=4,
            max_length=768,
            learning_rate=1e-3,
            held_out=20,
            limit=8,
            evaluation_batch_size=8,
            forgetting_windows=4,
        ),
        "small": CommonsenseRecipe(
            sets="boolq+ARC-Easy+ARC-Challenge+openbookqa",
            train_sets="boolq+ARC-Easy+ARC-Challenge+openbookqa",
            epochs=1,
            batch_size=16,
            max_length=512,
            warmup_steps=20,
            limit=200,
        ),
        # MiLoRA's commonsense setting; LLM-Adapters cuts at 256 tokens.
        "paper": CommonsenseRecipe(epochs=3, batch_size=16, max_length=256, learning_rate=3e-4, warmup_steps=100),
    }

    def tables(self, recipe: Any) -> Sequence[Table]:
        """Return the tables in use."""
        train = [Table(SETS[name].source, "train") for name in chosen_sets(recipe.train_sets)]
        test = [Table(SETS[name].source, "test", True, SETS[name].hub_test) for name in chosen_sets(recipe.sets)]
        return [*train, *test, forgetting.TABLE]

    def load(self, context: TaskContext) -> TaskData:
        """Read the tables, and hold a slice of each training set out for validation."""
        recipe, tokenizer = context.recipe, context.tokenizer
        tests = {name: read_set(name, "test", context.data_dir) for name in chosen_sets(recipe.sets)}
        evaluated = {same(text_of(row, "instruction")) for rows in tests.values() for row in rows}
        train: list[Row] = []
        held_out: dict[str, list[Row]] = {}
        for name in chosen_sets(recipe.train_sets):
            rows = [
                row for row in read_set(name, "train", context.data_dir) if same(row["instruction"]) not in evaluated
            ]
            rest, held_out[name] = split_off(rows, recipe.held_out, lambda row: same(row["instruction"]))
            train += rest

        def questions(tables: Mapping[str, Sequence[Row]]) -> dict[str, list[Question]]:
            found = {}
            for name, rows in tables.items():
                chosen = subsample(rows, recipe.limit, lambda row: same(row["instruction"]))
                prompts = prompts_tokens([ask(row) for row in chosen], tokenizer)
                answers = [row["answer"] for row in chosen]
                found[name] = [Question(*each) for each in zip(prompts, answers, strict=True)]
            return found

        def examples(rows: Sequence[Row]) -> Sequence[Example]:
            return encode_all([[(ask(row), text_of(row, "output"))] for row in rows], tokenizer, recipe.max_length)

        validation = [row for rows in held_out.values() for row in rows]
        return TaskData(
            train=examples(train),
            splits={
                "validation": Split(questions(held_out), examples=examples(validation)),
                "test": Split(questions(tests), recipe.forgetting_windows),
            },
        )

    def validation_examples(self, split: Split) -> Sequence[Example]:
        """Return the rows held out of training, all of them."""
        return split.examples

    @classmethod
    def recompute(cls, items: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
        """Return the mean of the sets' means."""
        sets = [[each for each in items[name] if each is not None] for name in SETS if name in items]
        return {"average": sum(sum(each) / len(each) for each in sets) / len(sets)} if all(sets) and sets else {}

    def evaluate(self, model: Any, context: TaskContext, split: Any) -> Evaluation:
        """Generate answers, take the first word in each that can be an answer; measure forgetting."""
        asked = [question for questions in split.questions.values() for question in questions]
        texts = iter(write_answers(model, context, asked))  # all at once: larger batches
        items = {
            name: [float(extract_answer(name, next(texts)) == each.answer) for each in questions]
            for name, questions in split.questions.items()
        }
        metrics: dict[str, float | None] = dict.fromkeys(("average", *SETS))
        metrics |= {name: sum(scores) / len(scores) for name, scores in items.items()}
        metrics["average"] = sum(sum(scores) / len(scores) for scores in items.values()) / len(items)
        items["average"] = average_values([items[name] for name in split.questions])
        reasons = {
            name: f"the recipe evaluates on {', '.join(split.questions)}"
            for name, value in metrics.items()
            if value is None
        }
        chance = {
            name: max(Counter(each.answer for each in questions).values()) / len(questions)
            for name, questions in split.questions.items()
        }
        chance["average"] = sum(chance.values()) / len(chance)
        found = Evaluation(metrics, reasons, items, chance=chance)
        return forgetting.with_forgetting(found, model, context, split.forgetting_windows)


def average_values(sets: Sequence[Sequence[float]]) -> list[float]:
    """Return what each item adds to the mean of the sets' means: its jackknife pseudo-value."""
    average = sum(sum(scores) / len(scores) for scores in sets) / len(sets)
    count = sum(map(len, sets))
    values: list[float] = []
    for scores in sets:
        mean = sum(scores) / len(scores)
        values += [average + count / (len(sets) * len(scores)) * (score - mean) for score in scores]
    return values


def chosen_sets(text: str) -> list[str]:
    """Return the names in ``a+b+c``; ``all`` is all eight.

    Raises:
        UsageError: A name is unknown.
    """
    names = list(SETS) if text == "all" else [each.strip() for each in text.split("+") if each.strip()]
    unknown = [name for name in names if name not in SETS]
    if unknown or not names:
        raise UsageError(
            f"commonsense: sets {text!r} names {', '.join(unknown) or 'nothing'}; "
            f"give 'all', or some of {', '.join(SETS)} joined by '+'"
        )
    return list(dict.fromkeys(names))


def read_set(name: str, split: str, data_dir: Path | None) -> list[Row]:
    """Return one set's rows in LLM-Adapters' words."""
    each = SETS[name]
    rows = read_rows(each.source, split, data_dir, each.hub_test if split == "test" else None)
    return rows if data_dir is not None else [each.convert(row) for row in rows]


def ask(row: Row) -> str:
    """Return a row's prompt."""
    return instruction_prompt(row["instruction"], row.get("input") or "")


def extract_answer(name: str, text: str) -> str | None:
    """Return the first word in generated text that can be an answer of this set, as LLM-Adapters does."""
    found = re.search(SETS[name].answers, text)
    return found.group() if found else None


@hookimpl
def harness_register_tasks() -> list[type[Task]]:
    """Register the task."""
    return [CommonsenseTask]
