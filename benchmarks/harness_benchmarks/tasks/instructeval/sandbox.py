"""Running Python that a model wrote, confined by the kernel. Linux only; elsewhere, or if a step fails, it refuses.

``run_python`` starts this file as a script of its own (``python -I``, empty environment, scratch working directory).
That process confines itself, for good, and only then runs the program inside itself:

1. resource limits: CPU seconds, address space, size of a file, open files, no core dump;
2. Landlock: no change to the file system but plain files in the scratch directory, which is deleted afterwards;
3. seccomp: no sockets (so no network), no new processes or threads, no other programs, no signals to others, no
   tracing, mounts, namespaces or io_uring. Refused calls fail with EPERM.

The parent ends it after a time limit, or when the scratch directory has grown too large; it ends with the parent.
All of it works without privileges and for root. A program passes only if the script reports the random token that it
was given, after the program's last line: leaving early is not passing. What it does not do: hide files from being
read, or withstand a program written to attack the script that runs it.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import secrets
import signal
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TIME_LIMIT_SECONDS = 10.0
MEMORY_LIMIT_BYTES = 1 << 30
FILE_LIMIT_BYTES = 1 << 20
SCRATCH_LIMIT_BYTES = 8 << 20
OPEN_FILES_LIMIT = 64
REFUSED = 97  # exit status of the script where it cannot confine itself

# seccomp: audit architecture and numbers of the system calls that are refused.
_BLOCKED = {
    "x86_64": (0xC000003E, {
        "socket": 41, "socketpair": 53, "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "ptrace": 101,
        "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "tkill": 200, "tgkill": 234, "add_key": 248,
        "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298, "setns": 308,
        "process_vm_readv": 310, "process_vm_writev": 311, "bpf": 321, "execveat": 322, "userfaultfd": 323,
        "pidfd_send_signal": 424,
        "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429,
        "fsopen": 430, "fsmount": 432, "pidfd_open": 434, "clone3": 435, "pidfd_getfd": 438, "mount_setattr": 442,
        "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "prlimit64": 302, "setrlimit": 160, "chmod": 90, "fchmod": 91,
        "fchmodat": 268, "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260, "setxattr": 188, "lsetxattr": 189,
        "fsetxattr": 190, "utimensat": 280, "utime": 132, "utimes": 235, "futimesat": 261,
    }),
    "aarch64": (0xC00000B7, {
        "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "umount2": 39, "mount": 40, "pivot_root": 41, "chroot": 51,
        "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55, "utimensat": 88, "unshare": 97, "ptrace": 117,
        "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "setrlimit": 164, "socket": 198,
        "socketpair": 199, "add_key": 217, "request_key": 218, "keyctl": 219, "clone": 220, "execve": 221,
        "rt_tgsigqueueinfo": 240, "perf_event_open": 241, "prlimit64": 261, "setns": 268, "process_vm_readv": 270,
        "process_vm_writev": 271, "bpf": 280, "execveat": 281, "userfaultfd": 282, "pidfd_send_signal": 424,
        "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429,
        "fsopen": 430, "fsmount": 432, "pidfd_open": 434, "clone3": 435, "pidfd_getfd": 438, "mount_setattr": 442,
    }),
}  # fmt: skip
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 1, 22, 38, 2


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        passed: It ran to its last line without an exception.
        reason: Where it did not: what stopped it.
    """

    passed: bool
    reason: str = ""


@cache
def refusal() -> str:
    """Return why programs cannot be confined on this machine; empty where they can. Tries it once."""
    if platform.system() != "Linux" or platform.machine() not in _BLOCKED:
        here = f"{platform.system()} {platform.machine()}"
        return f"no confinement for model-written code on {here}; it needs Linux on {' or '.join(_BLOCKED)}"
    outcome = run_python("pass")
    return "" if outcome.passed else f"model-written code cannot be confined here: {outcome.reason}"


def run_python(program: str, time_limit_seconds: float = TIME_LIMIT_SECONDS) -> Outcome:
    """Run a program and return whether it came to its end.

    Args:
        program: Python source. Its output is thrown away.
        time_limit_seconds: Of wall-clock time, and of CPU time rounded up.
    """
    token = secrets.token_hex(16)
    job = json.dumps({"program": program, "token": token, "seconds": time_limit_seconds})
    with tempfile.TemporaryDirectory(prefix="harness-sandbox-") as scratch, tempfile.TemporaryFile() as source:
        source.write(job.encode())
        source.seek(0)
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-B", __file__],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=scratch,
            env={},
            start_new_session=True,
        )
        try:
            stopped = _watch(process, Path(scratch), time_limit_seconds)
        finally:
            process.kill()  # it has no children: it may not have any
            said, complaint = process.communicate()
    if stopped:
        return Outcome(False, stopped)
    if said.decode(errors="replace") == token and process.returncode == 0:
        return Outcome(True)
    if process.returncode < 0:
        return Outcome(False, f"ended by signal {-process.returncode}")
    lines = complaint.decode(errors="replace").strip().splitlines()
    return Outcome(False, lines[-1] if lines else f"left early with exit status {process.returncode}")


def _watch(process: subprocess.Popen[bytes], scratch: Path, time_limit_seconds: float) -> str:
    """Wait for the process to end or to reach a limit. Return which limit, or nothing."""
    end = time.monotonic() + time_limit_seconds + 1  # the script's own start is not the program's time
    pause = 0.002
    while True:
        try:
            process.wait(pause)
            return ""
        except subprocess.TimeoutExpired:
            pause = min(0.05, 2 * pause)
        if time.monotonic() > end:
            return f"took longer than {time_limit_seconds:g} seconds"
        if _bytes_in(scratch) > SCRATCH_LIMIT_BYTES:
            return f"wrote more than {SCRATCH_LIMIT_BYTES} bytes"


def _bytes_in(scratch: Path) -> int:
    """Return the size of a folder's files, an empty one counting as a block."""
    size = 0
    for each in scratch.iterdir():
        try:
            size += 4096 + each.lstat().st_size
        except FileNotFoundError:  # the program has just removed it
            continue
    return size


# Below: what the confined process itself runs.


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _limit_resources(seconds: float) -> None:
    import resource

    whole = int(-(-seconds // 1))
    for kind, value in (
        (resource.RLIMIT_CPU, whole),
        (resource.RLIMIT_AS, MEMORY_LIMIT_BYTES),
        (resource.RLIMIT_FSIZE, FILE_LIMIT_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES_LIMIT),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _confine_files(libc: ctypes.CDLL, scratch: str) -> None:
    """Allow no change to the file system but making, writing and removing plain files in the scratch directory."""
    version = _check(libc.syscall(_LANDLOCK_CREATE, None, 0, 1), "Landlock")
    write, remove_dir, remove_file, make_file = 1 << 1, 1 << 4, 1 << 5, 1 << 8
    make_others = sum(1 << bit for bit in (6, 7, 9, 10, 11, 12))  # devices, directories, sockets, fifos, links
    refer, truncate, device = 1 << 13, 1 << 14, 1 << 15  # since versions 2, 3 and 5
    if version < 3:
        raise OSError(f"Landlock version {version} does not cover truncation; it needs Linux 6.2")
    handled = write | remove_dir | remove_file | make_file | make_others | refer | truncate
    handled |= device if version >= 5 else 0
    ruleset = ctypes.create_string_buffer(struct.pack("=Q", handled))
    rules = _check(libc.syscall(_LANDLOCK_CREATE, ruleset, 8, 0), "Landlock ruleset")
    for path, allowed in ((scratch, write | remove_file | make_file | truncate), ("/dev/null", write)):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, place))
        _check(libc.syscall(_LANDLOCK_ADD, rules, 1, rule, 0), "Landlock rule")
        os.close(place)
    _check(libc.syscall(_LANDLOCK_RESTRICT, rules, 0), "Landlock restriction")
    os.close(rules)


def _block_calls(libc: ctypes.CDLL) -> None:
    """Install a seccomp filter: another architecture kills, a blocked call fails with EPERM, the rest goes through."""
    architecture, blocked = _BLOCKED[platform.machine()]
    load, jump_equal, jump_greater, give = 0x20, 0x15, 0x35, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050000 | 1, 0x80000000
    numbers = sorted(set(blocked.values()))
    code = [
        (load, 0, 0, 4),  # the architecture of the call
        (jump_equal, 1, 0, architecture),
        (give, 0, 0, kill),
        (load, 0, 0, 0),  # the number of the call
        (jump_greater, 0, 1, 0x40000000),  # x86-64's second numbering of the same calls
        (give, 0, 0, kill),
    ]
    code += [(jump_equal, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    code += [(give, 0, 0, allow), (give, 0, 0, refuse)]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in code))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(packed)))
    _check(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0), "seccomp")


def _main() -> None:
    job = json.loads(sys.stdin.read())
    report = os.dup(1)
    complain = os.dup(2)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall.restype = ctypes.c_long
        _check(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "parent death signal")
        _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        _limit_resources(job["seconds"])
        _confine_files(libc, str(Path.cwd()))
        nothing = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nothing, standard)
        _block_calls(libc)
    except (OSError, KeyError, ValueError) as error:
        os.write(complain, str(error).encode())
        os._exit(REFUSED)
    try:
        code = compile(job.pop("program"), "<program>", "exec")
        exec(code, {"__name__": "__main__"})  # noqa: S102 - the purpose of this file
    except BaseException as error:  # noqa: BLE001 - whatever it is, the program did not come to its end
        os.write(complain, f"{type(error).__name__}: {error}".encode()[:500])
        os._exit(1)
    os.write(report, job["token"].encode())
    os._exit(0)


if __name__ == "__main__":
    _main()
