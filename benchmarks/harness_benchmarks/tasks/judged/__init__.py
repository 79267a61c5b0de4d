"""Answers scored by a judge: MT-Bench's two turns, rated, and AlpacaEval's answers, against reference ones.

The judge is a setting of the recipe (``judge_url``, ``judge_model``), so results of different judges are different
trials. What it is asked is this project's own wording: scores are not those of the leaderboards of either benchmark,
even by the same judge. No judge of the papers was at hand: the code was tried with a made-up server.

Sources: Zheng et al., "Judging LLM-as-a-judge with MT-Bench and Chatbot Arena", arXiv:2306.05685; Li et al.,
"AlpacaEval", 2023 (version 1); recipes of Meng et al., "PiSSA", arXiv:2404.02948, section 5.1, and Wang et al.,
"MiLoRA", arXiv:2406.09044, section 4.1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from harness import (
    Evaluation,
    Metric,
    Recipe,
    Source,
    Table,
    Task,
    TaskContext,
    TaskData,
    generate,
    hookimpl,
    read_rows,
    setting,
)
from harness_benchmarks.tasks.instructeval import conversation
from harness_benchmarks.tasks.instructions import (
    encode_all,
    instruction_prompt,
    prompts_tokens,
    same,
    split_off,
    subsample,
)
from harness_benchmarks.tasks.judged.judge import Judge, choice, rating

RATE = """Rate how well an assistant answered a user. Mind whether the answer is right, helpful, to the point and \
complete, and not how long it is. Say briefly why, then give a number from 1 (worst) to 10 (best) in double brackets, \
e.g. [[5]].

{talk}{reference}

Rate the assistant's last answer."""
COMPARE = """Two assistants, A and B, answered the same user. Say which answer is better: right, helpful, to the point \
and complete. Their order and their length mean nothing. Say briefly why, then end with [[A]], [[B]], or [[C]] where \
neither is better.

[User]
{instruction}

[Assistant A]
{a}

[Assistant B]
{b}"""


@dataclass(frozen=True, kw_only=True)
class JudgedRecipe(Recipe):
    """A recipe with the judge, and the sizes of what it judges."""

    judge_url: str = setting("", "address of the judge, e.g. https://api.openai.com/v1")
    judge_model: str = setting("gpt-4-0613", "the judge's name there")
    held_out: int = setting(100, "training rows kept for validation", minimum=1)
    limit: int | Literal["all"] = setting("all", "questions per set", kind=int, minimum=1)
    max_new_tokens: int = setting(1_024, "longest answer, in tokens", minimum=1)
    evaluation_batch_size: int = setting(16, "prompts per batch when evaluating", minimum=1)

    @property
    def judge(self) -> Judge:
        """The judge."""
        return Judge(self.judge_url, self.judge_model)


class Question(NamedTuple):
    """What is asked, and what is known of good answers.

    Attributes:
        turns: One or two instructions.
        references: An answer to each, where there is one.
    """

    turns: Sequence[str]
    references: Sequence[str] = ()


class JudgedTask(Task):
    """Training on instructions; answers scored by a judge. Subclasses say of what and how."""

    seeded_data = False
    training: ClassVar[Source]
    asked: ClassVar[Table]

    def tables(self, recipe: Any) -> Sequence[Table]:
        """Return the training set and the questions."""
        return [Table(self.training, "train"), self.asked]

    def check(self, context: TaskContext) -> None:
        """Refuse a trial without a judge."""
        context.recipe.judge.check()

    def load(self, context: TaskContext) -> TaskData:
        """Read the tables and hold validation out."""
        recipe, folder = context.recipe, context.data_dir
        rows = [turns for row in read_rows(self.training, "train", folder) if (turns := conversation(row))]
        asked = [self.question(row) for row in read_rows(self.asked.source, self.asked.split, folder)]
        scored = {same(instruction_prompt(question.turns[0])) for question in asked}
        rows = [turns for turns in rows if same(turns[0][0]) not in scored]
        train, held_out = split_off(rows, recipe.held_out, lambda turns: same(turns[0][0]))
        validation = [Question([_instruction(turns[0][0])], [turns[0][1]]) for turns in held_out]

        def some(questions: Sequence[Question]) -> list[Question]:
            return subsample(questions, recipe.limit, lambda question: same(question.turns[0]))

        return TaskData(
            train=encode_all(train, context.tokenizer, recipe.max_length),
            splits={"validation": some(validation), "test": some(asked)},
        )

    def question(self, row: Mapping[str, Any]) -> Question:
        """Return the question of a row."""
        raise NotImplementedError

    def judge(self, judge: Judge, questions: Sequence[Question], answers: Sequence[list[str]]) -> list[float | None]:
        """Return each question's score; ``None`` where the judge gave no verdict."""
        raise NotImplementedError

    def evaluate(self, model: Any, context: TaskContext, split: Any) -> Evaluation:
        """Let the model answer every turn, and the judge say what that is worth."""
        recipe, tokenizer = context.recipe, context.tokenizer
        talks = ["" for _ in split]
        answers: list[list[str]] = [[] for _ in split]
        for turn in range(max(len(question.turns) for question in split)):
            going = [place for place, question in enumerate(split) if turn < len(question.turns)]
            for place in going:
                talks[place] += ("\n\n" if turn else "") + _prompt(split[place].turns[turn], turn)
            prompts = prompts_tokens([talks[place] for place in going], tokenizer)
            written = generate(model, tokenizer, prompts, recipe.max_new_tokens, recipe.evaluation_batch_size)
            for place, tokens in zip(going, written, strict=True):
                text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
                answers[place].append(text)
                talks[place] += text
        scores = self.judge(recipe.judge, split, answers)
        given = [score for score in scores if score is not None]
        notes = {"judge": f"{recipe.judge_model} at {recipe.judge_url}, {len(given)} of {len(scores)} with a verdict"}
        value = sum(given) / len(given) if given else None
        reasons = {} if given else {self.main_metric: f"the judge {recipe.judge_model!r} gave no verdict in its form"}
        return Evaluation({self.main_metric: value}, reasons, {self.main_metric: scores} if given else {}, notes)


class MTBench(JudgedTask):
    """Two turns of conversation, each answer rated by a judge."""

    name = "mt-bench"
    title = "MT-Bench, judged"
    paper = "https://arxiv.org/abs/2306.05685"
    training = Source(
        folder="judged/wizardlm", licence="see WizardLM-Evol-Instruct",
        note="Rows with instruction, input and output, or messages.",
    )  # fmt: skip
    asked = Table(Source(folder="judged/mt-bench", licence="Apache-2.0"), "question")
    source = Source(
        folder="judged/mt-bench",
        licence="Apache-2.0",
        note="Test: MT-Bench's questions (columns turns and reference). Validation: held-out training rows, one turn, "
        "rated beside their own response. The judge's instructions are this project's own.",
    )
    main_metric = "rating"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "rating": Metric("Rating", "points of 10", True, "Mean over questions of the judge's ratings of both turns."),
    }
    recipes: ClassVar[Mapping[str, Recipe]] = {
        "smoke": JudgedRecipe(
            steps=20, batch_size=4, max_length=512, learning_rate=1e-3, held_out=4, limit=2, max_new_tokens=32,
        ),
        "small": JudgedRecipe(
            epochs=1, batch_size=32, max_length=512, warmup_steps=20, held_out=40, max_new_tokens=256
        ),
        # PiSSA: 100,000 rows (781 updates of 128), 1 epoch, 2e-5, cosine, warm-up 0.03, 512 tokens.
        "paper": JudgedRecipe(
            steps=781, batch_size=128, micro_batch_size=16, max_length=512, learning_rate=2e-5, schedule="cosine",
            warmup_fraction=0.03,
        ),
    }  # fmt: skip

    def question(self, row: Mapping[str, Any]) -> Question:
        """Return both turns, and MT-Bench's reference answers where it has them."""
        return Question(list(row["turns"]), list(row.get("reference") or ()))

    def judge(self, judge: Judge, questions: Sequence[Question], answers: Sequence[list[str]]) -> list[float | None]:
        """Return the mean rating of each question's turns."""
        asked, owners = [], []
        for place, (question, given) in enumerate(zip(questions, answers, strict=True)):
            talk = ""
            for turn, answer in enumerate(given):
                talk += f"[User]\n{question.turns[turn]}\n\n[Assistant]\n{answer}\n\n"
                known = question.references[turn : turn + 1]
                asked.append(
                    RATE.format(talk=talk.rstrip(), reference="".join(f"\n\n[A good answer]\n{each}" for each in known))
                )
                owners.append(place)
        ratings: list[list[float | None]] = [[] for _ in questions]
        for place, verdict in zip(owners, judge.verdicts(asked), strict=True):
            ratings[place].append(rating(verdict))
        return [_mean(each) for each in ratings]


class AlpacaEval(JudgedTask):
    """One answer to each instruction, held by a judge against a reference answer."""

    name = "alpaca-eval"
    title = "AlpacaEval, judged"
    paper = "https://arxiv.org/abs/2406.09044"
    training = Source(
        folder="judged/ultrafeedback", licence="see UltraFeedback",
        note="Rows with instruction, input and output, or messages.",
    )  # fmt: skip
    asked = Table(Source(folder="judged/alpaca-eval", licence="CC BY-NC 4.0"), "eval")
    source = Source(
        folder="judged/alpaca-eval",
        licence="CC BY-NC 4.0",
        note="Test: AlpacaEval's instructions, against the outputs beside them (columns instruction and output). "
        "Validation: held-out training rows, against their own response. The judge's instructions are this project's "
        "own; which answer comes first is drawn from the instruction.",
    )
    main_metric = "win_rate"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "win_rate": Metric(
            "Win rate", "fraction", True, "Share of answers that the judge prefers to the reference; a tie is a half."
        ),
    }
    recipes: ClassVar[Mapping[str, Recipe]] = {
        **{name: MTBench.recipes[name] for name in ("smoke", "small")},
        # MiLoRA gives no more than the data set and r = 32: the rest is its repository's for its other tasks.
        "paper": JudgedRecipe(epochs=3, batch_size=16, max_length=2_048, learning_rate=3e-4, warmup_steps=100),
    }

    def question(self, row: Mapping[str, Any]) -> Question:
        """Return the instruction and the reference output."""
        return Question([row["instruction"]], [row["output"]])

    def judge(self, judge: Judge, questions: Sequence[Question], answers: Sequence[list[str]]) -> list[float | None]:
        """Return 1 where the model's answer wins, 0 where it loses, a half for a tie."""
        asked, ours = [], []
        for question, (answer,) in zip(questions, answers, strict=True):
            first = hashlib.sha256(same(question.turns[0]).encode()).digest()[0] % 2 == 0
            both = [answer, question.references[0]] if first else [question.references[0], answer]
            asked.append(COMPARE.format(instruction=question.turns[0], a=both[0], b=both[1]))
            ours.append("A" if first else "B")
        said = [choice(verdict) for verdict in judge.verdicts(asked)]
        return [
            None if each is None else 0.5 if each == "C" else float(each == mine)
            for each, mine in zip(said, ours, strict=True)
        ]


def _prompt(instruction: str, turn: int) -> str:
    """Return the prompt of an instruction: whole for the first turn, without its opening for the others."""
    prompt = instruction_prompt(instruction)
    return prompt[prompt.index("### Instruction:") :] if turn else prompt


def _instruction(prompt: str) -> str:
    """Return the instruction, and its input, in a prompt that ``conversation`` wrote."""
    return prompt.partition("### Instruction:\n")[2].rpartition("\n\n### Response:")[0] or prompt.strip()


def _mean(values: Sequence[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return sum(given) / len(given) if given else None


@hookimpl
def harness_register_tasks() -> list[type[Task]]:
    """Register both."""
    return [MTBench, AlpacaEval]
