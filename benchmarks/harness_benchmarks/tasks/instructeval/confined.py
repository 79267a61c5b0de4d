"""What runs inside a confinement: the program that answers calls, or the judge that makes them.

Started by ``sandbox`` as a script of its own, with nothing else of this project at hand. First it limits itself for
good, then it runs its source.

Values cross as JSON, each with a word for its type: numbers, texts, bytes, lists, tuples, sets, dictionaries, ranges,
and iterators as what is left in them. Subclasses cross as what they are made from. Anything else does not cross.
"""

from __future__ import annotations

import base64
import builtins
import ctypes
import json
import math
import os
import resource
import sys
from typing import Any, TextIO

REFUSED = 97  # exit status where it cannot confine itself
LINE_LIMIT = 8 << 20
REASON_LIMIT = 1000
DEPTH_LIMIT = 200
MOST_LEFT = 100_000  # values taken from an iterator
PLAIN = (type(None), bool, str)


def encode(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON can hold it. Raises ``TypeError`` for what is no data."""
    if depth > DEPTH_LIMIT:
        raise TypeError("the value is nested too deeply")
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return {"int": hex(int(value))}
    if isinstance(value, float):
        return {"float": float(value).hex() if math.isfinite(value) else repr(float(value))}
    if isinstance(value, complex):
        return {"complex": [encode(value.real), encode(value.imag)]}
    if isinstance(value, bytes | bytearray):
        return {"bytes" if isinstance(value, bytes) else "bytearray": base64.b64encode(value).decode()}
    if isinstance(value, range):
        return {"range": [encode(each) for each in (value.start, value.stop, value.step)]}
    if isinstance(value, dict):
        return {"dict": [[encode(a, depth + 1), encode(b, depth + 1)] for a, b in dict.items(value)]}
    for base in (list, tuple, set, frozenset):
        if isinstance(value, base):
            plain: Any = base  # its own way of going through itself, not a subclass's
            return {base.__name__: [encode(each, depth + 1) for each in plain.__iter__(value)]}
    if hasattr(kind, "__next__"):
        left = []
        for each in value:
            left.append(encode(each, depth + 1))
            if len(left) > MOST_LEFT:
                raise TypeError("the iterator has no end")
        return {"iterator": left}
    raise TypeError(f"a {kind.__name__} is no data that could be judged")


def decode(value: Any) -> Any:
    """Return what ``encode`` was given, made of this process's own objects."""
    if type(value) in PLAIN:
        return value
    (name, content), = value.items()  # fmt: skip
    if name == "int":
        return int(content, 16)
    if name == "float":
        return float(content) if content in ("nan", "inf", "-inf") else float.fromhex(content)
    if name == "complex":
        return complex(*map(decode, content))
    if name in ("bytes", "bytearray"):
        return getattr(builtins, name)(base64.b64decode(content))
    if name == "range":
        return range(*map(decode, content))
    if name == "dict":
        return {decode(a): decode(b) for a, b in content}
    if name == "iterator":
        return iter([decode(each) for each in content])
    if name in ("list", "tuple", "set", "frozenset"):
        return getattr(builtins, name)(decode(each) for each in content)
    raise ValueError(f"{name!r} is no kind of data")


def answer_calls(source: str, entry_point: str, reads: TextIO, writes: TextIO) -> None:
    """Be the program: define it, then answer each call with what it returned or raised."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    failure: BaseException | None = None
    try:
        exec(compile(source, "<program>", "exec"), namespace)  # noqa: S102 - the purpose of this file
    except BaseException as error:  # noqa: BLE001 - it is what every call of it raises
        failure = error
    while line := reads.readline(LINE_LIMIT):
        arguments, named = decode(json.loads(line))
        try:
            if failure is not None:
                raise failure
            value = namespace[entry_point](*arguments, **named)
            answer = {"value": encode(value), "arguments": encode(arguments)}
        except BaseException as error:  # noqa: BLE001 - the judge decides what it means
            text = str(error)[:REASON_LIMIT] if isinstance(error, Exception) else ""
            answer = {"error": type(error).__name__, "text": text}
        writes.write(json.dumps(answer) + "\n")
        writes.flush()


def judge(tests: str, helpers: str, entry_point: str, reads: TextIO, writes: TextIO) -> None:
    """Be the judge: run the tests on a function whose every call is answered by the other process."""

    def function(*arguments: Any, **named: Any) -> Any:
        writes.write(json.dumps(encode((arguments, named))) + "\n")
        writes.flush()
        line = reads.readline(LINE_LIMIT)
        if not line.endswith("\n"):
            raise ChildProcessError("the program ended, or said too much")
        answer = json.loads(line)
        if "error" in answer:
            kind: Any = getattr(builtins, str(answer["error"]), None)
            if not isinstance(kind, type) or not issubclass(kind, Exception):
                kind = RuntimeError
            raise kind(f"{answer['error']}: {answer['text']}")
        for ours, theirs in zip(arguments, decode(answer["arguments"]), strict=True):
            _change(ours, theirs)
        return decode(answer["value"])

    namespace: dict[str, Any] = {"__name__": "__main__"}
    for source in (helpers, tests):
        exec(compile(source, "<tests>", "exec"), namespace)  # noqa: S102 - written by the data set's authors
    namespace[entry_point] = function
    namespace["check"](function)


def _change(ours: Any, theirs: Any) -> None:
    """Make an argument what the program made of it, where it can be changed at all."""
    if type(ours) is type(theirs) is list:
        ours[:] = theirs
    elif type(ours) is type(theirs) and type(ours) in (dict, set):
        ours.clear()
        ours.update(theirs)


def confine(limits: dict[str, int], rules: bytes) -> None:
    """Limit this process, for good."""
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(rules, len(rules))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("rules", ctypes.c_void_p))

    program = Program(len(rules) // 8, ctypes.addressof(buffer))
    set_seccomp, mode_filter, no_new_privileges = 22, 2, 38
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, mode_filter, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def main() -> None:
    """Do the job that lies beside this file."""
    with open("/job.json", encoding="utf-8") as file:  # noqa: PTH123 - pathlib is not needed inside
        job = json.load(file)
    reads = os.fdopen(os.dup(0), encoding="utf-8")
    writes = os.fdopen(os.dup(1), "w", encoding="utf-8")
    says = os.dup(2)
    nothing = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    try:
        confine(job["limits"], base64.b64decode(job["filter"]))
    except (OSError, ValueError) as error:
        os.write(says, f"cannot confine: {error}".encode())
        os._exit(REFUSED)
    if job["role"] == "program":
        os.close(says)
        answer_calls(job["source"], job["entry_point"], reads, writes)
        os._exit(0)
    try:
        judge(job["source"], job["helpers"], job["entry_point"], reads, writes)
        found = {"passed": True, "reason": ""}
    except BaseException as error:  # noqa: BLE001 - whatever it is, the tests did not come to their end
        found = {"passed": False, "reason": f"{type(error).__name__}: {error}"[:REASON_LIMIT]}
    os.write(says, json.dumps(found).encode())
    os._exit(0)


if __name__ == "__main__":
    sys.setrecursionlimit(2000)
    main()
