"""The site on a loopback address, renewed as records come, with what trains right now."""

from __future__ import annotations

import json
import logging
import platform
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any

import psutil

from harness.errors import HarnessError
from harness.results.index import listing
from harness.results.store import Store
from harness_leaderboard.load import stores
from harness_leaderboard.write.csv import finite

LOOPBACK = "127.0.0.1"
HOSTS = ("localhost", LOOPBACK)  # a page elsewhere that points its own name here gets nothing
EVERY_SECONDS = 2.0  # the result roots are looked at; a site is made anew when records came
OLD_SECONDS = 120.0  # after which a file of running trials is one that a killed command left, unless that can be seen
SHOWN_FAILURES = 20

log = logging.getLogger(__name__)


class Site:
    """A folder with the site of some result roots, and what is new about them.

    Args:
        roots: Result roots.
        folder: Where the site is written.
        build: Writes the site of the roots into the folder, and returns ``(records, failures)``.
    """

    def __init__(self, roots: Sequence[str], folder: Path, build: Callable[[], tuple[int, Sequence[str]]]) -> None:
        self.folder = folder
        self._roots = roots
        self._stores: list[Store] = []
        self._build = build
        self._seen: frozenset[tuple[str, str, str]] = frozenset()
        self._built = 0
        self._records, self._failures = 0, list[str]()

    def renew(self) -> bool:
        """Write the site again if there are other records than before; return whether that was so."""
        self._stores = [each for root in self._roots for each in stores(root)]
        names = frozenset((each.root, *file) for each in self._stores for file in listing(each).items())
        if names == self._seen and self._built:
            return False
        records, failures = self._build()
        self._records, self._failures, self._seen = records, list(failures), names
        self._built += 1
        return True

    def news(self) -> dict[str, Any]:
        """Return what an open page asks for: how much there is, what trains, what failed."""
        running = [each for store in self._stores for each in _running(store)]
        return {
            "version": self._built,
            "records": self._records,
            "failures": self._failures[-SHOWN_FAILURES:],
            "failure_count": len(self._failures),
            "running": running,
        }


def _running(store: Store) -> list[Any]:
    """Return the trials that commands say they are training."""
    found: list[Any] = []
    for name in store.artifacts("live"):
        try:
            content = json.loads(store.read_artifact(name))
            at, running = float(content["at"]), list(content["running"])
        except (OSError, ValueError, KeyError, TypeError):  # replaced just now, or somebody else's
            continue
        if time.time() - at < OLD_SECONDS or _is_seen(name):
            found += running
    return found


def _is_seen(name: str) -> bool:
    """Return whether the command that wrote a file lives on this machine: its updates may be minutes apart."""
    machine, _, process = PurePosixPath(name).stem.rpartition("-")
    return machine == platform.node() and process.isdecimal() and psutil.pid_exists(int(process))


class Handler(SimpleHTTPRequestHandler):
    """Files of the site, and ``live.json``; to nobody but this machine's own pages."""

    def __init__(self, *arguments: Any, site: Site, **more: Any) -> None:
        self.site = site
        super().__init__(*arguments, **more)

    def do_GET(self) -> None:
        """Answer a request for a file, or for what is new."""
        if not self._is_ours():
            return
        if self.path.partition("?")[0] != "/live.json":
            super().do_GET()
            return
        body = json.dumps(finite(self.site.news())).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        """Answer as to ``GET``, without the content."""
        if self._is_ours():
            super().do_HEAD()

    def end_headers(self) -> None:
        """Let no browser keep what is renewed."""
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log a request, for those who ask for it."""
        log.debug(format, *arguments)

    def list_directory(self, path: Any) -> None:
        """Show no folder's content."""
        self.send_error(HTTPStatus.NOT_FOUND)

    def _is_ours(self) -> bool:
        if (self.headers.get("Host") or "").rpartition(":")[0] in HOSTS:
            return True
        self.send_error(HTTPStatus.FORBIDDEN, "this server answers on the loopback address only")
        return False


def server(site: Site, port: int) -> ThreadingHTTPServer:
    """Return a server of a site; port 0 takes a free one."""
    return ThreadingHTTPServer((LOOPBACK, port), partial(Handler, site=site, directory=str(site.folder)))


def renewing(site: Site, stop: threading.Event) -> threading.Thread:
    """Return a running thread that renews a site until it is told to stop."""

    def work() -> None:
        while not stop.wait(EVERY_SECONDS):
            try:
                site.renew()
            except (OSError, HarnessError) as error:  # a network folder that is away for a moment; the last site stays
                log.warning("%s; trying again", error)

    thread = threading.Thread(target=work, daemon=True, name="leaderboard")
    thread.start()
    return thread
