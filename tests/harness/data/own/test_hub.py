"""``--data`` with an id of the hub: through a hub of our own on this machine, then from its cache alone."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

COMMIT, OTHER = "c0ffee" + "0" * 34, "d" * 40
FILES = {
    "train.csv": ("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(60))).encode(),
    "README.md": b"---\nlicense: mit\n---\n",
}


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for the one data set ``me/reviews``."""

    def log_message(self, *_):
        pass

    def answer(self, body, status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if path == "/":
            return self.answer(b"")
        if re.fullmatch(r"/api/datasets/me/reviews(/revision/[^/]+)?", path):
            siblings = [{"rfilename": name} for name in FILES]
            return self.answer(
                json.dumps({"id": "me/reviews", "sha": COMMIT, "siblings": siblings, "tags": []}).encode()
            )
        if re.fullmatch(rf"/api/datasets/me/reviews/tree/{COMMIT}", path):
            listed = [{"type": "file", "path": n, "size": len(b), "oid": _digest(b)} for n, b in FILES.items()]
            return self.answer(json.dumps(listed).encode())
        found = re.fullmatch(rf"/datasets/me/reviews/resolve/{COMMIT}/(.+)", path)
        if found and found[1] in FILES:
            body = FILES[found[1]]
            return self.answer(body, ETag=f'"{_digest(body)}"', X_Repo_Commit=COMMIT)
        code = "EntryNotFound" if "me/reviews" in path else "RepoNotFound"
        return self.answer(b"", 404, X_Error_Code=code)

    do_HEAD = do_GET


def _digest(body):
    return hashlib.sha1(body).hexdigest()


SHOW = """
import json, sys
from harness.cli import app
from harness.errors import DataError
for where in sys.argv[1:]:
    try:
        app(["data", "show", where, "--json"], standalone_mode=False)
    except DataError as error:
        print(json.dumps({"error": str(error)}))
    print("---")
"""

SUBSTITUTE = """
from harness.contract.task import Source
from harness.data.tables import read_table
from harness.errors import DataError
print(len(read_table(Source("me/reviews", revision="{commit}"), "train", None)))
try:
    print(len(read_table(Source("me/reviews", revision="{other}"), "train", None)))
except DataError as error:
    print(error)
"""


@pytest.mark.exhaustive
def test_a_data_set_of_the_hub_is_read_at_its_commit_then_from_the_cache_and_never_replaced(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HARNESS_"))}
    env = {**clean, "HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}

    def run(code, *arguments, **more):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], env={**env, **more}, text=True, capture_output=True, timeout=240
        )
        assert done.returncode == 0, done.stderr[-2_000:]
        return done.stdout

    try:
        found, missing, _ = run(SHOW, "me/reviews", "me/nothing").split("---\n")
    finally:
        server.shutdown()
        server.server_close()
    told = json.loads(found)
    assert told["rows"] == {"train": 48, "validation": 6, "test": 6}
    assert told["kind"] == "classification"
    assert "as a data set of the hub it cannot be had" in json.loads(missing)["error"]
    again, pinned, other, _ = run(
        SHOW, "me/reviews", f"me/reviews@{COMMIT[:8]}", "me/nothing", HF_HUB_OFFLINE="1"
    ).split("---\n")
    assert json.loads(again) == json.loads(pinned) == told
    assert "its cache holds none of it; give a local copy" in json.loads(other)["error"]
    title, pinned, _ = run(SHOW, "me/reviews:default", f"me/reviews@{COMMIT}:default", HF_HUB_OFFLINE="1").split(
        "---\n"
    )
    assert json.loads(title) == json.loads(pinned) == {**told, "title": "reviews-default"}
    snapshots = tmp_path / "hub" / "datasets--me--reviews" / "snapshots"
    shutil.copytree(snapshots / COMMIT, snapshots / OTHER)  # so that `datasets` takes the rows that it prepared last
    count, refused = run(SUBSTITUTE.format(commit=COMMIT, other=OTHER), HF_HUB_OFFLINE="1").splitlines()
    assert count == "60"
    assert f"what is cached here is of another commit, {COMMIT}" in refused
