"""Where rows come from: a local file, the workspace, or the hub at a pinned commit."""

import functools
import gzip
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from cask_eval.tasks import data

ROWS = [{"id": "a", "problem": "What is 1 + 1?", "answer": "2"}, {"id": "b", "problem": "½ + ½", "answer": "1"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    monkeypatch.delenv(data.VARIABLE, raising=False)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sets" / "mine").mkdir(parents=True)
    (tmp_path / "sets" / "mine" / "test.jsonl").write_text(LINES)
    return tmp_path / "sets"


def test_a_folder_a_flat_folder_a_file_and_the_variable(folder, monkeypatch):
    source = {"file": "mine/test.jsonl"}
    for place in (folder, folder / "mine", folder / "mine" / "test.jsonl"):
        with data.at(place):
            assert data.rows(source) == ROWS
    monkeypatch.setenv(data.VARIABLE, str(folder))
    assert data.rows(source) == ROWS
    other = folder / "other.jsonl"
    other.write_text(LINES.splitlines()[0])
    with data.at(other):  # what was given goes first
        assert data.rows(source) == ROWS[:1]


def test_the_workspace_comes_last(folder, tmp_path):
    with data.inside(tmp_path):
        assert data.rows({"file": "sets/mine/test.jsonl"}) == ROWS
    with pytest.raises(ValueError, match="sets/mine/test.jsonl is not there"):
        data.rows({"file": "sets/mine/test.jsonl"})


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.jsonl", "a/../../x.jsonl", "c:x", "a\\b", "", "a\0b"])
def test_a_name_cannot_lead_out(name, tmp_path):
    with data.inside(tmp_path), pytest.raises(ValueError, match="plain relative path|file is ''"):
        data.rows({"file": name})


def test_a_link_cannot_lead_out_of_the_workspace(folder, tmp_path):
    root = tmp_path / "ws"
    root.mkdir()
    (root / "x.jsonl").symlink_to(folder / "mine" / "test.jsonl")
    with data.inside(root), pytest.raises(ValueError, match="is not there"):
        data.rows({"file": "x.jsonl"})


def test_a_place_that_is_not_there_is_named(tmp_path):
    with data.at(tmp_path / "gone"), pytest.raises(ValueError, match="gone, which does not exist"):
        data.rows({"file": "x.jsonl"})


@pytest.mark.parametrize(
    "name, content",
    [
        ("x.jsonl", LINES.encode()),
        ("x.jsonl", LINES.replace("\n", "\r\n\n").encode()),
        ("x.json", json.dumps(ROWS).encode()),
        ("x.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
    ],
)
def test_forms(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert data.read(tmp_path / name) == ROWS


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    assert data.read(tmp_path / "x.parquet") == ROWS
    with data.inside(tmp_path, offline=True), pytest.raises(ValueError, match="is not there"):
        data.rows({"file": "x.parquet"})


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("x.csv", b"a,b\n", "is none of .jsonl"),
        ("x.jsonl", b'{"a": 1}\n{"a": \n', "x.jsonl:2: is no JSON"),
        ("x.jsonl", b"[1]\n", "must hold objects"),
        ("x.json", b'{"a": 1}', "must hold objects"),
        ("x.jsonl", b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        ("x.json", b"[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.read(tmp_path / name)


def test_files_that_unpack_to_more_than_memory_is_good_for(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MAX_BYTES", 1000)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b" " * 5000, mtime=0))
    with pytest.raises(ValueError, match="unpacks to more than 1000"):
        data.read(tmp_path / "x.jsonl.gz")


HUB = {"file": "x/test.jsonl", "hub": "owner/set", "revision": COMMIT, "hub_file": "test.jsonl"}


def test_a_revision_is_a_commit():
    with pytest.raises(ValueError, match="revision is 'main'; a hub repository is pinned by its commit"):
        data.rows({**HUB, "revision": "main"})


def test_a_local_copy_goes_before_the_hub(folder):
    with data.at(folder / "mine"):
        assert data.rows(HUB) == ROWS


class Hub(http.server.BaseHTTPRequestHandler):
    """What the hub answers to a client that wants one file of one commit."""

    seen: list[str] = []

    def log_message(self, *_):
        pass

    def answer(self):
        self.seen.append(f"{self.command} {self.path}")
        body = LINES.encode() if self.path == f"/datasets/owner/set/resolve/{COMMIT}/test.jsonl" else b""
        self.send_response(200 if body else 404)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD = answer


@pytest.fixture
def ask(tmp_path):
    """ask(offline) → what a process prints that reads HUB's rows with the real client from a server on this machine."""
    pytest.importorskip("huggingface_hub")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.seen.clear()
    code = (
        "import json, sys; from pathlib import Path; from cask_eval.tasks import data\n"
        f"with data.inside(Path('.').resolve(), offline=sys.argv[1] == 'offline'):\n"
        f"    try: print(json.dumps(data.rows({HUB!r})))\n"
        "    except ValueError as error: print(error)"
    )
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    env |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub")}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    env.pop("HF_HUB_OFFLINE", None)

    def run(how):
        command = [sys.executable, "-c", code, how]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120).stdout

    yield run
    server.shutdown()
    server.server_close()


def test_the_real_client_fetches_one_file_of_one_commit_and_a_reviewer_nothing(ask):
    assert "was not fetched before, and nothing is downloaded here; give a local copy" in ask("offline")
    assert Hub.seen == []
    assert json.loads(ask("online")) == ROWS
    assert f"GET /datasets/owner/set/resolve/{COMMIT}/test.jsonl" in Hub.seen
    Hub.seen.clear()
    assert json.loads(ask("offline")) == ROWS and Hub.seen == []
