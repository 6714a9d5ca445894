"""A small Hub on loopback: the calls that huggingface_hub makes to push and pull model repositories.

Repositories live in memory. LARGE files go through git LFS (batch, upload, verify), the rest inside the commit, as on
the Hub. `faults` injects failures by the first part of a request: {"POST /api/models/me/x/commit": 500 or "close"}.
Xet is not served; clients run with HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

import yaml


LARGE = (".safetensors", ".bin", ".pt")
_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
_YAML = re.compile(r"^\s*---\r?\n(.*?)\r?\n---", re.DOTALL)


class Hub(ThreadingHTTPServer):
    """`repos`: {id: {path: bytes}}; `blobs`: {sha256: bytes}; `requests`: "METHOD path" of every request so far;
    `private`: ids of the repositories that were asked for as such."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: dict[str, int | str] = {}
        self.private: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def sha(self, repo: str) -> str:
        """A commit id: it changes whenever a file does."""
        state = repr(sorted((path, hashlib.sha1(data).hexdigest()) for path, data in self.repos[repo].items()))
        return hashlib.sha1(f"{repo}{state}".encode()).hexdigest()


@contextmanager
def running_hub():
    """A Hub that answers until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def metadata_errors(content: str) -> list[str]:
    """What the Hub refuses in a model card's metadata, of its rules those that need no look at other repositories."""
    found = _YAML.match(content)
    data = (yaml.safe_load(found[1]) or {}) if found else {}
    errors = []
    bases = data.get("base_model", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not (isinstance(base, str) and _ID.fullmatch(base) and len(base) <= 96):
            errors.append(f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.')
    if data.get("base_model_relation", "adapter") not in ("adapter", "merge", "quantized", "finetune"):
        errors.append('"base_model_relation" must be one of [adapter, merge, quantized, finetune]')
    for key in ("library_name", "pipeline_tag"):
        if key in data and not (isinstance(data[key], str) and data[key]):
            errors.append(f'"{key}" must be a string')
    tags = data.get("tags", [])
    if not (isinstance(tags, list) and all(isinstance(tag, str) and tag for tag in tags)):
        errors.append('"tags" must be an array of strings')
    return errors


class Handler(BaseHTTPRequestHandler):
    """Routes are tried in order; each takes the groups of its pattern."""

    server: Hub
    protocol_version = "HTTP/1.1"
    routes = (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/models/(.+)/preupload/[^/]+", "preupload"),
        ("POST", r"/api/models/(.+)/commit/[^/]+", "commit"),
        ("POST", r"/(.+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/.+/(\w{64})", "lfs_upload"),
        ("POST", r"/lfs/.+/verify", "lfs_verify"),
        ("HEAD", r"/(.+)/resolve/[^/]+/(.+)", "resolve"),
        ("GET", r"/(.+)/resolve/[^/]+/(.+)", "resolve"),
        ("GET", r"/api/models/(.+)/tree/[^/]+/?(.*)", "tree"),
        ("GET", r"/api/models/(.+?)(?:/revision/[^/]+)?", "info"),
    )

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.server.requests.append(request)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for start, fault in self.server.faults.items():
            if request.startswith(start):
                self.close_connection = True
                return None if fault == "close" else self.reply({"error": "injected"}, status=int(fault))
        for method, pattern, name in self.routes:
            if method == self.command and (match := re.fullmatch(pattern, path)):
                if name in ("resolve", "tree", "info", "preupload", "commit") and match[1] not in self.server.repos:
                    return self.missing("RepoNotFound")
                return getattr(self, name)(*match.groups())
        return self.reply({"error": f"this Hub has no {request}"}, status=501)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    # -- pushing -----------------------------------------------------------------------------------------------

    def create(self) -> None:
        asked = json.loads(self.body)
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        known = repo in self.server.repos
        self.server.repos.setdefault(repo, {})
        if asked.get("visibility") == "private" or asked.get("private"):  # newer clients, older ones
            self.server.private.add(repo)
        self.reply({"url": f"{self.server.url}/{repo}", "id": repo}, status=409 if known else 200)

    def validate(self) -> None:
        errors = [{"message": message} for message in metadata_errors(json.loads(self.body)["content"])]
        self.reply({"errors": errors, "warnings": []}, status=400 if errors else 200)

    def preupload(self, repo: str) -> None:
        files = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {path: "lfs" if path.endswith(LARGE) else "regular" for path in files}
        self.reply({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})

    def lfs_batch(self, repo: str) -> None:
        objects = [{"oid": item["oid"], "size": item["size"]} for item in json.loads(self.body)["objects"]]
        for item in objects:
            if item["oid"] not in self.server.blobs:
                upload, verify = ({"href": f"{self.server.url}/lfs/{repo}/{end}"} for end in (item["oid"], "verify"))
                item["actions"] = {"upload": upload, "verify": verify}
        self.reply({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.reply({"error": "content does not match its sha256"}, status=400)
        self.server.blobs[oid] = self.body
        self.reply({})

    def lfs_verify(self) -> None:
        asked = json.loads(self.body)
        blob = self.server.blobs.get(asked["oid"])
        self.reply({}, status=200 if blob is not None and len(blob) == asked["size"] else 404)

    def commit(self, repo: str) -> None:
        files = dict(self.server.repos[repo])
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.server.repos[repo] = files
        sha = self.server.sha(repo)
        self.reply({"commitUrl": f"{self.server.url}/{repo}/commit/{sha}", "commitOid": sha, "success": True})

    # -- pulling -----------------------------------------------------------------------------------------------

    def resolve(self, repo: str, path: str) -> None:
        data = self.server.repos[repo].get(path)
        if data is None:
            return self.missing("EntryNotFound", {"X-Repo-Commit": self.server.sha(repo)})
        digest = hashlib.sha256 if path.endswith(LARGE) else hashlib.sha1
        self.send({"ETag": f'"{digest(data).hexdigest()}"', "X-Repo-Commit": self.server.sha(repo)}, data)

    def tree(self, repo: str, folder: str) -> None:
        files = [(p, d) for p, d in self.server.repos[repo].items() if PurePosixPath(p).is_relative_to(folder)]
        if folder and not files:
            return self.missing("EntryNotFound")
        self.reply([{"type": "file", "path": p, "size": len(d), "oid": hashlib.sha1(d).hexdigest()} for p, d in files])

    def info(self, repo: str) -> None:
        siblings = [{"rfilename": path} for path in self.server.repos[repo]]
        self.reply({"id": repo, "modelId": repo, "sha": self.server.sha(repo), "siblings": siblings, "tags": []})

    # -- replies -----------------------------------------------------------------------------------------------

    def missing(self, code: str, headers: dict[str, str] | None = None) -> None:
        self.send({"X-Error-Code": code, **(headers or {})}, b"{}", status=404)

    def reply(self, content, status: int = 200) -> None:
        self.send({"Content-Type": "application/json"}, json.dumps(content).encode(), status)

    def send(self, headers: dict[str, str], data: bytes, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args) -> None:
        """Tests read `requests`; standard error stays clean."""
