"""A judge: any server that speaks OpenAI's chat protocol, asked for one verdict at a time.

The key, if the server wants one, is read from the environment variable ``HARNESS_JUDGE_KEY`` when it is used, and is
kept nowhere: not in a trial, a record, a log or an error.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from harness import HarnessError, UsageError

KEY = "HARNESS_JUDGE_KEY"
SAID = 300  # characters of a server's answer that a message shows
BUSY = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Judge:
    """A model behind an address.

    Attributes:
        url: Up to and with the version, e.g. ``https://api.openai.com/v1``.
        model: Its name there.
        tries: How often a busy server is asked.
        wait_seconds: Before the second try; twice as long before each further one.
        timeout_seconds: For one answer.
        at_once: Requests in flight.
    """

    url: str
    model: str
    tries: int = 4
    wait_seconds: float = 2.0
    timeout_seconds: float = 120.0
    at_once: int = 8

    def check(self) -> None:
        """Refuse an address that is none, or that holds what must not be written down.

        Raises:
            UsageError: Says what to give.
        """
        if not self.url:
            raise UsageError(
                "answers are scored by a judge, and none is named; give --set judge_url=https://HOST/v1 and --set "
                f"judge_model=NAME of a server that speaks OpenAI's chat protocol, and its key in {KEY}"
            )
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"judge_url={self.url!r} is no address; write it like https://HOST/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UsageError(
                f"judge_url holds more than an address, and is written into every record; give the key in {KEY}"
            )

    def verdicts(self, questions: Sequence[str]) -> list[str]:
        """Return what the judge says to each question.

        Raises:
            HarnessError: It cannot be asked; names the address and what it answered.
        """
        with ThreadPoolExecutor(self.at_once) as pool:
            return list(pool.map(self._ask, questions))

    def _ask(self, question: str) -> str:
        body = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": question}]}
        key = os.environ.get(KEY, "")
        request = urllib.request.Request(  # noqa: S310 - ``check`` allows two schemes
            f"{self.url.rstrip('/')}/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})},
        )
        for number in range(self.tries):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_seconds) as answer:  # noqa: S310
                    return str(json.loads(answer.read())["choices"][0]["message"]["content"])
            except urllib.error.HTTPError as error:
                reason = f"{error.code}: {error.read().decode(errors='replace')}"
                if error.code not in BUSY:
                    break
            except (OSError, ValueError, LookupError, TypeError) as error:
                reason = f"{type(error).__name__}: {error}"
            if number + 1 < self.tries:
                time.sleep(self.wait_seconds * 2**number)
        said = " ".join((reason.replace(key, "***") if key else reason).split())[:SAID]
        raise HarnessError(f"judge {self.model!r} at {self.url} cannot be asked ({said})") from None


def rating(verdict: str) -> float | None:
    """Return the number from 1 to 10 that a verdict gives as ``[[7]]``; ``None`` where it gives none."""
    found = re.findall(r"\[\[(\d+(?:\.\d+)?)\]\]", verdict)
    return float(found[-1]) if found and 1 <= float(found[-1]) <= 10 else None


def choice(verdict: str) -> str | None:
    """Return the ``A``, ``B`` or ``C`` (neither) that a verdict gives as ``[[A]]``; ``None`` where it gives none."""
    found = re.findall(r"\[\[([ABC])\]\]", verdict)
    return found[-1] if found else None
