"""Whatever is typed or read, it works or gets a message: no foreign exception from any parser."""

# ruff: noqa: PT017 - which inputs raise is what is not known here

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.cli.options import parse_rate, parse_seeds
from harness.contract.record import Record, loads
from harness.data.rows import uniform_rows
from harness.errors import HarnessError, RecordError
from harness.planning.budget import budget_parameters
from harness.planning.plan import resolve_methods
from harness.planning.registry import build_registry
from harness.planning.retry import parse_states
from harness.planning.suite import build_suite, read_suite

REGISTRY = build_registry(block=["trackers:mlflow"])
LAYERS = {"a": (8, 16), "b": (16, 16)}
# In CI a few thousand inputs in all; the rest in the slow tests.
AMOUNTS = [pytest.param(400, id="some"), pytest.param(8000, id="many", marks=pytest.mark.exhaustive)]

BIG = ["9" * 30, "1" + "0" * 400, "9" * 5000, "1e400", "-1e400", "nan", "inf", "-0", "0x10", "1_000", "٣", "1e-400"]
NASTY = [
    "",
    " ",
    "\0",
    "\ud800",
    "\u202e",
    "..",
    "/etc/passwd",
    "a" * 10_000,
    "[" * 5000,
    "{" * 5000,
    "%s",
    "{0}",
    "null",
]
WORDS = ["lora", "mora", "full", "all", "r", "alpha", "dropout", "operator", "true", "auto", "k", "m", "b", "%"]
PIECES = st.sampled_from([*BIG, *NASTY, *WORDS, ":", "=", ",", ":r=", ",alpha=", "+", "-", ".", "/"])
TEXTS = st.one_of(
    st.text(max_size=30),
    st.lists(PIECES, max_size=6).map("".join),
    st.lists(st.one_of(st.sampled_from(WORDS), st.text(string.digits + ":=,.%kmb+-", max_size=4)), max_size=8).map(
        "".join
    ),
)
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.just(10**400), st.just(-(10**30)), st.floats(),
        st.sampled_from(NASTY), st.text(max_size=10),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)  # fmt: skip


def fuzz(amount, strategy, call, *allowed):
    """Call something with many inputs; only our own errors, whose text can be printed, are allowed."""

    @settings(max_examples=amount, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def check(value):
        try:
            call(value)
        except (HarnessError, *allowed) as error:
            assert str(error)

    check()


@pytest.mark.parametrize("amount", AMOUNTS)
def test_budgets(amount):
    fuzz(amount, TEXTS, lambda text: budget_parameters(text, LAYERS, 1000, REGISTRY))


@pytest.mark.parametrize("amount", AMOUNTS)
def test_methods(amount):
    fuzz(amount, st.one_of(TEXTS, TEXTS.map(lambda t: f"lora:{t}"), TEXTS.map(lambda t: f"mora:operator={t}")),
         lambda text: resolve_methods([text], REGISTRY))  # fmt: skip


@pytest.mark.parametrize("amount", AMOUNTS)
def test_numbers_seeds_and_states(amount):
    def call(text):
        for parse in (parse_rate, parse_seeds, parse_states):
            try:
                parse(text)
            except HarnessError as error:
                assert str(error)

    fuzz(amount, TEXTS, call)


@pytest.mark.parametrize("amount", AMOUNTS)
def test_suites_of_any_values(amount):
    keys = st.sampled_from(
        ["methods", "tasks", "budgets", "seeds", "learning_rates", "tune", "tolerance", "recipe", "x"]
    )
    tables = st.dictionaries(keys, VALUES, max_size=5).map(lambda table: {"tasks": ["uuid"], **table})
    fuzz(amount, tables, build_suite)


@pytest.mark.parametrize("amount", AMOUNTS)
def test_suite_files(amount, tmp_path):
    lines = st.lists(st.tuples(st.sampled_from(["tasks", "seeds", "tune", "[recipe]", "x"]), PIECES), max_size=5)
    texts = st.one_of(st.text(), lines.map(lambda all: "\n".join(f"{a} = {b}" for a, b in all)))

    def call(text):
        path = tmp_path / "suite.toml"
        path.write_bytes(text.encode(errors="surrogatepass"))
        read_suite(path)

    fuzz(amount, texts, call)


@pytest.mark.parametrize("amount", AMOUNTS)
def test_records(amount, make_record):
    good = make_record().to_json()
    places = st.sampled_from([(key,) for key in good] + [("trial", key) for key in good["trial"]])

    def spoil(change):
        (place, value) = change
        data = json.loads(json.dumps(good))
        inner = data
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        return data

    fuzz(amount, st.tuples(places, VALUES).map(spoil), Record.from_json, RecordError)
    fuzz(amount // 4, VALUES, Record.from_json, RecordError)


@pytest.mark.parametrize("amount", AMOUNTS)
def test_texts_of_records(amount, make_record):
    good = make_record().dumps()

    def cut(change):
        (start, length, text) = change
        return good[:start] + text + good[start + length :]

    positions = st.integers(0, len(good))
    texts = st.one_of(PIECES, st.tuples(positions, st.integers(0, 40), PIECES).map(cut))
    fuzz(amount, texts, lambda text: Record.from_json(loads(text)), ValueError)


@pytest.mark.parametrize("amount", AMOUNTS)
def test_data_files(amount, tmp_path):
    rows = st.lists(st.one_of(VALUES.map(lambda value: json.dumps({"a": value})), PIECES), max_size=4)

    def call(change):
        (ending, lines) = change
        path = Path(tmp_path) / f"table{ending}"
        path.write_bytes("\n".join(lines).encode(errors="surrogatepass"))
        uniform_rows([path])

    fuzz(amount, st.tuples(st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".txt"]), rows), call)
