"""Question sets of a domain: prompts with the answers to choose from, scored by likelihood, zero-shot.

A model chooses the answer whose tokens it finds likeliest *on average*: the summed log-likelihood over the number of
tokens, so that long answers are not at a disadvantage. (Brown et al., "Language models are few-shot learners",
arXiv:2005.14165, section 2.4, and AdaptLLM score so.) A set without options is answered by greedy decoding.

Each set is read either in its original columns or, where its folder holds rows with ``input`` and either ``options``
and ``gold_index`` or ``label``, in AdaptLLM's filled-in form (Cheng et al., "Adapting large language models via reading
comprehension", arXiv:2309.09530). The prompts for original columns are this project's own. A set's score is the
measure that AdaptLLM's authors report for it: accuracy (which is their micro F1, one answer per question), weighted F1,
or, of generated answers, the mean of what each is worth.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness import IGNORE, DataError, Example, Source, generate, negative_log_likelihoods, read_rows

Row = Mapping[str, Any]
NEUTRAL = 0.1  # sentiment scores up to this size, in -1..1, count as neutral
NEW_TOKENS = 100  # of a generated answer, whose first line counts
TOLERANCE = 0.01  # of a generated number


class Question(NamedTuple):
    """A prompt, the answers to choose from, and the place of the right one. One option only: to be generated.

    ``group`` says which of a set's questions it asks, where F1 is averaged over them.
    """

    prompt: str
    options: tuple[str, ...]
    right: int
    group: str = ""

    @property
    def answer(self) -> str:
        """Return the right answer."""
        return self.options[self.right]


def same_text(given: str, right: str) -> float:
    """Return whether two answers are the same but for case and white space around them."""
    return float(given.strip().lower() == right.strip().lower())


def same_number(given: str, right: str) -> float:
    """Return whether any number in the answer is the right answer's first to 0.01, as AdaptLLM scores ConvFinQA."""
    return float(any(abs(number - first) <= TOLERANCE for first in numbers(right)[:1] for number in numbers(given)))


def numbers(text: str) -> list[float]:
    """Return the numbers in a text; ``5%`` is 0.05."""
    found = re.findall(r"([-+]?(?:\d[\d,]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)(%?)", text)
    return [float(number.replace(",", "")) / (100 if percent else 1) for number, percent in found]


def entity_f1(given: str, right: str) -> float:
    """Return the F1 of entities written as ``name (KIND)``: a name and a kind that are found count one each.

    A right entity is held against the first given one that shares its name or its kind, as AdaptLLM scores NER.
    Source: Nadeau and Sekine, "A survey of named entity recognition and classification", 2007 (MUC's F1).
    """
    found, wanted = (list(dict.fromkeys(re.findall(r"(\S+)\s+\((\S+)\)", text))) for text in (given, right))
    hits = 0
    for name, kind in wanted:
        shared = ((name == other_name) + (kind == other_kind) for other_name, other_kind in found)
        hits += next((count for count in shared if count), 0)
    return hits / (len(found) + len(wanted)) if wanted else 0.0


def accuracy(questions: Sequence[Question], given: Sequence[str]) -> float:
    """Return the share of questions that were answered right."""
    return sum(text == question.answer for question, text in zip(questions, given, strict=True)) / len(questions)


def weighted_f1(questions: Sequence[Question], given: Sequence[str]) -> float:
    """Return the F1 of the classes, each weighted by its share of the right answers; the mean over groups."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for question, answer in zip(questions, given, strict=True):
        groups.setdefault(question.group, []).append((question.answer, answer))
    scores = []
    for pairs in groups.values():
        rights, answers = Counter(right for right, _ in pairs), Counter(answer for _, answer in pairs)
        hits = Counter(right for right, answer in pairs if right == answer)
        weighted = (count * 2 * hits[kind] / (count + answers[kind]) for kind, count in rights.items())
        scores.append(sum(weighted) / len(pairs))
    return sum(scores) / len(scores)


class Measure(NamedTuple):
    """What a set's score is: in a word or two, in a sentence, and as a function of questions and chosen answers."""

    name: str
    help: str
    score: Callable[[Sequence[Question], Sequence[str]], float] = accuracy


CHOSEN = "zero-shot; the likeliest answer per token."
ACCURACY = Measure("accuracy", f"Share of questions answered right, {CHOSEN}")
WEIGHTED_F1 = Measure(
    "weighted F1", f"F1 of the classes, each weighted by its share of the right answers; {CHOSEN}", weighted_f1
)


@dataclass(frozen=True)
class QuestionSet:
    """Where one set is and how its rows become questions.

    Attributes:
        title: As papers write it.
        source: Folder below the data folder; these sets are read locally only.
        tables: File names without ending, read one after the other.
        ask: Turns a row of original columns into questions; ``None``: only AdaptLLM's form is known.
        measure: What the score is.
        grade: What a generated answer is worth beside the right one, in 0..1.
        in_mean: Whether it is one of the domain's sets in AdaptLLM's papers, of which the mean is taken.
    """

    title: str
    source: Source
    tables: tuple[str, ...] = ("test",)
    ask: Callable[[Row], Iterator[Question]] | None = None
    measure: Measure = ACCURACY
    grade: Callable[[str, str], float] = same_text
    in_mean: bool = True

    def load(self, data_dir: Path | None, limit: int | Literal["all"] = "all") -> list[Question]:
        """Return the questions, or ``limit`` of them spread evenly over the set.

        Raises:
            DataError: A table is not there, or its columns are not known.
        """
        if data_dir is None:
            raise DataError(f"data: {self.title} is read locally only; give --data-dir with {self.source.folder}")
        rows = [row for table in self.tables for row in read_rows(self.source, table, data_dir)]
        questions = [question for row in rows for question in self._questions(row)]
        if not questions:
            raise DataError(f"data: {self.source.folder} holds no question")
        step = len(questions) / limit if limit != "all" and limit < len(questions) else 1.0
        return [questions[int(number * step)] for number in range(int(len(questions) / step + 1e-9))]

    def score(self, questions: Sequence[Question], given: Sequence[str]) -> tuple[float, list[float]]:
        """Return the set's score, and per question what its answer is worth: 1 where it is the right one."""
        if len(questions[0].options) == 1:
            worth = [self.grade(text, question.answer) for text, question in zip(given, questions, strict=True)]
            return sum(worth) / len(worth), worth
        worth = [float(text == question.answer) for text, question in zip(given, questions, strict=True)]
        return self.measure.score(questions, given), worth

    def chance(self, questions: Sequence[Question]) -> float | None:
        """Return what guessing scores: the commonest answer each time, or any; ``None`` where answers are written."""
        if len(questions[0].options) == 1:
            return None
        commonest = Counter(question.answer for question in questions).most_common(1)[0][0]
        always = self.measure.score(questions, [commonest] * len(questions))
        at_random = sum(1 / len(each.options) for each in questions) / len(questions)
        return max(always, at_random) if self.measure is ACCURACY else always

    def _questions(self, row: Row) -> Iterator[Question]:
        if "gold_index" in row:
            yield Question(row["input"], tuple(row["options"]), int(row["gold_index"]), str(row.get("class_id", "")))
        elif "input" in row and "label" in row:
            label = row["label"]
            yield Question(row["input"], (label if isinstance(label, str) else str(label[0]),), 0)
        elif self.ask is not None:
            yield from self.ask(row)
        else:
            raise DataError(
                f"data: {self.source.folder} has columns {', '.join(row)}; "
                f"{self.title} needs input, options and gold_index, or input and label"
            )


def answer(model: Any, tokenizer: Any, questions: Sequence[Question], max_length: int, batch_size: int) -> list[str]:
    """Return the model's answer to each question: the likeliest of its options, or the first line that it writes.

    Args:
        model: A causal language model, in evaluation mode.
        tokenizer: Its tokenizer.
        questions: All of one kind.
        max_length: Tokens of prompt and answer together; of a longer prompt the beginning is cut.
        batch_size: Sequences per forward pass.
    """
    if len(questions[0].options) == 1:
        return _generate(model, tokenizer, questions, max_length, batch_size)
    examples = [
        encode(tokenizer, question.prompt, option, max_length) for question in questions for option in question.options
    ]
    sums = negative_log_likelihoods(model, examples, tokenizer.pad_token_id, batch_size)
    means = iter(
        total / sum(label != IGNORE for label in example.labels)  # type: ignore[union-attr]
        for total, example in zip(sums, examples, strict=True)
    )
    answers = []
    for question in questions:
        each = [next(means) for _ in question.options]
        answers.append(question.options[each.index(min(each))])
    return answers


def encode(tokenizer: Any, prompt: str, option: str, max_length: int) -> Example:
    """Return a prompt and one answer as an example whose loss is on the answer only."""
    after = list(tokenizer(" " + option, add_special_tokens=False)["input_ids"])[: max_length // 2]
    before = encode_prompt(tokenizer, prompt, max_length - len(after))
    return Example([*before, *after], [IGNORE] * len(before) + after)


def encode_prompt(tokenizer: Any, prompt: str, length: int) -> list[int]:
    """Return a prompt's last ``length`` tokens, after the tokens with which the tokenizer begins every text."""
    start = [token for token in tokenizer("")["input_ids"] if token != tokenizer.eos_token_id]
    tokens = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    return [*start, *tokens[len(start) - length :]]


def _generate(model: Any, tokenizer: Any, questions: Sequence[Question], max_length: int, batch_size: int) -> list[str]:
    new_tokens = min(NEW_TOKENS, max_length // 2)
    prompts = [encode_prompt(tokenizer, question.prompt, max_length - new_tokens) for question in questions]
    outputs = generate(model, tokenizer, prompts, new_tokens, batch_size)
    return [tokenizer.decode(tokens, skip_special_tokens=True).strip().partition("\n")[0] for tokens in outputs]


# --- the sets in their original columns ------------------------------------------------------------------------------


def _local(folder: str, licence: str) -> Source:
    return Source(folder=f"text/{folder}", licence=licence)


def _pubmedqa(row: Row) -> Iterator[Question]:
    options = ("yes", "no", "maybe")
    prompt = f"Abstract: {' '.join(row['contexts'])}\nQuestion: {row['question']}\nAnswer (yes, no or maybe):"
    yield Question(prompt, options, options.index(row["final_decision"]))


CHEMPROT = {
    "ACTIVATOR": "activator",
    "AGONIST": "agonist",
    "AGONIST-ACTIVATOR": "agonist and activator",
    "AGONIST-INHIBITOR": "agonist and inhibitor",
    "ANTAGONIST": "antagonist",
    "DOWNREGULATOR": "downregulator",
    "INDIRECT-DOWNREGULATOR": "indirect downregulator",
    "INDIRECT-UPREGULATOR": "indirect upregulator",
    "INHIBITOR": "inhibitor",
    "PRODUCT-OF": "product",
    "SUBSTRATE": "substrate",
    "SUBSTRATE_PRODUCT-OF": "substrate and product",
    "UPREGULATOR": "upregulator",
}


def _chemprot(row: Row) -> Iterator[Question]:
    prompt = f"Sentence: {row['text']}\nTo the gene marked [[ ]], the chemical marked << >> is a(n):"
    yield Question(prompt, tuple(CHEMPROT.values()), list(CHEMPROT).index(row["label"]))


def _medqa(row: Row) -> Iterator[Question]:
    letters = sorted(key for key, option in row["options"].items() if option is not None)
    options = tuple(row["options"][letter] for letter in letters)
    yield Question(f"Question: {row['question']}\nAnswer:", options, letters.index(row["answer_idx"]))


def _medmcqa(row: Row) -> Iterator[Question]:
    yield Question(f"Question: {row['question']}\nAnswer:", tuple(row["choices"]), int(row["answer"]))


SENTIMENTS = ("negative", "neutral", "positive")


def _fpb(row: Row) -> Iterator[Question]:
    yield Question(f"News: {row['sentence']}\nThe sentiment of this news is", SENTIMENTS, int(row["label"]))


def _fiqa(row: Row) -> Iterator[Question]:
    score = float(row["sentiment_score"])
    right = 1 if abs(score) <= NEUTRAL else 0 if score < 0 else 2
    yield Question(f"Text: {row['sentence']}\nThe sentiment towards {row['target']} is", SENTIMENTS, right)


ENTITIES = {"PER": "person", "ORG": "organisation", "LOC": "location", "MISC": "other name"}


def _entities(row: Row) -> Iterator[Question]:
    """Ask for the kind of every named entity: a run of tokens with the same tag."""
    tokens, tags = [*row["tokens"], ""], [*row["ner_tags"], "O"]
    start = 0
    for place in range(1, len(tags)):
        if tags[place] == tags[place - 1]:
            continue
        kind = tags[start].rpartition("-")[2]
        if kind in ENTITIES:
            text, name = " ".join(tokens[:-1]), " ".join(tokens[start:place])
            prompt = f"Text: {text}\nIn this text, {name} is a(n)"
            yield Question(prompt, tuple(ENTITIES.values()), list(ENTITIES).index(kind))
        start = place


BIOMED: Mapping[str, QuestionSet] = {
    "pubmedqa": QuestionSet("PubMedQA", _local("biomed/eval/pubmedqa", "MIT"), ask=_pubmedqa),
    "chemprot": QuestionSet("ChemProt", _local("biomed/eval/chemprot", "research use"), ask=_chemprot),
    "usmle": QuestionSet("USMLE", _local("biomed/eval/medqa_usmle", "MIT"), ask=_medqa),
    "medmcqa": QuestionSet(
        "MedMCQA", _local("biomed/eval/medmcqa", "MIT"), ("validation",), ask=_medmcqa, in_mean=False
    ),
    "rct": QuestionSet("RCT", _local("biomed/eval/rct", "see AdaptLLM/medicine-tasks")),
    "mqp": QuestionSet("MQP", _local("biomed/eval/mqp", "see AdaptLLM/medicine-tasks")),
}
FINANCE: Mapping[str, QuestionSet] = {
    "fpb": QuestionSet(
        "FPB", _local("finance/eval/fpb", "CC BY-NC-SA 3.0"), ("sentences_50agree",), _fpb,
        WEIGHTED_F1,
    ),
    "fiqa_sa": QuestionSet(
        "FiQA SA", _local("finance/eval/fiqa_sa", "FiQA challenge"), ("headline_test", "post_test"), _fiqa,
        WEIGHTED_F1,
    ),
    "ner": QuestionSet(
        "NER", _local("finance/eval/ner_sec", "CC BY 3.0"), ask=_entities,
        measure=Measure(
            "F1",
            f"Of the kind of each name: {WEIGHTED_F1.help} Of AdaptLLM's table, whose answers are generated: mean F1 "
            "of a sentence's names and kinds.",
            weighted_f1,
        ),
        grade=entity_f1,
    ),
    "headline": QuestionSet(
        "Headline", _local("finance/eval/headline", "see AdaptLLM/finance-tasks"),
        measure=Measure(
            "weighted F1", f"Mean over the nine kinds of question (class_id) of: {WEIGHTED_F1.help}", weighted_f1
        ),
    ),
    "convfinqa": QuestionSet(
        "ConvFinQA", _local("finance/eval/convfinqa", "see AdaptLLM/finance-tasks"),
        measure=Measure(
            "exact match",
            "Share of generated answers whose first line has a number within 0.01 of the right one (5% is 0.05).",
        ),
        grade=same_number,
    ),
}  # fmt: skip
