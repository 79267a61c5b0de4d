"""Question sets of a domain: prompts with the answers to choose from, scored by likelihood, zero-shot.

A model chooses the answer whose tokens it finds likeliest *on average*: the summed log-likelihood over the number of
tokens, so that long answers are not at a disadvantage. (Brown et al., "Language models are few-shot learners",
arXiv:2005.14165, section 2.4, and AdaptLLM score so.) A set that asks for a number is answered by greedy decoding.

Each set is read either in its original columns or, where its folder holds rows with ``input``, ``options`` and
``gold_index``, in AdaptLLM's filled-in form (Cheng et al., "Adapting large language models via reading comprehension",
arXiv:2309.09530). The prompts for original columns are this project's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness import IGNORE, DataError, Example, Source, generate, negative_log_likelihoods, read_rows

Row = Mapping[str, Any]
NEUTRAL = 0.1  # sentiment scores up to this size, in -1..1, count as neutral
NEW_TOKENS = 16  # of a generated answer


class Question(NamedTuple):
    """A prompt, the answers to choose from, and the place of the right one. One option only: to be generated."""

    prompt: str
    options: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class QuestionSet:
    """Where one set is and how its rows become questions.

    Attributes:
        title: As papers write it.
        source: Folder below the data folder; these sets are read locally only.
        tables: File names without ending, read one after the other.
        ask: Turns a row of original columns into questions; ``None``: only AdaptLLM's form is known.
    """

    title: str
    source: Source
    tables: tuple[str, ...] = ("test",)
    ask: Callable[[Row], Iterator[Question]] | None = None

    def load(self, data_dir: Path | None, limit: int = 0) -> list[Question]:
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
        step = len(questions) / limit if limit and limit < len(questions) else 1.0
        return [questions[int(number * step)] for number in range(int(len(questions) / step + 1e-9))]

    def _questions(self, row: Row) -> Iterator[Question]:
        if "gold_index" in row:
            yield Question(row["input"], tuple(row["options"]), int(row["gold_index"]))
        elif self.ask is not None:
            yield from self.ask(row)
        elif "input" in row and "label" in row:
            yield Question(row["input"], (str(row["label"]),), 0)
        else:
            raise DataError(
                f"data: {self.source.folder} has columns {', '.join(row)}; "
                f"{self.title} needs input, options and gold_index"
            )


def answer(model: Any, tokenizer: Any, questions: Sequence[Question], max_length: int, batch_size: int) -> list[float]:
    """Return 1.0 per question answered rightly, else 0.0.

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
    scores = []
    for question in questions:
        each = [next(means) for _ in question.options]
        scores.append(float(each.index(min(each)) == question.right))
    return scores


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


def _generate(
    model: Any, tokenizer: Any, questions: Sequence[Question], max_length: int, batch_size: int
) -> list[float]:
    """Compare the first line of the greedy answer with the right one, as numbers where both are."""
    prompts = [encode_prompt(tokenizer, question.prompt, max_length - NEW_TOKENS) for question in questions]
    outputs = generate(model, tokenizer, prompts, NEW_TOKENS, batch_size)
    lines = [tokenizer.decode(tokens, skip_special_tokens=True).strip().partition("\n")[0] for tokens in outputs]
    return [float(_same(line, question.options[0])) for line, question in zip(lines, questions, strict=True)]


def _same(given: str, right: str) -> bool:
    def number(text: str) -> float | str:
        text = text.strip().rstrip(".").replace(",", "").replace("$", "").removesuffix("%").strip()
        try:
            return float(text)
        except ValueError:
            return text.lower()

    return number(given) == number(right)


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
    "medmcqa": QuestionSet("MedMCQA", _local("biomed/eval/medmcqa", "MIT"), ("validation",), ask=_medmcqa),
    "rct": QuestionSet("RCT", _local("biomed/eval/rct", "see AdaptLLM/medicine-tasks")),
    "mqp": QuestionSet("MQP", _local("biomed/eval/mqp", "see AdaptLLM/medicine-tasks")),
}
FINANCE: Mapping[str, QuestionSet] = {
    "fpb": QuestionSet("FPB", _local("finance/eval/fpb", "CC BY-NC-SA 3.0"), ("sentences_50agree",), ask=_fpb),
    "fiqa_sa": QuestionSet(
        "FiQA SA", _local("finance/eval/fiqa_sa", "FiQA challenge"), ("headline_test", "post_test"), ask=_fiqa
    ),
    "ner": QuestionSet("NER", _local("finance/eval/ner_sec", "CC BY 3.0"), ask=_entities),
    "headline": QuestionSet("Headline", _local("finance/eval/headline", "see AdaptLLM/finance-tasks")),
    "convfinqa": QuestionSet("ConvFinQA", _local("finance/eval/convfinqa", "see AdaptLLM/finance-tasks")),
}
