"""Judging Python that a model wrote, from outside. Linux with bubblewrap and libseccomp only; elsewhere it refuses.

Two processes, each in a confinement of its own that this one sets up around ``confined.py``:

* the *program* defines what the model wrote and answers calls of its function;
* the *judge* runs the tests. It calls the function by sending its arguments, and gets back what it returned.

What crosses between them is data (``confined`` says which): the judge compares its own objects, never the program's,
and the program sees neither the tests, nor the judge, nor the pipe that the verdict comes through.

A confinement is an allow-list. Namespaces of its own for users, processes, network, IPC, host name and mounts; a root
that holds nothing but the interpreter, its libraries and an empty scratch of a few megabytes, all else read-only; the
system calls that plain Python needs, and no others; limits on CPU, address space (which counts shared memory too), file
size and open files. It ends with this process, and after a time limit.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import termios
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TIME_LIMIT_SECONDS = 10.0
START_SECONDS = 5.0  # for starting two interpreters on a busy machine, on top of a program's own time
MEMORY_LIMIT_BYTES = 1 << 30
FILE_LIMIT_BYTES = 1 << 20
SCRATCH_LIMIT_BYTES = 8 << 20
OPEN_FILES_LIMIT = 64
SAID_LIMIT_BYTES = 4000
INSIDE = "/confined.py"

# What the interpreter calls while it runs a program of one thread that reads, writes a scratch and computes.
CALLS = (
    "access", "arch_prctl", "brk", "clock_getres", "clock_gettime", "clock_nanosleep", "close", "close_range", "dup",
    "dup2", "dup3", "exit", "exit_group", "faccessat", "faccessat2", "fadvise64", "fdatasync", "fstat", "fstatfs",
    "fsync", "ftruncate", "futex", "getcwd", "getdents64", "getegid", "geteuid", "getgid", "getpid", "getppid",
    "getrandom", "getresgid", "getresuid", "getrlimit", "getrusage", "gettid", "gettimeofday", "getuid", "lseek",
    "lstat", "madvise", "mmap", "mprotect", "mremap", "munmap", "nanosleep", "newfstatat", "open", "openat", "poll",
    "ppoll", "pread64", "preadv", "pselect6", "pwrite64", "read", "readlink", "readlinkat", "readv", "rename",
    "renameat", "renameat2", "restart_syscall", "rmdir", "rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn",
    "sched_getaffinity", "sched_yield", "select", "set_robust_list", "set_tid_address", "sigaltstack", "stat", "statx",
    "sysinfo", "time", "times", "umask", "uname", "unlink", "unlinkat", "write", "writev",
)  # fmt: skip
# And with these values of one argument only: (call, place, value).
CALLS_WITH = (
    ("fcntl", 1, 0), ("fcntl", 1, 1), ("fcntl", 1, 2), ("fcntl", 1, 3), ("fcntl", 1, 1030),  # duplicate; read flags
    ("ioctl", 1, termios.TCGETS), ("ioctl", 1, termios.FIOCLEX), ("ioctl", 1, termios.FIONCLEX),
    ("prlimit64", 2, 0),  # reading limits, not setting them
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        passed: Its tests came to their end without an exception.
        reason: Where they did not: what stopped them.
    """

    passed: bool
    reason: str = ""


@cache
def refusal() -> str:
    """Return why programs cannot be judged on this machine; empty where they can. Tries it once."""
    if platform.system() != "Linux":
        return f"no confinement for model-written code on {platform.system()}; it needs Linux"
    if shutil.which("bwrap") is None:
        return "no confinement for model-written code without bubblewrap; install it (apt install bubblewrap)"
    try:
        _filter()
    except (ImportError, OSError, RuntimeError) as error:
        return (
            f"no confinement for model-written code without libseccomp ({error}); "
            "`pip install 'peft-harness[evaluation]'`, and apt install libseccomp2"
        )
    outcome = run_tests("def f(x):\n    return [x]\n", "def check(f):\n    assert f(1) == [1]\n", "f")
    return "" if outcome.passed else f"model-written code cannot be confined here: {outcome.reason}"


@cache
def isolation() -> str:
    """Return what confines programs here, for the record."""
    done = subprocess.run(["bwrap", "--version"], capture_output=True, text=True, check=False)  # noqa: S607
    return (
        f"{done.stdout.strip()}: user, PID, network, IPC, UTS and mount namespaces, a root with the interpreter alone; "
        f"seccomp: {len(CALLS)} system calls and {len(CALLS_WITH)} with fixed arguments; "
        f"{MEMORY_LIMIT_BYTES >> 20} MB of address space; judged from another process"
    )


def run_tests(
    program: str, tests: str, entry_point: str, helpers: str = "", time_limit_seconds: float = TIME_LIMIT_SECONDS
) -> Outcome:
    """Run tests against a program's function, and return whether they came to their end.

    Args:
        program: Python source that defines the function. Its output is thrown away.
        tests: Python source that defines ``check(function)``.
        entry_point: The function's name.
        helpers: Python source for what else the tests may use; not the program's.
        time_limit_seconds: Of wall-clock time for all of it, and of CPU time for each process, rounded up.
    """
    common = {"entry_point": entry_point, "filter": _filter(), "limits": _limits(time_limit_seconds)}
    with ExitStack() as stack:
        asks, answers, verdict = _pipe(stack), _pipe(stack), _pipe(stack)
        complaint = stack.enter_context(tempfile.TemporaryFile())
        sides = (
            ({"role": "program", "source": program}, asks[0], answers[1], complaint.fileno()),
            ({"role": "judge", "source": tests, "helpers": helpers}, answers[0], asks[1], verdict[1]),
        )
        processes = [
            stack.enter_context(_ended(_launch({**job, **common}, reads, writes, says)))
            for job, reads, writes, says in sides
        ]
        for end in (*asks, *answers, verdict[1]):
            os.close(end)
        said = _read(verdict[0], time.monotonic() + time_limit_seconds + START_SECONDS)
        for process in processes:
            process.kill()
            process.wait()
        complaint.seek(0)
        complained = complaint.read(SAID_LIMIT_BYTES).decode(errors="replace").strip()
    if said is None:
        return Outcome(False, f"took longer than {time_limit_seconds:g} seconds")
    try:
        found = json.loads(said)
        return Outcome(found["passed"] is True, str(found["reason"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        lines = [*said.decode(errors="replace").strip().splitlines(), *complained.splitlines()]
        return Outcome(False, lines[-1] if lines else "the judge ended without a verdict")


class _ended:
    """Ends a process on leaving, whatever happened."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def _pipe(stack: ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        stack.callback(_close, end)
    return ends


def _close(end: int) -> None:
    try:
        os.fstat(end)
    except OSError:
        return
    os.close(end)


def _launch(job: dict[str, Any], reads: int, writes: int, says: int) -> subprocess.Popen[bytes]:
    """Start one confined side, with its job as a file inside."""
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps(job).encode())
        file.seek(0)
        return subprocess.Popen(  # noqa: S603
            [*_confinement(), "--ro-bind-data", str(file.fileno()), "/job.json", "--remount-ro", "/", *_interpreter()],
            stdin=reads,
            stdout=writes,
            stderr=says,
            pass_fds=[file.fileno()],
            env={},
            start_new_session=True,
        )


@cache
def _confinement() -> tuple[str, ...]:
    bwrap = shutil.which("bwrap")
    assert bwrap is not None
    options = [
        bwrap, "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts",
        "--unshare-cgroup-try", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv",
        "--hostname", "confined", "--uid", "65534", "--gid", "65534",
    ]  # fmt: skip
    for place in _places():
        path = Path(place)
        options += ["--symlink", str(path.readlink()), place] if path.is_symlink() else ["--ro-bind", place, place]
    options += ["--dev-bind", "/dev/null", "/dev/null", "--size", str(SCRATCH_LIMIT_BYTES), "--tmpfs", "/scratch"]
    return (*options, "--ro-bind", str(Path(__file__).with_name("confined.py")), INSIDE, "--chdir", "/scratch")


def _places() -> list[str]:
    """Return what an interpreter needs of this machine: itself, its library, shared libraries."""
    own = [os.path.realpath(sys.executable), sysconfig.get_path("stdlib"), sysconfig.get_config_var("LIBDIR") or ""]
    system = ["/usr/lib", "/usr/lib64", "/lib", "/lib64"]
    found = [place for place in dict.fromkeys([*system, *own]) if place and Path(place).exists()]
    return [place for place in found if not any(place.startswith(f"{other}/") for other in found)]


def _interpreter() -> tuple[str, ...]:
    return os.path.realpath(sys.executable), "-I", "-S", "-B", INSIDE


def _limits(seconds: float) -> dict[str, int]:
    return {
        "RLIMIT_CPU": int(-(-seconds // 1)),
        "RLIMIT_AS": MEMORY_LIMIT_BYTES,
        "RLIMIT_FSIZE": FILE_LIMIT_BYTES,
        "RLIMIT_NOFILE": OPEN_FILES_LIMIT,
        "RLIMIT_CORE": 0,
    }


@cache
def _filter() -> str:
    """Return the allow-list of system calls as the kernel wants it; all others fail with EPERM."""
    import pyseccomp  # type: ignore[import-untyped]

    rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ERRNO(errno.EPERM))
    for name in CALLS:
        _allow(rules, name)
    for name, place, value in CALLS_WITH:
        _allow(rules, name, pyseccomp.Arg(place, pyseccomp.EQ, value))
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return base64.b64encode(file.read()).decode()


def _allow(rules: Any, name: str, *conditions: Any) -> None:
    import pyseccomp

    try:
        number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    except (OSError, ValueError, RuntimeError):
        return  # an architecture without it
    if number >= 0:
        rules.add_rule(pyseccomp.ALLOW, name, *conditions)


def _read(pipe: int, end: float) -> bytes | None:
    """Return what comes through a pipe until it is closed; ``None`` if that takes too long."""
    import select

    said = b""
    while len(said) < SAID_LIMIT_BYTES:
        ready, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return None
        piece = os.read(pipe, SAID_LIMIT_BYTES)
        if not piece:
            break
        said += piece
    return said
