"""Continual pretraining on a domain: PubMed abstracts, or financial news; then what the model knows of the domain.

Scored are the perplexity on unseen text of the domain, question sets (see ``questions``), each by the measure that the
papers report for it, and forgetting (see ``forgetting``). A question set whose table is absent is ``null`` with a
reason; the average is over the others.

Source: Jiang et al., "MoRA", arXiv:2405.12130, section 5.2 and table 1 (BioMed, Finance), which follows AdaptLLM,
arXiv:2309.09530. The corpora are read from a local folder: MoRA's are not published in a form that can be pinned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from harness import (
    DataError,
    Evaluation,
    Example,
    Metric,
    Source,
    Table,
    Task,
    TaskContext,
    TaskData,
    hookimpl,
    negative_log_likelihoods,
    pseudo_values,
    setting,
)
from harness_benchmarks import forgetting
from harness_benchmarks.corpus import (
    BUFFER,
    Corpus,
    Documents,
    WindowCache,
    Windows,
    documents_of,
    perplexity,
    validation_windows,
)
from harness_benchmarks.questions import BIOMED, FINANCE, Question, QuestionSet, answer


@dataclass(frozen=True, kw_only=True)
class ContinualRecipe(forgetting.ForgettingRecipe):
    """A recipe with how much is scored."""

    validation_windows: int = setting(64, "most sequences to score, of max_length tokens each", minimum=1)
    questions: int | Literal["all"] = setting(
        "all", "most questions of each set, spread evenly over it", kind=int, formerly=0, minimum=1
    )
    shuffle_buffer: int = setting(BUFFER, "documents among which the next one is drawn", minimum=1)


class Split(NamedTuple):
    """What is scored: text, and on the test split forgetting and the question sets too, or why one is absent."""

    windows: Sequence[Example]
    questions: Mapping[str, Sequence[Question] | str]
    forgetting_windows: int


def metrics_of(sets: Mapping[str, QuestionSet]) -> Mapping[str, Metric]:
    """Return a domain's metrics."""
    return {
        "perplexity": Metric("Perplexity", "perplexity", False, "On unseen text of the domain, per token."),
        "loss": Metric("Loss", "nats", False, "Its logarithm: mean negative log-likelihood of a token."),
        "questions": Metric(
            "Questions",
            "fraction",
            True,
            "Mean score over those of AdaptLLM's five sets that are there, zero-shot: "
            f"{', '.join(each.title for each in sets.values() if each.in_mean)}. The record says which were.",
        ),
        **{
            name: Metric(f"{each.title}, {each.measure.name}", "fraction", True, each.measure.help)
            for name, each in sets.items()
        },
        **forgetting.METRICS,
    }


class ContinualTask(Task):
    """Train on packed text of a domain. Subclasses name corpus and question sets."""

    paper = "https://arxiv.org/abs/2405.12130"
    main_metric = "perplexity"
    corpus: ClassVar[Corpus]
    sets: ClassVar[Mapping[str, QuestionSet]]
    recipes: ClassVar[Mapping[str, ContinualRecipe]] = {
        "smoke": ContinualRecipe(
            max_length=256, batch_size=8, steps=60, learning_rate=2e-3, warmup_steps=4,
            validation_windows=32, questions=12, forgetting_windows=8, evaluate_at=(30,),
        ),
        "small": ContinualRecipe(
            max_length=512, batch_size=32, steps=1_000, learning_rate=5e-4, warmup_steps=50,
            validation_windows=128, questions=200, evaluate_at=(250, 500, 750),
        ),
        # MoRA does not give these settings: linear decay and 100 steps of warm-up are its repository's defaults.
        "paper": ContinualRecipe(
            max_length=2_048, batch_size=128, micro_batch_size=8, steps=3_000, learning_rate=3e-4, warmup_steps=100,
            validation_windows=1_000, forgetting_windows=256, evaluate_at=(1_000, 2_000),
        ),
    }  # fmt: skip

    def tables(self, recipe: Any) -> Sequence[Table]:
        """Return the corpus, and the question sets and WikiText, each of which may be absent."""
        corpus = [Table(self.corpus.source, split) for split in ("train", "validation")]
        asked = [Table(each.source, split, needed=False) for each in self.sets.values() for split in each.tables]
        return [*corpus, *asked, forgetting.TABLE]

    def load(self, context: TaskContext) -> TaskData:
        """Open the shuffled training stream, and read what is scored."""
        recipe, tokenizer, data_dir = context.recipe, context.tokenizer, context.data_dir
        length, count = recipe.max_length, recipe.validation_windows
        files = self.corpus.files("train", data_dir)
        windows = Windows(Documents(files, context.seed, recipe.shuffle_buffer), tokenizer, length)
        scored = validation_windows(self.corpus.files("validation", data_dir), tokenizer, length, count)
        questions: dict[str, Sequence[Question] | str] = {}
        for name, each in self.sets.items():
            try:
                questions[name] = each.load(data_dir, recipe.questions)
            except DataError as error:
                questions[name] = str(error)
        held_out = validation_windows(files, tokenizer, length, count, held_out=True)
        later = dict.fromkeys(self.sets, "scored on the test split only")
        return TaskData(
            train=WindowCache(windows, length),
            splits={
                "validation": Split(held_out, later, 0),
                "test": Split(scored, questions, recipe.forgetting_windows),
            },
        )

    @classmethod
    def recompute(cls, items: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
        """Return the perplexity of the windows' losses."""
        losses = [each for each in items.get("loss", ()) if each is not None]
        return {"perplexity": math.exp(sum(losses) / len(losses))} if losses else {}

    def evaluate(self, model: Any, context: TaskContext, split: Any) -> Evaluation:
        """Return perplexity, the question sets' scores and forgetting."""
        recipe, tokenizer = context.recipe, context.tokenizer
        size = recipe.rows_at_once
        sums = negative_log_likelihoods(model, split.windows, tokenizer.pad_token_id, size)
        losses = [total / (len(window.labels) - 1) for total, window in zip(sums, split.windows, strict=True)]
        loss = sum(losses) / len(losses)  # windows are equally long
        metrics: dict[str, float | None] = {"perplexity": math.exp(loss), "loss": loss}
        reasons: dict[str, str] = {}
        items = {"loss": losses, "perplexity": pseudo_values(perplexity, losses)}
        documents = documents_of(split.windows, tokenizer.eos_token_id)
        present: dict[str, float] = {}
        chance: dict[str, float] = {}
        for name, questions in split.questions.items():
            if isinstance(questions, str):
                metrics[name], reasons[name] = None, questions
            else:
                given = answer(model, tokenizer, questions, recipe.max_length, size)
                score, items[name] = self.sets[name].score(questions, given)
                metrics[name] = score
                if (level := self.sets[name].chance(questions)) is not None:
                    chance[name] = level
                if self.sets[name].in_mean:
                    present[name] = score
        metrics["questions"] = sum(present.values()) / len(present) if present else None
        if not present:
            reasons["questions"] = next(iter(reasons[name] for name in self.sets))
        groups = dict.fromkeys(("loss", "perplexity"), documents)
        notes = (
            {"sets in the mean of questions": ", ".join(self.sets[name].title for name in present)} if present else {}
        )
        if present and present.keys() <= chance.keys():
            chance["questions"] = sum(chance[name] for name in present) / len(present)
        found = Evaluation(metrics, reasons, items, notes, groups, chance)
        return forgetting.with_forgetting(found, model, context, split.forgetting_windows, recipe.max_length)


class Biomed(ContinualTask):
    """PubMed abstracts."""

    name, title = "continual/biomed", "Continual pretraining, biomedicine"
    sets, metrics = BIOMED, metrics_of(BIOMED)
    corpus = Corpus(
        Source(
            folder="text/biomed",
            licence="abstracts: their publishers'; research use",
            note="PubMed titles and abstracts. Choices are made on one training document in a hundred, held out.",
        )
    )
    source = corpus.source


class Finance(ContinualTask):
    """Financial news and central bank texts."""

    name, title = "continual/finance", "Continual pretraining, finance"
    sets, metrics = FINANCE, metrics_of(FINANCE)
    corpus = Corpus(
        Source(
            folder="text/finance",
            licence="by origin; research use",
            note="Financial news. Choices are made on one training document in a hundred, held out.",
        )
    )
    source = corpus.source


@hookimpl
def harness_register_tasks() -> list[type[Task]]:
    """Register both domains."""
    return [Biomed, Finance]
