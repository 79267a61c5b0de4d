"""What tests of the built-in tasks share: small tables in every task's folder layout, and small random encoders.

Tests that ask for particular rows write their own.
"""

from __future__ import annotations

import http.server
import json
import string
import threading
from collections import ChainMap
from types import SimpleNamespace

import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors
from torch.nn import functional

from harness.bases import resolve

TEXTS = [f"In {1900 + n} the {n}th company sold {7 * n} ships, and {n % 9} of them sank." for n in range(400)]
COMMONSENSE = {
    "boolq": ("true", "false"),
    "piqa": ("solution1", "solution2"),
    "social_i_qa": ("answer1", "answer3"),
    "hellaswag": ("ending1", "ending4"),
    "winogrande": ("option1", "option2"),
    "ARC-Easy": ("answer1", "answer4"),
    "ARC-Challenge": ("answer2", "answer3"),
    "openbookqa": ("answer2", "answer4"),
}


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """A data folder with every table that a built-in task reads, a few rows each."""
    root = tmp_path_factory.mktemp("tables")
    made = (glue(), corpora(), domain_questions(), commonsense(), math(), instructeval(), code(), judged())
    for name, rows in ChainMap(*made).items():
        write(root / f"{name}.jsonl", rows)
    (root / "wikitext/wikitext-2-raw").mkdir(parents=True)
    (root / "wikitext/wikitext-2-raw/wiki.test.raw").write_text("".join(f" {text} \n" for text in TEXTS[:20]))
    return root


@pytest.fixture(scope="session")
def nano():
    """The shipped base model and its tokenizer."""
    folder = resolve("nano")
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(
        folder
    )


class Oracle(torch.nn.Module):
    """A model that writes a given text, whatever it is asked."""

    generation_config = None

    def __init__(self, tokenizer, answer):
        super().__init__()
        self.ids = torch.tensor(tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id])

    def parameters(self):
        return iter([torch.zeros(1)])

    def generate(self, input_ids, return_dict_in_generate=False, **_):
        written = torch.cat([input_ids, self.ids.expand(len(input_ids), -1)], 1)
        if not return_dict_in_generate:
            return written
        likely = functional.one_hot(self.ids, 300).float()[:, None].expand(-1, len(input_ids), -1)
        return SimpleNamespace(sequences=written, logits=tuple(likely))


def write(path, rows):
    """Write a local table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def glue():
    columns = {
        "cola": ("sentence",),
        "sst2": ("sentence",),
        "mrpc": ("sentence1", "sentence2"),
        "stsb": ("sentence1", "sentence2"),
        "rte": ("sentence1", "sentence2"),
        "qqp": ("question1", "question2"),
        "mnli": ("premise", "hypothesis"),
        "qnli": ("question", "sentence"),
    }
    result = {}
    for name, fields in columns.items():
        labels = {"mnli": (0, 1, 2), "stsb": (0.0, 1.8, 3.2, 5.0)}.get(name, (0, 1))
        scored = ["validation_matched", "validation_mismatched"] if name == "mnli" else ["validation"]
        for first, split in enumerate(("train", *scored)):
            texts = TEXTS[100 * first :][: 40 if split == "train" else 9]
            result[f"glue/{name}/{split}"] = [
                {**{field: text[5 * place :] for place, field in enumerate(fields)}, "label": labels[n % len(labels)]}
                for n, text in enumerate(texts)
            ]
    return result


def corpora():
    documents = [" ".join(TEXTS[n : n + 4]) for n in range(len(TEXTS))]  # one in a hundred is held out of training
    splits = {"train": documents, "validation": [f"Once more: {text}" for text in documents[:20]]}
    return {
        f"text/{name}/{split}": [{"text": text} for text in texts]
        for name in ("c4", "biomed", "finance")
        for split, texts in splits.items()
    }


def domain_questions():
    filled_in = {"input": "Is it so?", "options": ["yes", "no"], "gold_index": 1}
    biomed = {
        "pubmedqa/test": {"question": "Does it?", "contexts": ["It did.", "Twice."], "final_decision": "maybe"},
        "chemprot/test": {"text": "<< X >> and [[ Y ]].", "label": "PRODUCT-OF"},
        "medqa_usmle/test": {"question": "Which?", "options": {"A": "a", "B": "b", "C": "c"}, "answer_idx": "B"},
        "medmcqa/validation": {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 3},
        "rct/test": filled_in,
        "mqp/test": filled_in,
    }
    sentiment = {"sentence": "Profit rose.", "target": "Acme", "sentiment_score": 0.4}
    finance = {
        "fpb/sentences_50agree": {"sentence": "Profit rose.", "label": 2},
        "fiqa_sa/headline_test": sentiment,
        "fiqa_sa/post_test": sentiment,
        "ner_sec/test": {"tokens": ["Ann", "left", "Acme"], "ner_tags": ["I-PER", "O", "I-ORG"]},
        "headline/test": filled_in,
        "convfinqa/test": {"input": "How much is 2.5 times 5?", "label": "12.5"},
    }
    return {
        f"text/{domain}/eval/{name}": [row, row]
        for domain, sets in {"biomed": biomed, "finance": finance}.items()
        for name, row in sets.items()
    }


def commonsense_row(name, split, n):
    answer = COMMONSENSE[name][n % 2]
    return {
        "instruction": f"{name} {split} {n}?",
        "input": "",
        "output": f"the correct answer is {answer}",
        "answer": answer,
    }


def commonsense():
    return {
        f"commonsense/{name}/{split}": [commonsense_row(name, split, n) for n in range(count)]
        for name in COMMONSENSE
        for split, count in {"train": 30, "test": 3}.items()
    }


def sums(first, count):
    return [
        {"question": f"What is {n} plus 1?", "answer": f"It is {n}+1=<<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"}
        for n in range(first, first + count)
    ]


def problems(count):
    return [{"problem": f"Solve $x={n}$.", "solution": rf"So $\boxed{{{n}}}$."} for n in range(count)]


def math():
    return {
        "math/gsm8k/train": sums(0, 90),
        "math/gsm8k/test": sums(100, 4),
        "math/math/test": problems(4),
    }


def alpaca(count):
    return [
        {"instruction": f"Say {n}.", "input": "loudly" if n % 2 else "", "output": f"It is {n}."} for n in range(count)
    ]


def mmlu(split, count):
    return [
        {"question": f"{split} {subject} {n}?", "subject": subject, "choices": list("pqrs"), "answer": n % 4}
        for subject in ("abstract_algebra", "virology")
        for n in range(count)
    ]


def bbh():
    return [
        {"task": task, "idx": n, "input": f"{task} {n} is", "target": "True" if n % 2 else "(A)"}
        for task in ("navigate", "snarks")
        for n in range(6)
    ]


def instructeval():
    drop = [
        {"idx": n, "passage": f"There were {n}.", "question": "How many?", "answer": f"{n}", "ref_answers": [f"{n}"]}
        for n in range(10)
    ]
    humaneval = [
        {
            "task_id": f"HumanEval/{n}",
            "prompt": "def f(x):\n",
            "entry_point": "f",
            "test": f"def check(f):\n    assert f({n}) == {n + 1}\n",
        }
        for n in range(2)
    ]
    return {
        "instructeval/alpaca/train": alpaca(30),
        **{f"instructeval/mmlu/{split}": mmlu(split, 5) for split in ("dev", "val", "test")},
        "instructeval/bbh/test": bbh(),
        "instructeval/drop/validation": drop,
        "instructeval/humaneval/test": humaneval,
    }


def code():
    problems = {
        "f(1) == 2": "Write a function f to return the number after the one given.",
        "f(2) == 4": "Write a function f to return twice the number that is given to it.",
    }
    rows = [
        {"task_id": n, "text": text, "code": "def f(x): ...", "test_list": [f"assert {test}"], "test_setup_code": ""}
        for n, (test, text) in enumerate(problems.items())
    ]
    return {
        "code/codefeedback/train": [{"query": f"Print {n}.", "answer": f"```\nprint({n})\n```"} for n in range(40)],
        **{f"code/mbpp/{split}": rows for split in ("validation", "test")},
    }


def judged():
    questions = [{"turns": [f"What is {n} + 4?", f"and then {n}?"], "reference": [f"It is {n + 4}."]} for n in range(2)]
    outputs = [{"instruction": f"Name {n}.", "output": f"Theirs {n}."} for n in range(2)]
    return {
        **{f"judged/{name}/train": alpaca(30) for name in ("wizardlm", "ultrafeedback")},
        "judged/mt-bench/question": questions,
        "judged/alpaca-eval/eval": outputs,
    }


class StubJudge:
    """A server of this machine that speaks OpenAI's chat protocol, and says what it is told to."""

    def __init__(self):
        self.says()
        judge = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                key = self.headers.get("Authorization", "")
                judge.bodies.append(body)
                judge.keys.append(key)
                judge.asked.append(text := body["messages"][0]["content"])
                status = judge.refusals.pop(0) if judge.refusals else 200
                said = {"choices": [{"message": {"content": judge.answer(text)}}]} if status == 200 else {"said": key}
                content = json.dumps(said).encode()
                self.send_response(status if self.path == "/v1/chat/completions" else 404)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def says(self, answer=lambda text: "[[7]] [[A]]", refusals=()):
        """Answer so from now on, after refusing with these statuses; forget what was asked."""
        self.answer, self.refusals = answer, list(refusals)
        self.asked, self.bodies, self.keys = [], [], []


@pytest.fixture(scope="session")
def judge():
    stub = StubJudge()
    yield stub
    stub.server.shutdown()
    stub.server.server_close()


class Made:
    """What tests of single tasks make their own tables of, handed over as one fixture: test folders are no packages."""

    Oracle = Oracle
    commonsense_answers = COMMONSENSE
    write = staticmethod(write)
    commonsense_row = staticmethod(commonsense_row)
    sums = staticmethod(sums)
    problems = staticmethod(problems)
    alpaca = staticmethod(alpaca)
    mmlu = staticmethod(mmlu)
    bbh = staticmethod(bbh)


@pytest.fixture(scope="session")
def made():
    """Return the makers of rows and tables, and a model that knows the answer."""
    return Made


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    """Folders with small encoders as they are published: a pretrained body without a head, and a tokenizer."""
    root = tmp_path_factory.mktemp("encoders")
    shape = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    made = {
        "bert": (bert_tokenizer(), transformers.BertConfig),
        "roberta": (roberta_tokenizer(), transformers.RobertaConfig),
        "deberta": (roberta_tokenizer(), transformers.DebertaV2Config),
    }
    numbers = {
        "bert": {},
        "roberta": {"type_vocab_size": 1},
        "deberta": {  # as in version 3
            "type_vocab_size": 0, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8,
            "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False,
        },
    }  # fmt: skip
    for name, (tokenizer, kind) in made.items():
        config = kind(
            **shape, **numbers[name], vocab_size=len(tokenizer), max_position_embeddings=160,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config)
        if name == "bert":  # random ones are too small to matter
            torch.nn.init.normal_(model.embeddings.token_type_embeddings.weight)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in made}


def bert_tokenizer():
    """One piece per character. The second text of a pair has token type 1."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*specials, *letters, *(f"##{letter}" for letter in letters)]
    core = tokenizers.Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def roberta_tokenizer():
    """One piece per byte. There are no token types."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "<mask>"]
    core = tokenizers.Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        cls_token="<s>", sep_token="</s>", mask_token="<mask>", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
