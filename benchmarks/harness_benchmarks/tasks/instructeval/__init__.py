"""Instruction tuning, scored on the four sets of InstructEval: MMLU, BBH, DROP and HumanEval, through lm-eval.

Trains on Alpaca, or on a mixture of conversations such as Tulu v2, with the loss on the responses only. lm-eval
(``lm_evaluation``) scores the model in memory, by the task files in this folder.

Sources: Chia et al., "INSTRUCTEVAL", arXiv:2306.04757 (sets, shots); recipe of Ren et al., "MELoRA", arXiv:2402.17263,
section 4.2, which adapts the query and value projections (``--targets q_proj,v_proj``); Ivison et al.,
arXiv:2311.10702 (Tulu v2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from harness import (
    IGNORE,
    DataError,
    Evaluation,
    Example,
    Metric,
    Recipe,
    Source,
    Table,
    Task,
    TaskContext,
    TaskData,
    hookimpl,
    negative_log_likelihoods,
    read_rows,
    setting,
)
from harness_benchmarks import REVISION, forgetting
from harness_benchmarks.tasks.instructeval.lm_evaluation import Part, require_lm_eval, samples
from harness_benchmarks.tasks.instructeval.sandbox import isolation, refusal
from harness_benchmarks.tasks.instructions import (
    AnswersRecipe,
    encode_all,
    instruction_prompt,
    same,
    split_off,
    subsample,
    text_of,
)

Row = Mapping[str, Any]
Turns = Sequence[tuple[str, str]]

ALPACA = Source(
    "tatsu-lab/alpaca", "", "dce01c9b08f87459cf36a430d809084718273017", "CC BY-NC 4.0", "instructeval/alpaca", REVISION
)
TULU = Source(
    "allenai/tulu-v2-sft-mixture",
    "",
    "6248b175d2ccb5ec7c4aeb22e6d8ee3b21b2c752",
    "ODC-By",
    "instructeval/tulu-v2",
    REVISION,
)
MMLU = Source("cais/mmlu", "all", "c30699e8356da336a370243923dbaf21066bb9fe", "MIT", "instructeval/mmlu", REVISION)
BBH = Source("SaylorTwift/bbh", "", "b5306be6f827cfafbb545ff5a51f96916029b0fd", "MIT", "instructeval/bbh", REVISION)
DROP = Source(
    "ucinlp/drop", "", "95cda593fae71b60b5b19f82de3fcf3298c1239c", "CC BY-SA 4.0", "instructeval/drop", REVISION
)
HUMANEVAL = Source(
    "openai/openai_humaneval", "", "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544", "MIT", "instructeval/humaneval",
    REVISION,
)  # fmt: skip
BBH_TASKS = (
    "boolean_expressions", "causal_judgement", "date_understanding", "disambiguation_qa", "dyck_languages",
    "formal_fallacies", "geometric_shapes", "hyperbaton", "logical_deduction_five_objects",
    "logical_deduction_seven_objects", "logical_deduction_three_objects", "movie_recommendation",
    "multistep_arithmetic_two", "navigate", "object_counting", "penguins_in_a_table", "reasoning_about_colored_objects",
    "ruin_names", "salient_translation_error_detection", "snarks", "sports_understanding", "temporal_sequences",
    "tracking_shuffled_objects_five_objects", "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects", "web_of_lies", "word_sorting",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class InstructEvalRecipe(AnswersRecipe):
    """A recipe with its training set and the shots of each set."""

    training_set: str = setting("alpaca", "what to train on", choices=("alpaca", "tulu-v2"))
    held_out: int = setting(2_000, "training rows kept for validation", minimum=1)
    mmlu_shots: int = setting(5, "worked examples before an MMLU question", minimum=0, maximum=5)
    bbh_shots: int = setting(3, "worked examples before a BBH question", minimum=0)
    drop_shots: int = setting(3, "worked examples before a DROP question", minimum=0)
    max_new_tokens: int | Literal["auto"] = setting(
        "auto",
        "longest output in tokens; auto: 32 for BBH and DROP, 512 for HumanEval",
        kind=int,
        formerly=0,
        minimum=1,
    )
    evaluation_batch_size: int = setting(8, "prompts per batch when evaluating", minimum=1)


@dataclass(frozen=True)
class Scored:
    """What a split scores: responses held out of training, parts of each set for lm-eval, and forgetting."""

    responses: Sequence[Example]
    parts: Mapping[str, Sequence[Part]]
    forgetting_windows: int = 0


class InstructEvalTask(Task):
    """Follow instructions; scored on knowledge, reasoning, reading and code."""

    name = "instructeval"
    title = "InstructEval"
    paper = "https://arxiv.org/abs/2306.04757"
    seeded_data = False
    source = replace(
        ALPACA,
        note="Validation is MMLU's validation split, and a slice of the training set fixed by a hash and not trained "
        "on. Test: MMLU test, BBH without the rows that are shots, DROP's validation split (its test answers are "
        f"hidden), only questions with one answer and no passage of a shot, HumanEval. {REVISION}",
    )
    main_metric = "mmlu"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "mmlu": Metric("MMLU", "fraction", True, "Share of questions where the right letter is likeliest, 5 shots."),
        "bbh": Metric("BBH", "fraction", True, "Mean over subtasks of outputs that start with the target, 3 shots."),
        "drop": Metric("DROP", "fraction", True, "Mean F1 of the answers' words, 3 shots."),
        "drop_exact": Metric("DROP exact", "fraction", True, "Share of outputs that start with the answer, 3 shots."),
        "humaneval": Metric("HumanEval", "fraction", True, "Share of problems whose one greedy completion passes."),
        "response_nll": Metric(
            "Response NLL", "nats", False, "Mean negative log-likelihood per token of held-out responses."
        ),
        **forgetting.METRICS,
    }
    recipes: ClassVar[Mapping[str, Recipe]] = {
        "smoke": InstructEvalRecipe(
            steps=20,
            batch_size=4,
            max_length=512,
            learning_rate=1e-3,
            held_out=16,
            limit=8,
            mmlu_shots=1,
            bbh_shots=1,
            drop_shots=0,
            max_new_tokens=16,
            forgetting_windows=4,
        ),
        "small": InstructEvalRecipe(
            epochs=1,
            batch_size=32,
            max_length=256,
            warmup_steps=20,
            held_out=500,
            limit=500,
        ),
        # MELoRA: batch 128, 3 epochs, linear decay after 100 updates, 256 tokens, 2,000 rows held out.
        "paper": InstructEvalRecipe(
            epochs=3,
            batch_size=128,
            micro_batch_size=16,
            max_length=256,
            learning_rate=3e-4,
            warmup_steps=100,
        ),
    }

    def tables(self, recipe: Any) -> Sequence[Table]:
        """Return the tables in use."""
        return [
            Table(_training_source(recipe), "train"),
            Table(MMLU, "dev"),
            Table(MMLU, "val", hub_split="validation"),
            Table(MMLU, "test"),
            Table(BBH, "test"),
            Table(DROP, "validation"),
            Table(HUMANEVAL, "test"),
            forgetting.TABLE,
        ]

    def load(self, context: TaskContext) -> TaskData:
        """Read the tables, hold validation out, and put shots and questions together."""
        require_lm_eval()  # now, not after hours of training
        recipe, folder = context.recipe, context.data_dir
        rows = [conversation(row) for row in read_rows(_training_source(recipe), "train", folder)]
        train, held_out = split_off([turns for turns in rows if turns], recipe.held_out, _key)
        dev = read_rows(MMLU, "dev", folder)
        validation = read_rows(MMLU, "val", folder, "validation")
        tests = {
            "mmlu": mmlu_parts(read_rows(MMLU, "test", folder), dev, recipe),
            "bbh": bbh_parts(read_bbh(folder), recipe),
            "drop": drop_parts(read_rows(DROP, "validation", folder), recipe),
            "humaneval": humaneval_parts(read_rows(HUMANEVAL, "test", folder), recipe),
        }

        def encode(conversations: Sequence[Turns]) -> Sequence[Example]:
            return encode_all(conversations, context.tokenizer, recipe.max_length)

        return TaskData(
            train=encode(train),
            splits={
                "validation": Scored(encode(held_out), {"mmlu": mmlu_parts(validation, dev, recipe)}),
                "test": Scored([], tests, recipe.forgetting_windows),
            },
        )

    def validation_examples(self, split: Scored) -> Sequence[Example]:
        """Return the responses held out of training."""
        return split.responses

    def evaluate(self, model: Any, context: TaskContext, split: Any) -> Evaluation:
        """Score every part with lm-eval, held-out responses by their likelihood, and forgetting."""
        recipe, tokenizer = context.recipe, context.tokenizer
        metrics: dict[str, float | None] = dict.fromkeys(self.metrics)
        items: dict[str, list[float]] = {}
        groups: dict[str, list[int]] = {}
        reasons: dict[str, str] = {}
        parts = dict(split.parts)
        if "humaneval" in parts:
            forbidden = (
                refusal()
                if context.allow_code_execution
                else "scoring runs model-written code; give --allow-code-execution"
            )
            if forbidden:
                del parts["humaneval"]
                reasons["humaneval"] = forbidden
        found = samples(
            model,
            tokenizer,
            [part for each in parts.values() for part in each],
            recipe.evaluation_batch_size,
            context.allow_code_execution,
        )
        for metric, name, measure in (
            ("mmlu", "mmlu", "acc"),
            ("bbh", "bbh", "exact"),
            ("drop", "drop", "f1"),
            ("drop_exact", "drop", "exact"),
            ("humaneval", "humaneval", "pass"),
        ):
            if name in parts:
                by_part = [[float(sample[measure]) for sample in found[part.name]] for part in parts[name]]
                items[metric] = [value for values in by_part for value in values]
                passages = [row.get("passage") for part in parts[name] for row in part.rows]
                if passages and passages[0] is not None:
                    numbers = {passage: number for number, passage in enumerate(dict.fromkeys(passages))}
                    groups[metric] = [numbers[passage] for passage in passages]
                metrics[metric] = (
                    sum(sum(values) / len(values) for values in by_part) / len(by_part)
                    if name == "bbh"  # InstructEval's average is over subtasks
                    else sum(items[metric]) / len(items[metric])
                )
            elif metric not in reasons:
                reasons[metric] = "validation is MMLU's validation split; this set is scored on test only"
        if split.responses:
            losses = negative_log_likelihoods(
                model, split.responses, tokenizer.pad_token_id, recipe.evaluation_batch_size
            )
            counts = [sum(label != IGNORE for label in each.labels[1:]) for each in split.responses]
            items["response_nll"] = [loss / max(1, count) for loss, count in zip(losses, counts, strict=True)]
            metrics["response_nll"] = sum(losses) / sum(counts)
        else:
            reasons["response_nll"] = "the responses held out of training are validation data"
        notes = {"isolation of model-written code": isolation()} if "humaneval" in parts else {}
        letters = Counter(row["answer"] for part in parts["mmlu"] for row in part.rows)
        chance = {"mmlu": max(letters.values()) / letters.total()}
        evaluation = Evaluation(metrics, reasons, items, notes, groups, chance)
        return forgetting.with_forgetting(evaluation, model, context, split.forgetting_windows)


def _training_source(recipe: Any) -> Source:
    return {"alpaca": ALPACA, "tulu-v2": TULU}[recipe.training_set]


def _key(turns: Turns) -> str:
    return same(turns[0][0])


def conversation(row: Row) -> Turns:
    """Return a row's (prompt, response) turns: Alpaca's fields, or ``messages`` of a mixture in Tulu's format.

    Raises:
        DataError: The row has neither.
    """
    if "messages" not in row:
        return [(instruction_prompt(text_of(row, "instruction"), row.get("input") or ""), text_of(row, "output"))]
    turns: list[tuple[str, str]] = []
    prompt = ""
    for message in row["messages"]:
        if message["role"] not in ("system", "user", "assistant"):
            raise DataError(f"data: a message has role {message['role']!r}; allowed are system, user, assistant")
        if message["role"] == "assistant":
            turns.append((f"{prompt}<|assistant|>\n", message["content"]))
            prompt = "\n"
        else:
            prompt += f"<|{message['role']}|>\n{message['content']}\n"
    return turns


def mmlu_parts(rows: Sequence[Row], dev: Sequence[Row], recipe: Any) -> list[Part]:
    """Return one part per subject that the subsample reaches; the shots are the subject's dev rows."""
    chosen = subsample(rows, recipe.limit, lambda row: f"{row['subject']} {same(row['question'])}")

    def table(rows: Iterable[Row], subject: str) -> list[Row]:
        fields = ("question", "subject", "choices", "answer")
        return [{name: row[name] for name in fields} for row in rows if row["subject"] == subject]

    return [
        Part("mmlu", f"mmlu_{subject}", table(chosen, subject), table(dev, subject), recipe.mmlu_shots)
        for subject in dict.fromkeys(row["subject"] for row in chosen)
    ]


def read_bbh(folder: Path | None) -> list[Row]:
    """Return BBH's rows with their subtask: one local table, or one configuration per subtask on the hub."""
    if folder is not None:
        return read_rows(BBH, "test", folder)
    return [{**row, "task": task} for task in BBH_TASKS for row in read_rows(replace(BBH, config=task), "test", None)]


def bbh_parts(rows: Sequence[Row], recipe: Any) -> list[Part]:
    """Return one part per subtask that the subsample reaches; the subtask's first rows are shots and not scored."""
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        tasks.setdefault(row["task"], []).append({name: row[name] for name in ("task", "input", "target")})
    rest = [row for table in tasks.values() for row in table[recipe.bbh_shots :]]
    chosen = subsample(rest, recipe.limit, lambda row: f"{row['task']} {same(row['input'])}")
    return [
        Part("bbh", f"bbh_{task}", mine, table[: recipe.bbh_shots], recipe.bbh_shots, recipe.max_new_tokens)
        for task, table in tasks.items()
        if (mine := [row for row in chosen if row["task"] == task])
    ]


def drop_parts(rows: Sequence[Row], recipe: Any) -> list[Part]:
    """Return DROP's questions with one answer; a few of them are shots, and their passages are not scored."""
    table = [
        {"passage": row["passage"], "question": row["question"], "answer": answers[0]}
        for row in rows
        if len(set(answers := drop_answers(row))) == 1
    ]
    left, shots = split_off(table, recipe.drop_shots, lambda row: same(row["passage"]))
    scored = subsample(left, recipe.limit, lambda row: same(f"{row['question']} {row['passage']}"))
    one_each = list({row["passage"]: row for row in reversed(shots)}.values())[::-1]
    return [Part("drop", "drop", scored, one_each, recipe.drop_shots, recipe.max_new_tokens)]


def drop_answers(row: Row) -> list[str]:
    """Return all annotators' answers: the local table's ``ref_answers``, or the spans of the hub's table."""
    found = row["ref_answers"] if "ref_answers" in row else row["answers_spans"]["spans"]
    return [str(each).strip() for each in found]


def humaneval_parts(rows: Sequence[Row], recipe: Any) -> list[Part]:
    """Return HumanEval's problems."""
    fields = ("task_id", "prompt", "entry_point", "test")
    table = [{name: row[name] for name in fields} for row in rows]
    chosen = subsample(table, recipe.limit, lambda row: row["task_id"])
    return [Part("humaneval", "humaneval", chosen, max_new_tokens=recipe.max_new_tokens)]


@hookimpl
def harness_register_tasks() -> list[type[Task]]:
    """Register the task."""
    return [InstructEvalTask]
