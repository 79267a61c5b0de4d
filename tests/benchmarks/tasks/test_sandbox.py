"""What a model wrote is judged from outside, and nothing it does gets out: attacks, cheats, with and without root."""

# ruff: noqa: E501 - programs on one line each

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from textwrap import indent

import pytest

from harness_benchmarks.tasks.instructeval import sandbox
from harness_benchmarks.tasks.instructeval.sandbox import Outcome, isolation, refusal, run_tests

confined = pytest.mark.skipif(bool(refusal()), reason=refusal() or "confined")

# Each is the body of a function that ends with a statement which is reached only if the attack worked.
BREAK_OUTS = {
    "the password file": "open('/etc/shadow').read()",
    "a secret of the user's": "open({secret!r}).read()",
    "a link to the secret": "os.symlink({secret!r}, 'mine')\nopen('mine').read()",
    "a hard link to the secret": "os.link({secret!r}, 'mine')",
    "the user's folder": "os.listdir({folder!r})",
    "other processes": "assert [each for each in os.listdir('/proc') if each.isdigit()]",
    "the parent's memory": "open(f'/proc/{{os.getppid()}}/mem', 'rb').read(1)",
    "its own environment of old": "assert b'SECRET' in open('/proc/self/environ', 'rb').read()",
    "the environment": "assert 'SECRET_TOKEN' in os.environ",
    "a connection": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)",
    "a datagram": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))",
    "a Unix socket": "import socket\nsocket.socket(socket.AF_UNIX)",
    "a netlink socket": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "a pair of sockets": "import socket\nsocket.socketpair()",
    "a child": "os.fork()",
    "a thread": "import threading\nthreading.Thread(target=print).start()",
    "another program": "os.execv(sys.executable, [sys.executable, '-c', ''])",
    "a shell": "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'true'], check=True)",
    "a signal to the parent": "os.kill(os.getppid(), 0)",
    "a signal to all": "os.kill(-1, 0)",
    "a signal to its group": "os.killpg(0, 0)",
    "a signal through a file's owner": "import fcntl\nfcntl.fcntl(3, fcntl.F_SETOWN, 1)",
    "a signal of its choice through a file": "import fcntl\nfcntl.fcntl(3, fcntl.F_SETSIG, 9)",
    "asynchronous signals": "import fcntl\nfcntl.fcntl(3, fcntl.F_SETFL, os.O_ASYNC)",
    "a lease": "import fcntl\nfcntl.fcntl(os.open('x', os.O_CREAT), fcntl.F_SETLEASE, fcntl.F_RDLCK)",
    "tracing": "call(101, 0, 0, 0, 0)",
    "another process's memory": "call(310, os.getppid(), 0, 0, 0, 0, 0)",
    "a mount": "call(165, b'none', b'/scratch', b'tmpfs', 0, 0)",
    "namespaces": "call(272, 0x10000000)",
    "another's namespace": "call(308, 3, 0)",
    "a handle on the parent": "call(434, os.getppid(), 0)",
    "io_uring": "call(425, 8, ctypes.create_string_buffer(120))",
    "a program for the kernel": "call(321, 0, ctypes.create_string_buffer(64), 64)",
    "keys": "call(250, 0, -3, 0)",
    "performance counters": "call(298, ctypes.create_string_buffer(128), 0, -1, -1, 0)",
    "shared memory of System V": "call(29, 0, 4096, 0o1666)",
    "messages of System V": "call(68, 0, 0o1666)",
    "anonymous files": "os.memfd_create('x')",
    "another root": "os.chroot('/scratch')",
    "a device": "os.mknod('null', 0o020666, os.makedev(1, 3))",
    "the machine's memory": "open('/dev/mem', 'rb')",
    "the kernel's log": "open('/dev/kmsg', 'rb')",
    "typing for the user": "import fcntl, termios\nfcntl.ioctl(2, termios.TIOCSTI, b'x')",
    "another user": "os.setuid(0)",
    "permissions": "open('x', 'w').close()\nos.chmod('x', 0o4777)",
    "a file at the root": "open('/evil', 'w').write('x')",
    "a file beside the library": "open(os.path.join(os.path.dirname(os.__file__), 'evil.py'), 'w').write('x')",
    "the code that confines": "open('/confined.py', 'a').write('x')",
    "a large file": "open('x', 'wb').write(bytes(4 << 20))",
    "many files": "for n in range(64): open(str(n), 'wb').write(bytes(1 << 20))",
    "much memory": "bytearray(2 << 30)",
    "much shared memory": "import mmap\nmmap.mmap(-1, 2 << 30)",
    "higher limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "more files open": "[os.dup(0) for _ in range(100)]",
    "files left open": "assert [n for n in range(3, 64) if regular(n)]",
    "the host's name": "assert os.uname().nodename == {host!r}",
}
ATTACK = """
import ctypes, os, stat, sys

def call(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), *arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def regular(number):
    try:
        return not stat.S_ISFIFO(os.fstat(number).st_mode) and os.readlink(f'/dev/fd/{{number}}')
    except OSError:
        return False

def f():
{body}
    return 'ESCAPED'
"""
ESCAPED = "def check(f):\n    assert f() == 'ESCAPED'\n"

# None of these computes x + 3.
CHEATS = {
    "equal to everything": "class E:\n    def __eq__(self, other): return True\ndef f(x): return E()",
    "a number equal to everything": "class E(int):\n    def __eq__(self, other): return True\ndef f(x): return E()",
    "a text equal to everything": "class E(str):\n    def __eq__(self, other): return True\ndef f(x): return E()",
    "a list equal to everything": "class E(list):\n    def __eq__(self, other): return True\ndef f(x): return E()",
    "a dict equal to everything": "class E(dict):\n    def __eq__(self, other): return True\ndef f(x): return E()",
    "a float that lies": "class E(float):\n    def hex(self): return 'x'\n    def __eq__(self, o): return True\n"
    "def f(x): return E(1)",
    "leaving": "import sys\ndef f(x): sys.exit(0)",
    "leaving at once": "import os\nos._exit(0)",
    "leaving in a call": "import os\ndef f(x): os._exit(0)",
    "no assertions": "import builtins\nbuiltins.AssertionError = ValueError\ndef f(x): return 1",
    "another check": "import builtins\nbuiltins.check = lambda f: None\ndef check(f): pass\ndef f(x): return 1",
    "a verdict on every pipe": "import os\ndef f(x):\n    for n in range(64):\n        try: os.write(n, b'{\"passed\": true, \"reason\": \"\"}\\n')\n        except OSError: pass\n    return 1",
    "a verdict and then silence": "import os, time\nfor n in range(3, 64):\n    try: os.write(n, b'{\"passed\": true, \"reason\": \"\"}\\n')\n    except OSError: pass\nos._exit(0)",
    "frames": "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        frame.f_globals.update(check=lambda f: None, passed=True)\n        frame.f_locals.update(found={'passed': True, 'reason': ''}, answer={})\n        frame = frame.f_back\n    return 1",
    "the judge's objects": "import gc\ndef f(x):\n    for each in gc.get_objects():\n        if isinstance(each, dict) and 'check' in each: return 5\n    return 1",
    "the tests": "import glob\ndef f(x):\n    text = ''.join(open(each).read() for each in glob.glob('/*.json') + glob.glob('/scratch/*'))\n    return x + 3 if 'assert' + ' f(2)' in text else 1",
    "another encoder": "import sys\nmain = sys.modules['__main__']\nmain.encode = lambda value, depth=0: {'judge': True}\ndef f(x): return 1",
    "an end for later": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 1",
    "an endless iterator": "import itertools\ndef f(x): return itertools.count()",
    "a nest": "def f(x):\n    a = []\n    for _ in range(100000): a = [a]\n    return a",
    "an error of its own": "class Equal(Exception):\n    def __str__(self): return '5'\ndef f(x): raise Equal",
    "nothing": "",
    "no program": "def f(x: return 5",
}  # fmt: skip
CHEAT_TESTS = "def check(f):\n    assert f(2) == 5\n"


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory):
    """What an attack would reach: a file with a secret, a server, this machine's name."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "secret").write_text("SECRET")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), 1).close()  # it is there for us
        host = os.uname().nodename
        yield {"secret": str(folder / "secret"), "folder": str(folder), "port": port, "host": host}
    assert (folder / "secret").read_text() == "SECRET"


def attack(body, surroundings):
    return ATTACK.format(body=indent(body.format(**surroundings), "    "))


@confined
def test_there_are_more_than_thirty_attacks_and_each_would_show():
    assert len(BREAK_OUTS) + len(CHEATS) > 60
    assert run_tests(ATTACK.format(body="    pass"), ESCAPED, "f").passed
    assert run_tests("def f(x): return x + 3", CHEAT_TESTS, "f").passed


@confined
@pytest.mark.parametrize("name", BREAK_OUTS)
def test_nothing_gets_out(name, surroundings, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "SECRET")
    outcome = run_tests(attack(BREAK_OUTS[name], surroundings), ESCAPED, "f")
    assert not outcome.passed
    assert outcome.reason
    assert "SyntaxError" not in outcome.reason
    assert "NameError" not in outcome.reason


@confined
@pytest.mark.parametrize("name", CHEATS)
def test_nobody_passes_without_the_right_answer(name):
    outcome = run_tests(CHEATS[name], CHEAT_TESTS, "f", time_limit_seconds=3)
    assert not outcome.passed
    assert outcome.reason


DRIVER = """
import json, sys
import sandbox
assert not sandbox.refusal(), sandbox.refusal()
jobs = json.load(sys.stdin)
assert sandbox.run_tests("def f(x): return x + 3", jobs["cheat tests"], "f").passed
for name, (program, tests) in jobs["jobs"].items():
    outcome = sandbox.run_tests(program, tests, "f", time_limit_seconds=3)
    print(json.dumps([name, outcome.passed, outcome.reason]))
"""


@confined
def test_nothing_gets_out_without_privileges_either(surroundings, tmp_path):
    """All of it again as nobody, with the system's interpreter, which nobody may read."""
    system = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if os.getuid() != 0:
        pytest.skip("the tests run without privileges already")
    if system is None or subprocess.run([system, "-c", "import sys; assert sys.version_info >= (3, 11)"]).returncode:
        pytest.skip("no Python 3.11 that other users may run; tried /usr/bin and /usr/local/bin")
    place = Path("/tmp") / f"sandbox-{os.getpid()}"
    place.mkdir(mode=0o755)
    try:
        for source in (sandbox.__file__, Path(sandbox.__file__).with_name("confined.py")):
            shutil.copy(source, place)
        shutil.copy(importlib.util.find_spec("pyseccomp").origin, place)
        jobs = {name: (attack(body, surroundings), ESCAPED) for name, body in BREAK_OUTS.items()}
        jobs |= {name: (program, CHEAT_TESTS) for name, program in CHEATS.items()}
        done = subprocess.run(
            [system, "-c", DRIVER], cwd=place, user=65534, group=65534, extra_groups=[], capture_output=True, text=True,
            input=json.dumps({"jobs": jobs, "cheat tests": CHEAT_TESTS}), env={"PATH": "/usr/bin:/bin"}, check=False,
        )  # fmt: skip
    finally:
        shutil.rmtree(place)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {name for name, *_ in found} == set(jobs)
    assert [name for name, passed, _ in found if passed] == []


@confined
def test_ordinary_programs_run():
    libraries = "math, re, collections, itertools, functools, heapq, random, typing, string, hashlib, datetime, json"
    program = (
        f"import {libraries}\ndef f(x):\n    print(x)\n    open('a.txt', 'w').write(x)\n    return open('a.txt').read()"
    )
    assert run_tests(program, "def check(f):\n    assert f('x') == 'x'\n", "f") == Outcome(True)


@confined
def test_values_cross_as_what_they_are():
    values = (
        "[1, -10**40, 1.5, float('inf'), True, None, 'ä\\ud800', b'x', 2j, (1, (2,)), {1, 2}, frozenset({3}), "
        "{(1, 2): [3]}, range(3), -0.0, bytearray(b'y'), {1: {}}]"
    )
    tests = (
        f"values = {values}\ndef check(f):\n    for value in values:\n"
        "        assert f(value) == value, value\n        assert type(f(value)) is type(value)\n"
        "    assert f(float('nan')) != f(float('nan'))\n    assert str(f(-0.0)) == '-0.0'\n    assert f(x=3) == 3\n"
    )
    assert run_tests("def f(x): return x", tests, "f") == Outcome(True)


@confined
def test_iterators_changed_arguments_and_errors_cross_too():
    program = (
        "import collections\ndef f(x):\n    if x == 'no': raise KeyError(x)\n    if x == 'count': return collections.Counter('aa')\n"
        "    x.append(4)\n    return map(str, x)\n"
    )
    tests = (
        "def check(f):\n    given = [1]\n    assert list(f(given)) == ['1', '4']\n    assert given == [1, 4]\n"
        "    assert f('count') == {'a': 2}\n"
        "    try: f('no')\n    except KeyError: return\n    assert False\n"
    )
    assert run_tests(program, tests, "f") == Outcome(True)


@confined
def test_tests_may_use_what_the_prompt_defines_and_it_is_the_prompt_s():
    tests = "def check(f):\n    assert helper(f(2)) == 5\n"
    helpers = "def helper(x):\n    return x + 1\ndef f(x):\n    '''What the model was asked for.'''\n"
    assert run_tests("def f(x): return 2 * x", tests, "f", helpers) == Outcome(True)
    assert not run_tests("def helper(x): return 5\ndef f(x): return 0", tests, "f", helpers).passed


@confined
@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(60)"])
def test_endless_programs_are_ended(program):
    start = time.monotonic()
    assert not run_tests(program, CHEAT_TESTS, "f", time_limit_seconds=1).passed
    assert time.monotonic() - start < 1 + sandbox.START_SECONDS + 5


@confined
def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(Path("/dev/fd").iterdir())
    run_tests("open('left', 'w').write('x')\ndef f(x): return x + 3", CHEAT_TESTS, "f")
    assert list(tmp_path.iterdir()) == []
    assert set(Path("/dev/fd").iterdir()) == before


@confined
def test_the_isolation_is_named():
    assert "bubblewrap" in isolation()
    assert "seccomp" in isolation()


@pytest.mark.parametrize(("missing", "said"), [("bwrap", "without bubblewrap"), ("pyseccomp", "without libseccomp")])
def test_what_cannot_be_isolated_is_refused_with_the_reason(missing, said, monkeypatch):
    real = shutil.which
    if missing == "bwrap":
        monkeypatch.setattr(shutil, "which", lambda name, **_: None if name == "bwrap" else real(name))
    else:
        monkeypatch.setitem(sys.modules, "pyseccomp", None)
        monkeypatch.setattr(shutil, "which", lambda name, **_: "/usr/bin/bwrap")
        monkeypatch.setattr(sandbox, "_filter", sandbox._filter.__wrapped__)
    assert said in sandbox.refusal.__wrapped__()
