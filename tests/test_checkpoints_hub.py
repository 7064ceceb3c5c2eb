import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from groupvit.checkpoints import hub
from groupvit.errors import InputError

COMMITS = {"main": "a" * 40, "v1": "b" * 40, "a" * 40: "a" * 40, "b" * 40: "b" * 40}
ALL = {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"pickle", "README.md": b"words"}
ALL |= {"preprocessor_config.json": b"{}", "tokenizer.json": b"{}"}
REPOSITORIES = {"owner/model": ALL, "owner/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"}}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as a download needs."""

    def answer(self) -> tuple[bytes, str] | None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repository = "/".join(parts[2:4] if api else parts[:2])
        kind, revision, *name = parts[4:] if api else parts[2:] or ["", ""]
        files, commit = REPOSITORIES.get(repository), COMMITS.get(revision)
        if files is None or commit is None:
            return None
        if kind == "revision":
            listing = {"id": repository, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
            return json.dumps(listing).encode(), commit
        if kind == "tree":
            rows = [{"type": "file", "path": file, "size": len(data), "oid": "0"} for file, data in files.items()]
            return json.dumps(rows).encode(), commit
        return files["/".join(name)], commit

    def do_GET(self) -> None:
        answer = self.answer()
        if answer is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound" if "/revision/" in self.path else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body, commit = answer
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


PROGRAM = """
import json, os, sys
from groupvit.checkpoints import hub
from groupvit.errors import InputError
for source, keywords in json.loads(sys.argv[1]):
    try:
        folder = hub.download(source, **keywords)
        print(json.dumps([folder.name, sorted(os.listdir(folder))]))
    except InputError as error:
        print(json.dumps(str(error)))
"""


def downloads(port: int, cache: Path, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
    """Commit and files, or the complaint, of every call, in a new process: the client reads its endpoint once."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", PROGRAM, json.dumps(calls)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Any]]:
    """Answers to the same sort of calls while the hub is there, and afterwards."""
    cache = tmp_path_factory.mktemp("cache")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    first = downloads(
        server.server_port,
        cache,
        ("owner/model", {}),
        ("owner/model@v1", {}),
        ("owner/model", {"revision": "v1"}),
        ("owner/pickled", {}),
        ("owner/pickled", {"allow_pickle": True}),
        ("owner/absent", {}),
        ("owner/model@v9", {}),
    )
    server.shutdown()
    server.server_close()
    then = downloads(server.server_port, cache, ("owner/model", {}), ("owner/model@v1", {}), ("owner/unseen", {}))
    return first, then


Answers = tuple[list[Any], list[Any]]
SAFE = ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_configuration_statistics_and_safetensors_are_downloaded_and_nothing_else(answers: Answers) -> None:
    assert answers[0][0] == [COMMITS["main"], SAFE]


def test_a_revision_is_pinned_by_name_or_argument(answers: Answers) -> None:
    assert answers[0][1] == answers[0][2] == [COMMITS["v1"], SAFE]


def test_pickled_weights_are_not_downloaded_unasked(answers: Answers) -> None:
    assert answers[0][3].startswith("owner/pickled has no model.safetensors, and pickled weights are not read unasked")
    assert answers[0][4] == [COMMITS["main"], ["config.json", "pytorch_model.bin"]]


def test_an_unknown_repository_or_revision_is_an_error_of_one_line(answers: Answers) -> None:
    for name, complaint in zip(("owner/absent", "owner/model"), answers[0][5:], strict=True):
        assert complaint.startswith(f"{name} cannot be downloaded from the hub")
        assert complaint.endswith(("or it is private: log in (hf auth login, or HF_TOKEN)", "it has no such revision"))
        assert "\n" not in complaint


def test_without_a_connection_the_cache_is_used(answers: Answers) -> None:
    assert answers[1][:2] == [[COMMITS["main"], SAFE], [COMMITS["v1"], SAFE]]


def test_without_connection_and_cache_there_is_an_error_of_one_line(answers: Answers) -> None:
    assert answers[1][2].startswith("owner/unseen cannot be downloaded from the hub and is not in its cache: ")
    assert "\n" not in answers[1][2]


def test_two_revisions_are_an_error() -> None:
    with pytest.raises(InputError, match="two revisions, v1 and v2"):
        hub.download("owner/model@v1", "v2")


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("owner/name", True),
        ("owner/na.me-1@refs/pr/3", True),
        ("name", False),
        ("./owner/name", False),
        ("../name", False),
        ("/owner/name", False),
        ("a/b/c", False),
        ("owner/name@", False),
    ],
)
def test_a_hub_id_is_owner_and_name(source: str, answer: bool) -> None:
    assert hub.is_hub_id(source) is answer
