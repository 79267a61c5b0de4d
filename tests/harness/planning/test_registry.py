"""One door for built-ins and strangers: what an entry point may name, and what is said of what is broken."""

from __future__ import annotations

import signal
import sys
import time
from importlib import metadata
from pathlib import Path
from textwrap import dedent

import pytest

from harness.errors import PluginLoadError, UsageError
from harness.planning import registry as registry_module
from harness.planning.patience import in_time
from harness.planning.registry import build_registry

HOOK = "from harness import hookimpl\n@hookimpl\n"
METHOD = """
from harness import Method, MethodTraits, hookimpl

class {title}(Method):
    name = "{name}"
    paper = "https://example.org"
    traits = MethodTraits(budget_knob=None)

@hookimpl
def harness_register_methods():
    return [{title}]
"""
TASK = """
from harness import Metric, Recipe, Task, hookimpl

class Count(Task):
    name = "count/one"
    main_metric = "score"
    metrics = {"score": Metric("Score", "fraction", True, "A score.")}
    recipes = {"smoke": Recipe(steps=2)}

@hookimpl
def harness_register_tasks():
    return [Count]
"""
SIZED = """
from dataclasses import dataclass
from harness import Method, MethodConfig, MethodTraits, hookimpl, setting

@dataclass(frozen=True)
class SizedConfig(MethodConfig):
    r: int = setting(8, "size", minimum=1)
    scale: float = setting(1.0, "factor")

class Sized(Method):
    name = "sized"
    paper = "https://example.org"
    Config = SizedConfig
    traits = MethodTraits(budget_knob='r')

@hookimpl
def harness_register_methods():
    return [Sized]
"""


@pytest.fixture
def distribute(tmp_path, monkeypatch):
    """Return a function that lays out a stranger's installed distribution: files, and entry points in metadata."""

    def lay_out(entry_points: str, distribution: str = "stranger", version: str = "1.2", **files: str) -> Path:
        site = tmp_path / distribution
        for name, text in files.items():
            path = site / f"{name.replace('__SLASH__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text))
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[harness]\n{dedent(entry_points)}")
        monkeypatch.syspath_prepend(site)
        return site

    yield lay_out
    for name in [name for name in sys.modules if name.startswith("stranger")]:
        del sys.modules[name]


def test_built_ins_come_through_the_entry_points_of_this_distribution():
    registry = build_registry()
    distribution = metadata.distribution("peft-harness")
    assert {origin.distribution for origin in registry.origins.values()} == {distribution.name}
    assert registry.origins["method", "lora"].pin == f"peft-harness=={distribution.version}"
    assert list(registry.methods) == sorted(registry.methods)
    assert build_registry(block=["peft-harness"]).methods == {}


def test_hook_harness_register_methods(distribute):
    site = distribute("mine = stranger_module", stranger_module=METHOD.format(title="Mine", name="mine"))
    registry = build_registry()
    assert registry.method("mine").__name__ == "Mine"
    assert "lora" in registry.methods
    origin = registry.origins["method", "mine"]
    assert (origin.plugin, origin.pin, origin.file) == ("mine", "stranger==1.2", str(site / "stranger_module.py"))


def test_hook_harness_register_tasks(distribute):
    distribute("mine = stranger_task", stranger_task=TASK)
    assert build_registry().task("count/one").main_metric == "score"


def test_hook_harness_register_suites(distribute):
    code = """
    from pathlib import Path
    from harness import hookimpl

    @hookimpl
    def harness_register_suites():
        return [Path(__file__).with_name("weekly.toml")]
    """
    site = distribute("mine = stranger_suite", stranger_suite=code)
    assert build_registry().suite("weekly") == site / "weekly.toml"


def test_of_a_package_every_submodule_is_a_plugin_of_its_own(distribute):
    site = distribute(
        "mine = stranger_pack",
        stranger_pack__SLASH____init__="",
        stranger_pack__SLASH__a=METHOD.format(title="A", name="a"),
        stranger_pack__SLASH__deep__SLASH____init__="",
        stranger_pack__SLASH__deep__SLASH__b=METHOD.format(title="B", name="b"),
    )
    registry = build_registry()
    assert registry.origins["method", "a"].plugin == "mine:a"
    assert registry.origins["method", "b"].plugin == "mine:deep.b"
    assert "a" not in build_registry(block=["mine:a"]).methods
    (site / "stranger_pack" / "c.py").write_text(METHOD.format(title="C", name="c"))  # a new method is one new file
    assert "c" in build_registry().methods


@pytest.mark.parametrize("block", ["mine", "mine:bad", "stranger"])
def test_a_plugin_that_does_not_load_is_named_and_can_be_blocked(distribute, block, monkeypatch):
    distribute(
        "mine = stranger_pack",
        stranger_pack__SLASH____init__="",
        stranger_pack__SLASH__bad="import a_module_that_is_not_there",
        stranger_pack__SLASH__good=METHOD.format(title="Good", name="good"),
    )
    with pytest.raises(PluginLoadError, match=r"'mine:bad' .*stranger 1\.2.*that_is_not_there.*--block mine:bad"):
        build_registry()
    assert ("good" in build_registry(block=[block]).methods) == (block == "mine:bad")
    monkeypatch.setenv("HARNESS_BLOCK", f"uuid,{block}")
    assert "lora" in build_registry().methods


@pytest.mark.parametrize("code", ["raise ValueError('on purpose')", "def broken(:", "import sys; sys.no_such_name"])
def test_a_subpackage_that_does_not_load_is_named_and_can_be_blocked(distribute, code):
    distribute(
        "mine = stranger_pack", stranger_pack__SLASH____init__="", stranger_pack__SLASH__sub__SLASH____init__=code
    )
    with pytest.raises(PluginLoadError, match=r"'mine:sub'.*--block mine:sub"):
        build_registry()
    assert "lora" in build_registry(block=["mine:sub"]).methods


def test_an_entry_point_that_names_nothing_is_refused(distribute):
    distribute("mine = stranger_absent")
    with pytest.raises(PluginLoadError, match=r"'mine' of stranger 1\.2.*stranger_absent.*--block mine"):
        build_registry()


def test_an_entry_point_that_names_no_module_is_refused(distribute):
    distribute("mine = stranger_module:Mine", stranger_module=METHOD.format(title="Mine", name="mine"))
    with pytest.raises(PluginLoadError, match="must name a module or a package"):
        build_registry()


def test_an_entry_point_without_any_hook_is_mentioned(distribute, caplog):
    distribute("mine = stranger_empty", stranger_empty="x = 1")
    build_registry()
    assert "'mine' of stranger 1.2" in caplog.text


def test_blocking_what_is_not_there_is_mentioned(caplog):
    build_registry(block=["methods:lora", "trakcers:mlflow"])
    (record,) = caplog.records
    assert record.getMessage().startswith("nothing is called 'trakcers:mlflow' that could be blocked; plugins: ")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            HOOK + "def harness_register_method(): return []",
            r"stranger_module.py implements 'harness_register_method', which is no hook "
            r"\(did you mean harness_register_methods\?\)",
        ),
        (HOOK + "def harness_sweep_ended(): pass", r"is no hook \(did you mean harness_sweep_finished\?\)"),
        (HOOK + "def zzz(): pass", r"'zzz', which is no hook \(known: harness_register_methods, .*harness_summarize"),
        (
            "from harness import hookimpl\n@hookimpl(specname='harness_sumarize')\ndef anything(): pass",
            r"'harness_sumarize', which is no hook \(did you mean harness_summarize\?\)",
        ),
        ("def harness_register_methods(): return []", "not marked as a hook.*@hookimpl"),
        (HOOK + "def harness_register_methods(colour): return []", "colour"),
        (HOOK + "def harness_register_methods(): return 1 / 0", "ZeroDivisionError"),
        (HOOK + "def harness_register_methods(): return [int]", "subclass of harness.Method"),
        (METHOD.format(title="Mine", name="all"), "whose name is 'all'"),
        (METHOD.format(title="Mine", name="Two Words"), "whose name is 'Two Words'"),
        (METHOD.format(title="Mine", name="mine").replace("paper =", "page ="), "without paper"),
        (HOOK + "def harness_register_methods(): pass", r"harness_register_methods\(\) returns None; return a list"),
        (HOOK + "def harness_register_methods(): return int", r"returns <class 'int'>; return a list of methods"),
        (HOOK + "def harness_register_suites(): yield 1 / 0", "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_hook_names_the_plugin_and_the_way_out(distribute, code, said):
    distribute("mine = stranger_module", stranger_module=code)
    with pytest.raises(PluginLoadError, match=f"(?s)'mine'.*{said}") as caught:
        build_registry()
    assert caught.value.exit_code == 2
    assert "lora" in build_registry(block=["mine"]).methods


def test_a_hook_that_only_newer_versions_have_may_be_optional(distribute):
    code = METHOD.format(title="Mine", name="mine") + "@hookimpl(optionalhook=True)\ndef harness_tea_time(): pass"
    distribute("mine = stranger_module", stranger_module=code)
    assert "mine" in build_registry().methods


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ('r: int = setting(8, "size", minimum=1)', "r: int", "SizedConfig has no default for r; .*harness.setting"),
        ("setting(8,", "setting(0,", "the defaults of SizedConfig are refused: .*r=0 is not allowed; .*int >= 1"),
        ("setting(8,", "setting('8',", "the default of SizedConfig.r is '8'; make it of type int"),
        ("setting(8,", "setting(True,", "the default of SizedConfig.r is True; make it of type int"),
        ("setting(1.0,", "setting(1,", None),  # as Python's typing has it, an int is a float
        ("@dataclass(frozen=True)", "", "SizedConfig declares r, scale but is no dataclass; write @dataclass"),
        ("Config = SizedConfig", "Config = SizedConfig()", r"Config is SizedConfig\(.*make it a frozen dataclass"),
        ("Config = SizedConfig", "Config = None", "Config is None; make it a frozen dataclass"),
        ("MethodTraits(budget_knob='r')", "MethodTraits", "traits is <class .*write traits = MethodTraits"),
        ("knob='r'", "knob='rank'", "budget_knob is 'rank', which is no int field of SizedConfig; .* one of r,"),
        ("knob='r'", "knob='scale'", "budget_knob is 'scale', which is no int field of SizedConfig"),
        ("knob='r'", "knob=None", None),
    ],
)
def test_a_method_that_is_badly_declared_is_refused(distribute, was, becomes, said):
    assert was in SIZED
    distribute("mine = stranger_module", stranger_module=SIZED.replace(was, becomes, 1))
    if said is None:
        assert "sized" in build_registry().methods
        return
    with pytest.raises(PluginLoadError, match=rf"(?s)'mine' .*stranger_module.py, stranger==1.2.*'sized'.*{said}") as e:
        build_registry()
    assert "--block mine" in str(e.value)
    assert e.value.exit_code == 2
    assert "lora" in build_registry(block=["mine"]).methods


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ('main_metric = "score"', 'main_metric = "accuracy"', r"main_metric is 'accuracy'; .*\(score\)"),
        (
            'Metric("Score", "fraction", True, "A score.")',
            '"Score"',
            r"metrics\['score'\] is 'Score'; .*harness.Metric",
        ),
        ("Recipe(steps=2)", "{'steps': 2}", r"recipes\['smoke'\] is {'steps': 2}; .*harness.Recipe"),
        ('{"smoke": Recipe(steps=2)}', "[Recipe(steps=2)]", r"recipes is \[Recipe.*make it a dict"),
    ],
)
def test_a_task_that_is_badly_declared_is_refused(distribute, was, becomes, said):
    assert was in TASK
    distribute("mine = stranger_module", stranger_module=TASK.replace(was, becomes))
    with pytest.raises(PluginLoadError, match=rf"'mine' .*stranger_module.py, stranger==1.2.*'count/one'.*{said}"):
        build_registry()
    assert "uuid" in build_registry(block=["mine"]).tasks


@pytest.mark.parametrize("package", [False, True])
def test_a_module_that_exits_when_imported_is_reported(distribute, package):
    code = "import sys; sys.exit(0)"
    if package:
        distribute("mine = stranger_pack", stranger_pack__SLASH____init__="", stranger_pack__SLASH__bad=code)
    else:
        distribute("mine = stranger_module", stranger_module=code)
    with pytest.raises(PluginLoadError, match=r"'mine.*stranger 1\.2.*SystemExit: 0.*--block mine"):
        build_registry()
    assert "lora" in build_registry(block=["mine"]).methods


def test_two_methods_of_one_name_are_refused_naming_both_files(distribute):
    distribute("a = stranger_a", "stranger-a", stranger_a=METHOD.format(title="A", name="same"))
    distribute("b = stranger_b", "stranger-b", stranger_b=METHOD.format(title="B", name="same"))
    with pytest.raises(PluginLoadError, match=r"'same'.*stranger_a\.py.*stranger_b\.py.*--block b"):
        build_registry()
    assert build_registry(block=["b"]).method("same").__name__ == "A"


def test_two_plugins_of_one_name_are_refused_naming_both_files(distribute):
    distribute("same = stranger_a", "stranger-a", stranger_a=METHOD.format(title="A", name="a"))
    distribute("same = stranger_b", "stranger-b", stranger_b=METHOD.format(title="B", name="b"))
    with pytest.raises(PluginLoadError, match=r"'same'.*stranger_a\.py.*stranger_b\.py.*--block stranger-a"):
        build_registry()
    assert "b" in build_registry(block=["stranger-a"]).methods


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("method", "lorra", "no method is called 'lorra'; did you mean lora"),
        ("task", "uid", "no task is called 'uid'; did you mean uuid"),
        ("method", "zzz", "no method is called 'zzz'; known: adalora, "),
        ("suite", "zzz", "no suite is called 'zzz'"),
        ("suite", "zzz.toml", "'zzz.toml' does not exist"),
    ],
)
def test_an_unknown_name_gets_near_misses(kind, name, said):
    with pytest.raises(UsageError, match=said):
        getattr(build_registry(), kind)(name)


@pytest.mark.parametrize("when", ["at import", "when asked"])
def test_a_plugin_that_raises_something_unusual_is_named(distribute, when):
    odd = "class Odd(BaseException):\n    pass\n"
    asked = f"{HOOK}def harness_register_methods():\n    raise Odd('no method')\n"
    distribute("mine = stranger_odd", stranger_odd=odd + ("raise Odd('no method')\n" if when == "at import" else asked))
    with pytest.raises(PluginLoadError, match=r"(?s)mine.*Odd: no method.*--block mine"):
        build_registry()


@pytest.mark.parametrize("when", ["at import", "when asked"])
def test_a_plugin_that_hangs_is_named_and_ended(distribute, when, monkeypatch):
    monkeypatch.setattr(registry_module, "in_time", lambda: in_time(0.5))
    hang = "    while True:\n        try: time.sleep(60)\n        except Exception: pass\n"
    asked = f"import time\n{HOOK}def harness_register_methods():\n{hang}"
    distribute("mine = stranger_slow", stranger_slow=f"import time\nif True:\n{hang}" if when == "at import" else asked)
    with pytest.raises(PluginLoadError, match=r"(?s)mine.*TookTooLong: it did not come back within 0.5 seconds"):
        build_registry(block=["peft-harness"])


def test_somebody_else_s_alarm_still_rings():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    old = signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with in_time(30):
            pass
        time.sleep(0.5)
        assert rung == [True]
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *old)
