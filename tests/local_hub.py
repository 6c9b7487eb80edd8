"""A hub on the loopback, for the real client: models and data sets are made, written and read through its own requests.

`hub = local_hub.hub` makes it a fixture of a test file. Anybody may write to lab/…; nobody to other places.
"""

import base64
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import pytest
from local_server import Handler, Server, running

_LARGE = (".arrow", ".parquet", ".safetensors", ".bin")
EMPTY = "0" * 40  # the commit that a new repository begins with


@dataclass
class Repo:
    """What the hub holds: commits by branch, each a table of files; blobs wait in `uploaded` until a commit names them."""

    branches: dict[str, str] = field(default_factory=lambda: {"main": EMPTY})
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {EMPTY: {}})
    uploaded: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def files(self, revision: str = "main") -> dict[str, bytes] | None:
        """What a branch or commit holds."""
        return self.commits.get(self.branches.get(revision, revision))

    def put(self, files: dict[str, bytes], revision: str = "main") -> str:
        """Hold these files and no others on a branch, whoever put them there; returns the commit."""
        sha = hashlib.sha1(repr((sorted(files.items()), self.branches)).encode()).hexdigest()
        self.commits[sha], self.branches[revision] = files, sha
        return sha


@dataclass
class Hub(Server):
    """The state of the hub, which a test may change."""

    repos: dict[str, Repo] = field(default_factory=dict)  # "models/lab/x", "datasets/lab/x"
    token: str | None = None  # what writing, and reading what is private, needs
    status: int | None = None  # every answer, where it is not None
    uploads_left: int | None = None  # large files after which every upload breaks off

    def model(self, name: str) -> Repo:
        """The model's repository, made where it does not exist."""
        return self.repos.setdefault(f"models/{name}", Repo())


class HubHandler(Handler):
    """The hub's requests, as far as its client makes them here."""

    server_state: Hub

    def json(self, value: object, status: int = 200, code: str | None = None) -> None:
        headers = {"Content-Type": "application/json"} | ({"X-Error-Code": code} if code else {})
        self.answer(status, json.dumps(value).encode(), headers)

    def serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        state = self.server_state
        parts = [unquote(part) for part in self.path.partition("?")[0].strip("/").split("/")]
        if state.status is not None:
            return self.json({"error": "down"}, state.status)
        if parts == ["api", "validate-yaml"]:
            return self.json({"errors": [], "warnings": []})
        # Addresses of uploads were given out to who may use them, and need no token.
        writes = self.command == "POST" and "paths-info" not in parts
        if writes and state.token is not None and not self.logged_in():
            return self.json({"error": "Unauthorized"}, 401)
        if parts == ["api", "repos", "create"]:
            return self.create(json.loads(body))
        if parts[0] == "lfs":
            return self.upload(parts, body)
        if parts[0] == "api":
            return self.api("/".join(parts[1:4]), parts[4:], body)
        if parts[0] != "datasets":
            parts = ["models", *parts]
        if parts[2].endswith(".git"):
            return self.batch("/".join(parts[:3]).removesuffix(".git"), json.loads(body))
        if parts[3:4] == ["resolve"]:
            return self.file("/".join(parts[:3]), parts[4], "/".join(parts[5:]))
        self.json({}, 404)

    def logged_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server_state.token}"

    def create(self, asked: dict) -> None:
        kind, name = asked.get("type") or "model", f"{asked['organization']}/{asked['name']}"
        address = f"{self.server_state.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if asked["organization"] != "lab":
            return self.json({"error": "Forbidden"}, 403)
        if f"{kind}s/{name}" in self.server_state.repos:
            return self.json({"error": "exists", "url": address}, 409)
        self.server_state.repos[f"{kind}s/{name}"] = Repo(private=asked.get("visibility") == "private")
        self.json({"url": address})

    def readable(self, key: str) -> Repo | None:
        """The repository, or None and the refusal has been sent."""
        repo = self.server_state.repos.get(key)
        if repo is None or (repo.private and self.server_state.token is not None and not self.logged_in()):
            self.json({"error": "no"}, *((404, "RepoNotFound") if repo is None else (401,)))
            return None
        if repo.gated:
            self.json({"error": "no"}, 403, "GatedRepo")
            return None
        return repo

    def api(self, key: str, rest: list[str], body: bytes) -> None:
        if (repo := self.readable(key)) is None:
            return
        if rest[:1] == ["branch"]:
            if rest[1] in repo.branches:
                return self.json({"error": "exists"}, 409)
            repo.branches[rest[1]] = repo.branches["main"]
            return self.json({})
        revision = rest[1] if len(rest) > 1 else "main"
        if (files := repo.files(revision)) is None:
            return self.json({"error": "no"}, 404, "RevisionNotFound")
        name, commit = key.partition("/")[2], repo.branches.get(revision, revision)
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": path} for path in files]
            return self.json({"id": name, "sha": commit, "siblings": siblings, "private": repo.private})
        listed = [{"type": "file", "path": p, "size": len(b), "oid": _oid(p, b)} for p, b in files.items()]
        if rest[0] == "tree":
            return self.json(listed)
        if rest[0] == "paths-info":
            words = body.decode()
            asked = json.loads(words)["paths"] if words.startswith("{") else unquote(words)
            return self.json([entry for entry in listed if entry["path"] in asked])
        if rest[0] == "preupload":
            held = {entry["path"]: entry["oid"] for entry in listed}
            modes = [
                {
                    "path": path,
                    "uploadMode": "lfs" if path.endswith(_LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": held.get(path),
                }
                for path in (entry["path"] for entry in json.loads(body)["files"])
            ]
            return self.json({"files": modes})
        if rest[0] == "commit":
            return self.commit(key, revision, dict(files), body)
        self.json({}, 404)

    def batch(self, key: str, asked: dict) -> None:
        known = self.server_state.repos[key].uploaded
        place = f"{self.server_state.url}/lfs/{key}"
        objects = [
            entry if entry["oid"] in known else entry | {"actions": {"upload": {"href": f"{place}/{entry['oid']}"}}}
            for entry in asked["objects"]
        ]
        self.json({"transfer": "basic", "objects": objects})

    def upload(self, parts: list[str], body: bytes) -> None:
        state = self.server_state
        if state.uploads_left is not None:
            if state.uploads_left == 0:
                self.close_connection = True
                return self.connection.close()
            state.uploads_left -= 1
        assert hashlib.sha256(body).hexdigest() == parts[4]
        state.repos["/".join(parts[1:4])].uploaded[parts[4]] = body
        self.answer(200, b"")

    def commit(self, key: str, branch: str, files: dict[str, bytes], body: bytes) -> None:
        repo = self.server_state.repos[key]
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = repo.uploaded[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.put(files, branch)
        place = key.removeprefix("models/")
        self.json({"commitUrl": f"{self.server_state.url}/{place}/commit/{sha}", "commitOid": sha})

    def file(self, key: str, revision: str, path: str) -> None:
        if (repo := self.readable(key)) is None:
            return
        if (files := repo.files(revision)) is None:
            return self.json({}, 404, "RevisionNotFound")
        if path not in files:
            return self.json({}, 404, "EntryNotFound")
        commit = repo.branches.get(revision, revision)
        self.give(files[path], {"ETag": f'"{_oid(path, files[path])}"', "X-Repo-Commit": commit})


def _oid(path: str, held: bytes) -> str:
    """How git names the file, or the store of large files."""
    if path.endswith(_LARGE):
        return hashlib.sha256(held).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub, and a client that knows no other: what HF_ENDPOINT, HF_HOME and others set when it is imported."""
    for served in running(HubHandler, Hub()):
        point_client_at(served.url, tmp_path / "hub", monkeypatch)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client's pauses before it tries again
        yield served


def point_client_at(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client asks this hub and keeps what it is given in `cache`."""
    from huggingface_hub import constants, hf_api

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(hf_api.api, "endpoint", url)
    if (transformers_hub := sys.modules.get("transformers.utils.hub")) is not None:
        monkeypatch.setattr(transformers_hub, "_hf_api", None, raising=False)  # it remembers the endpoint it began with
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache.parent / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if name in os.environ:
            monkeypatch.delenv(name)


def put_folder(repo: Repo, folder: Path, revision: str = "main") -> str:
    """Every file of a folder, as `hf upload` would put it there."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return repo.put(files, revision)
