"""What is documented is true: nothing is left out, examples run, commands parse, links lead somewhere."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import click
import pluggy
import pytest

import harness
from harness import cli
from harness.contract import hookspecs
from harness.contract.method import Method, MethodTraits, attaches
from harness.contract.record import Record, State
from harness.contract.task import Task
from harness.contract.trial import Trial
from harness.planning.registry import build_registry
from harness.planning.suite import Suite, build_suite
from harness.testing import ALL_CHECKS, check_method
from harness_leaderboard.command import WithRoots

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
ATTACHED = [check.__name__ for check in ALL_CHECKS if check.__name__.startswith("check_attached_")]
HOOKS = {name: value for name, value in vars(hookspecs).items() if name.startswith("harness_")}


class Block(NamedTuple):
    """A fenced block of code."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    found, lines = [], page.read_text(encoding="utf-8").splitlines()
    start, language = None, ""
    for number, line in enumerate(lines, 1):
        fence = re.match(r"\s*```(\w*)\s*$", line)
        if fence and start is None:
            start, language = number, fence[1]
        elif fence and start is not None:
            text = textwrap.dedent("\n".join(lines[start : number - 1]))
            found.append(Block(page.relative_to(ROOT).as_posix(), start, language, text))
            start = None
    assert start is None, f"{page}: the block of line {start} is not closed"
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]


def of_language(language: str, page: str = "") -> list[Block]:
    found = [each for each in BLOCKS if each.language == language and each.page.startswith(page)]
    assert found, f"no {language} block in {page or 'any page'}"
    return found


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def in_first_column(page: str) -> set[str]:
    """Return every `name` in the first cell of a table's row."""
    cells = re.findall(r"^\|([^|]*)\|", text_of(page), re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def public(owner: type) -> set[str]:
    names = {*vars(owner), *getattr(owner, "__annotations__", {})}
    return {name for name in names if not name.startswith("_")}


# --- nothing is left out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented_with_its_exact_signature(name):
    signature = str(inspect.signature(HOOKS[name])).replace("'", "")
    assert f"### `{name}{signature}`\n" in text_of("docs/hooks.md")


def test_no_hook_is_documented_that_is_not_there():
    assert set(re.findall(r"^### `(\w+)\(", text_of("docs/hooks.md"), re.MULTILINE)) == set(HOOKS)


def test_every_field_of_a_record_and_of_a_trial_is_documented():
    fields = {each.name for kind in (Record, Trial) for each in dataclasses.fields(kind)} - {"counts", "cost"}
    assert fields - in_first_column("docs/results.md") - {"counts", "cost"} == set()


def test_every_number_of_a_record_is_documented():
    from harness.results.frame import COSTS, COUNTS

    text = text_of("docs/results.md")
    assert [name for name in (*COSTS, *COUNTS) if f"`{name}`" not in text] == []


def test_every_state_and_exit_code_is_documented():
    text = text_of("docs/results.md")
    codes = {0, 1, 2, cli.TRACKING_INCOMPLETE, cli.TRIALS_FAILED, cli.INTERRUPTED}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)} == codes
    assert {state.value for state in State} <= in_first_column("docs/results.md")


def test_every_key_of_a_suite_is_documented_with_its_default():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) ?\|", text_of("docs/suites.md"), re.MULTILINE))
    known = [each for each in dataclasses.fields(Suite) if each.name != "words"]
    assert set(rows) == {each.name for each in known}
    for each in known:
        if literal := re.fullmatch(r"`(.*)`", rows[each.name]):
            value = tomllib.loads(f"value = {literal[1]}")["value"]
            assert (tuple(value) if isinstance(value, list) else value) == each.default


def test_every_part_of_a_method_is_documented():
    text = text_of("docs/methods.md")
    traits = {each.name for each in dataclasses.fields(MethodTraits)}
    hooks = {name for name in public(Method) if inspect.isfunction(vars(Method).get(name))}
    assert traits <= in_first_column("docs/methods.md")
    assert [name for name in hooks if name not in text] == []


def test_every_part_of_a_task_is_documented():
    assert public(Task) - in_first_column("docs/tasks.md") == set()


def test_every_page_is_in_the_index():
    index = text_of("docs/index.md")
    assert [
        page.name for page in (ROOT / "docs").glob("*.md") if page.name != "index.md" and f"({page.name})" not in index
    ] == []


# --- examples run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", of_language("python"), ids=lambda block: block.place)
def test_python_examples_are_python(block):
    compile(block.text, block.place, "exec")


@pytest.mark.parametrize("block", of_language("python", "docs/hooks.md"), ids=lambda block: block.place)
def test_hook_examples_are_accepted_as_plugins(block, tmp_path, capsys, make_example_call):
    namespace: dict[str, Any] = {"__name__": "example", "__file__": str(tmp_path / "example.py")}
    exec(compile(block.text, block.place, "exec", dont_inherit=True), namespace)
    (name,) = [name for name in namespace if name in HOOKS]
    plugin = type("Plugin", (), {name: staticmethod(namespace[name])})
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    manager.check_pending()
    (result,) = getattr(manager.hook, name)(**make_example_call[name]) or [None]
    if HOOKS[name].__annotations__["return"] == "None":
        assert result is None
        assert capsys.readouterr().out.strip()
    else:
        assert isinstance(result, str | list)


@pytest.fixture
def make_example_call() -> dict[str, dict[str, Any]]:
    """Return arguments for each hook."""
    trial = Trial(
        task="uuid",
        scale="smoke",
        recipe={"steps": 2},
        model="nano",
        model_revision="0",
        method="lora",
        config={"r": 8},
        budget="lora:r=8",
        budget_parameters=100,
        adapter_parameters=100,
        learning_rate=1e-3,
        seed=0,
        precision="float32",
    )
    record = Record(
        trial=trial,
        state=State.COMPLETE,
        metrics={"accuracy": 0.5},
        main_metric="accuracy",
        higher_is_better=True,
        started_at="2026-01-01T00:00:00+00:00",
        finished_at="2026-01-01T00:00:01+00:00",
    )
    given: dict[str, Any] = {
        "trial": trial,
        "record": record,
        "records": [record],
        "results": "results",
        "trials": [trial],
        "environment": {"sweep": "first"},
        "step": 1,
        "metrics": {"train/loss": 2.0},
    }
    return {name: {each: given[each] for each in inspect.signature(hook).parameters} for name, hook in HOOKS.items()}


def test_the_example_method_passes_the_kit(monkeypatch):
    (block,) = [each for each in of_language("python", "docs/methods.md") if "class DownUp(" in each.text]
    module: Any = ModuleType("harness_down_up")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    exec(compile(block.text, block.place, "exec"), vars(module))
    states: dict[str, str] = {}
    check_method(module.DownUp, lambda result: states.update({result.check: result.state}))
    assert {check for check, state in states.items() if state != "passed"} == set(ATTACHED), states


@pytest.mark.parametrize("block", of_language("python", "docs/method-examples.md"), ids=lambda block: block.place)
def test_the_other_kinds_of_methods_pass_the_kit(block, monkeypatch):
    module: Any = ModuleType("harness_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(block.text, block.place, "exec"), vars(module))
    own = [thing for thing in vars(module).values() if inspect.isclass(thing) and thing.__module__ == module.__name__]
    (method,) = [thing for thing in own if issubclass(thing, Method)]
    states: dict[str, str] = {}
    check_method(method, lambda result: states.update({result.check: result.state}))
    assert "passed" in states.values()
    assert "failed" not in states.values(), states
    if attaches(method):
        assert states["check_budget_knob_is_monotone"] == "passed"
        left_out = {each for each in ATTACHED if states[each] != "passed"}
        assert left_out == {"check_attached_merge_preserves_output"}  # a prompt is no weight


def test_the_check_command_proves_a_method(capsys):
    assert cli.app(["check", "lora"], standalone_mode=False) == 0
    assert "check_trainable_count_matches_formula" in capsys.readouterr().out


def test_the_example_task_runs_as_a_strangers_plugin(tmp_path):
    (block,) = [each for each in of_language("python", "docs/tasks.md") if "class Backwards(" in each.text]
    site = tmp_path / "site"
    information = site / "harness_backwards-0.1.0.dist-info"
    information.mkdir(parents=True)
    (site / "harness_backwards.py").write_text(block.text, encoding="utf-8")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: harness-backwards\nVersion: 0.1.0\n")
    (information / "entry_points.txt").write_text("[harness]\nbackwards = harness_backwards\n")
    command = (
        "run --methods lora --task backwards --steps 3 --seeds 1 --workers 1 --device cpu --no-mlflow --quiet "
        "--results out"
    )
    done = subprocess.run(
        [sys.executable, "-m", "harness", *command.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    from harness.results.store import Store

    (record,) = Store(str(tmp_path / "out")).records()
    assert record.state is State.COMPLETE
    assert record.trial.plugins["task"].startswith("harness-backwards==0.1.0+sha256."), "plain files, not a built wheel"
    assert len(record.items["answer_nll"]) == 32


@pytest.mark.parametrize("block", of_language("toml"), ids=lambda block: block.place)
def test_toml_examples_are_toml_and_suites_are_suites(block):
    data = tomllib.loads(block.text)
    if block.page == "docs/suites.md":
        suite = build_suite(data)
        registry = build_registry()
        assert set(suite.tasks) <= set(registry.tasks)
        assert {name.partition(":")[0] for name in suite.methods} <= set(registry.methods)


# --- commands parse ---------------------------------------------------------------------------------------------------


def commands() -> list[tuple[str, list[str]]]:
    """Return every ``harness ...`` of the pages, in blocks of shell commands and in `code`, without placeholders."""
    found = []
    for block in of_language("sh"):
        for part in re.split(r"&&|\n", block.text):
            words = shlex.split(part, comments=True)
            if words and Path(words[0]).name == "harness":
                found.append((block.place, words[1:]))
    for page in PAGES:
        prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for text in re.findall(r"`harness ([a-z][^`]*)`", prose):
            if not re.search(r"[A-Z]{3}|\.\.\.", text):
                found.append((page.name, shlex.split(text)))
    return found


@pytest.mark.parametrize(
    ("place", "words"), commands(), ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_documented_commands_parse(place, words):
    """Every option and subcommand exists, and every named method and task, except the pages' own examples."""
    command: click.Command = cli.app
    context = command.make_context("harness", [], resilient_parsing=True)
    while isinstance(command, click.Group) and words:
        name, command, words = command.resolve_command(context, words)
        assert command is not None, f"{place}: no command {name!r}"
        if not words and command.params and any(p.required for p in command.params):
            return  # named in prose, without its arguments
        is_group = isinstance(command, click.Group) and not (words and words[0].startswith("-"))
        is_group = is_group and not (isinstance(command, WithRoots) and words and words[0] not in command.commands)
        context = command.make_context(
            name, [] if is_group else list(words), parent=context, resilient_parsing=is_group
        )
        if not is_group:
            break
    if context.command.name not in ("run", "plan"):
        return
    registry = build_registry()
    mine = {"down-up", "backwards", "first.toml"}
    for name in re.split(r",(?!\w+=)", context.params.get("methods") or "lora"):
        assert name.partition(":")[0] in {*registry.methods, *registry.families, "all", "everything", *mine}, place
    for name in (context.params.get("tasks") or "uuid").split(","):
        assert name in {*registry.tasks, *mine}, place


def test_the_readme_has_the_two_commands():
    """The one that runs the main job, and the one that ``.ci/run`` reads and runs."""
    text = text_of("README.md")
    pattern = r"<!-- {} command -->\n```sh\n(.*)\n```\n<!-- end -->"
    (main,), (test,) = (re.findall(pattern.format(name), text) for name in ("main", "test"))
    assert "pip install -c constraints.txt ." in main
    assert "harness run --methods all --task uuid" in main
    assert "pip install -c constraints.txt tox" in test
    assert test.endswith("tox")
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


# --- links lead somewhere ---------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


def test_public_names_in_the_pages_exist():
    named = {name for page in PAGES for name in re.findall(r"`harness\.([A-Z]\w+)", page.read_text(encoding="utf-8"))}
    assert named <= set(harness.__all__)


# --- the site ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_site_builds_offline_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path], cwd=ROOT, text=True,
        capture_output=True, timeout=240, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    catalogue = (tmp_path / "catalogue.html").read_text(encoding="utf-8")
    methods = len(build_registry().methods)
    for fact in ("paper", "trained parameters of a layer", "at the start", "merging", "status"):
        assert catalogue.count(f"<td>{fact}</td>") == methods, fact
    assert "harness data show" in (tmp_path / "cli.html").read_text(encoding="utf-8")
    assert 'id="harness.contract.method.Method"' in (tmp_path / "reference.html").read_text(encoding="utf-8")
    assert 'href="results/index.html"' in (tmp_path / "first-results.html").read_text(encoding="utf-8")
    assert "glue/cola" in (tmp_path / "results" / "index.html").read_text(encoding="utf-8")
    pages = [page for page in tmp_path.glob("*.html") if page.name != "404.html"]
    for page in pages:
        loaded = re.findall(r'(?:<script[^>]*src|<link[^>]*rel="stylesheet"[^>]*href)="(http[^"]+)"', page.read_text())
        assert loaded == [], "a page asks another server for something"


def test_every_page_is_on_the_site():
    site = text_of("mkdocs.yml")
    assert [page.name for page in PAGES if page.parent.name == "docs" and page.name not in site] == []
