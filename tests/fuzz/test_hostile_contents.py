"""Evidence made to exhaust the verifier: it ends in a failed check or a typed error, in seconds and in little memory.

Verification runs in a process of its own whose memory and time are limited, so that a bomb that works fails a test and
not the machine."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulator import STUDY, Forger, line

from cask_eval.canonical import digest
from cask_eval.workspace import Workspace

slow = pytest.mark.slow
pytestmark = pytest.mark.skipif(os.name == "nt", reason="no resource limits there")

MIB = 1 << 20

#: Verifies the workspace `argv[1]` once for each file in the folder `argv[3]`, put in place of `argv[2]`; one JSON line
#: each: name, exit code, seconds, MiB above an honest verification so far.
CHILD = """
import json, os, resource, shutil, sys, time
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from cask_eval.errors import CaskError
from cask_eval.verify.run import verify
root, target, folder = sys.argv[1:4]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
def code():
    try:
        verdict = verify(root, "sim", require="L0")
    except CaskError as error:
        return error.exit_code, str(error)
    for text in verdict.lines:
        assert text.isprintable() and len(text) < 600, text
    return verdict.exit_code, verdict.summary
assert code()[0] == 0
base = peak()
for name in sorted(os.listdir(folder)):
    shutil.copyfile(os.path.join(folder, name), os.path.join(root, target))
    start = time.process_time()
    said = code()
    print(json.dumps([name, *said, round(time.process_time() - start, 1), peak() - base]), flush=True)
"""


def verdicts(root: Path, target: str, contents: dict[str, bytes], tmp_path: Path) -> dict[str, list]:
    folder = tmp_path / "contents"
    folder.mkdir()
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CHILD, str(root), target, str(folder)], env=environment,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}


def failed(found: dict[str, list], seconds: float = 10, mib: int = 700) -> None:
    """All of them fail, none takes long."""
    assert found
    for name, (code, said, took, grown) in found.items():
        assert code == 1, (name, code, said)
        assert took < seconds and grown < mib, (name, took, grown)


def values(place: bytes) -> Iterator[tuple[str, bytes]]:
    """JSON values that break readers, and `place` as they find it."""
    yield "deep lists", b"[" * 1_000_000 + b"]" * 1_000_000
    yield "deep objects", b'{"a":' * 500_000 + b"0" + b"}" * 500_000
    yield "open lists", b"[" * 5_000_000
    yield "many lists", b"[" + b"[]," * 3_000_000 + b"0]"
    yield "many objects", b"[" + b"{}," * 3_000_000 + b"0]"
    yield "many keys", b"{" + b",".join(b'"%d":0' % i for i in range(950_000)) + b"}"
    yield "many texts", b"[" + b'"x",' * 1_900_000 + b'"x"]'
    yield "long text", b'"' + b"a" * (20 * MIB) + b'"'
    yield "long integer", b"9" * 10_000_000
    yield "longest integer that Python reads", b"9" * 4300
    yield "long decimal", b"0." + b"3" * 10_000_000
    yield "huge exponent", b"1e999999999"
    yield "not a number", b"NaN"
    yield "infinity", b"-Infinity"
    yield "half a character", b'"\\ud800"'
    yield "encoded half", b'"\xed\xa0\x80"'
    yield "not UTF-8", b'"\xff\xfe"'
    yield "overlong UTF-8", b'"\xc0\xaf"'
    yield "NUL", b'"\0"'
    yield "control", b'"\x1b[2J"'
    yield "null", b"null"
    yield "nothing", b""
    yield "twice", place + b',"study":"sim","study":"sim"'


def forms(data: bytes) -> Iterator[tuple[str, bytes]]:
    """A file that says the same in a form that is not the file's."""
    yield "BOM", b"\xef\xbb\xbf" + data
    yield "UTF-16", data.decode().encode("utf-16")
    yield "UTF-32", data.decode().encode("utf-32-le")
    yield "NULs behind", data + bytes(1000)
    yield "NULs before", bytes(1000) + data
    yield "twice the file", data + data
    yield "half the file", data[: len(data) // 2]
    yield "nothing at all", b""
    yield "noise", bytes(range(256)) * 100
    yield "zeros", bytes(30 * MIB)
    yield "one long line", b"a" * (70 * MIB)


@pytest.mark.parametrize("target", [pytest.param("splits/sim-heldout.json", marks=slow), "reports/sim/analysis.json"])
def test_documents(root, tmp_path, target):
    data = (root / target).read_bytes()
    key = b'"name":' if "splits" in target else b'"decision":'
    start = data.index(key) + len(key)
    end = data.index(b",", start)
    contents = {name: data[:start] + value + data[end:] for name, value in values(data[start:end])}
    contents |= {f"all {name}": value for name, value in values(b"0")}
    contents |= dict(forms(data))
    failed(verdicts(root, target, contents, tmp_path))


def at_a_field(data: bytes, key: bytes, number: int) -> dict[str, bytes]:
    """One line of a file with hostile values in one of its fields, or in its place."""
    lines = data.splitlines(keepends=True)
    text = lines[number]
    start = text.index(key) + len(key)
    end = text.index(b",", start)
    put = {name: text[:start] + value + text[end:] for name, value in values(text[start:end])}
    put |= {f"all {name}": value + b"\n" for name, value in values(b"0")}
    return {name: b"".join([*lines[:number], value, *lines[number + 1 :]]) for name, value in put.items()}


@pytest.mark.parametrize("key", [pytest.param(b'"study":', marks=slow), b'"protocol_path":', b'"warnings":'])
def test_ledger_fields(root, tmp_path, key):
    data = Workspace(root).ledger.read_bytes()
    contents = at_a_field(data, key, 0)
    contents = {n: c for n, c in contents.items() if key == b'"study":' or not n.startswith("all ")}
    failed(verdicts(root, "prereg/ledger.jsonl", contents, tmp_path))


def test_ledger_forms(root, tmp_path):
    data = Workspace(root).ledger.read_bytes()
    contents = dict(forms(data))
    contents["empty lines"] = b"\n" * (30 * MIB)
    contents["faulty lines"] = b"{}\n" * (5 * MIB)
    contents["carriage returns"] = data.replace(b"\n", b"\r")
    contents["empty lines behind"] = data + b"\n" * (9 * MIB)
    failed(verdicts(root, "prereg/ledger.jsonl", contents, tmp_path))


@slow
@pytest.mark.parametrize("key", [b'"problem":', b'"output_ids":', b'"prompt_tokens":'])
def test_record_fields(root, tmp_path, key):
    data = Workspace(root).records(STUDY, "heldout").read_bytes()
    contents = at_a_field(data, key, 7)
    contents = {n: c for n, c in contents.items() if key == b'"problem":' or not n.startswith("all ")}
    failed(verdicts(root, "reports/sim/heldout.jsonl", contents, tmp_path))


def test_record_forms(root, tmp_path):
    data = Workspace(root).records(STUDY, "heldout").read_bytes()
    contents = dict(forms(data))
    contents["empty lines"] = b"\n" * (30 * MIB)
    contents["faulty lines"] = b"{}\n" * (5 * MIB)
    contents["carriage returns"] = data.replace(b"\n", b"\r")
    failed(verdicts(root, "reports/sim/heldout.jsonl", contents, tmp_path))


@slow
def test_packed_records(root, tmp_path):
    """A few bytes of gzip are any number of bytes of records."""
    path = Workspace(root).records(STUDY, "heldout")
    data = path.read_bytes()
    text = data.splitlines(keepends=True)[0]
    start = text.index(b'"output_ids":') + len(b'"output_ids":')
    bombs = {
        "one endless line": b"a" * (300 * MIB),
        "empty lines": b"\n" * (300 * MIB),
        "lists in every line": (text[:start] + b"[" + b"[]," * 900_000 + b"0]\n") * 20,
        "wrong numbers in every line": (text[:start] + b"[" + b'"x",' * 900_000 + text[start + 1 :]) * 10,
        "objects in every line": (b"[" + b"{}," * 900_000 + b"0]\n") * 50,
        "one more record": data + text,
    }
    contents = {name: gzip.compress(value, 6) for name, value in bombs.items()}
    whole = gzip.compress(data)
    contents |= {"two parts": whole + whole, "cut off": whole[:-9], "no gzip": data}
    contents |= {"a wrong checksum": whole[:-8] + bytes(8)}
    path.unlink()
    (root / "reports/sim/heldout.jsonl.gz").write_bytes(whole)
    failed(verdicts(root, "reports/sim/heldout.jsonl.gz", contents, tmp_path), seconds=60)


def yamls() -> Iterator[tuple[str, bytes]]:
    """YAML that breaks readers."""
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    yield "billion laughs", laughs.encode()
    yield "an alias of itself", b"a: &a [*a]\n"
    yield "merge keys", b"a: &a {b: 1}\nc: {<<: *a}\n"
    for part in ("[", "{a: ", "- ", "? ", "'", "a: |\n "):
        yield f"many {part!r}", (part * (900_000 // len(part))).encode()
    yield "deep by indentation", "".join(" " * i + "a:\n" for i in range(1300)).encode()
    yield "many unknown fields", b"".join(b"f%d: 1\n" % i for i in range(80_000))
    yield "many models", b"models:\n" + b"- {}\n" * 150_000
    yield "many numbers", b"budgets: [" + b"1, " * 300_000 + b"1]\n"
    yield "many decimals", b"".join(b"f%d: 0.5\n" % i for i in range(70_000))
    yield "a tag", b"study: !!python/object/apply:os.system ['echo']\n"
    yield "an integer", b"study: " + b"9" * 900_000
    yield "a version", b"%YAML 1." + b"9" * 900_000 + b"\n---\na: 1\n"
    yield "a tag directive", b"%TAG ! " + b"x" * 900_000 + b"\n---\na: 1\n"
    yield "a character beyond Unicode", b'study: "\\UFFFFFFFF"\n'
    yield "half a character", b'study: "\\ud800"\n'
    yield "NUL", b"study: \0\n"
    yield "two documents", b"a: 1\n---\na: 2\n" * 10_000
    yield "too large", b"#" * 40 * MIB
    yield "an anchor", b"a: &" + b"x" * 900_000 + b" 1\n"
    yield "comments", b"#\n" * 450_000
    yield "a timestamp", b"study: 2026-01-01\n"


@slow
@pytest.mark.parametrize("behind", [False, True])
def test_protocol_files(root, tmp_path, behind):
    data = (root / "prereg/sim.yaml").read_bytes()
    contents = {name: data * behind + value for name, value in yamls()} | dict(forms(data))
    failed(verdicts(root, "prereg/sim.yaml", contents, tmp_path), seconds=20)


# --- a ledger whose digests all fit, as an author can make it


def signed(forger: Forger) -> bytes:
    forger.chain()
    return b"".join(line(e) + b"\n" for e in forger.events)


def registered(root: Path, **changes: object) -> bytes:
    """The ledger with another protocol registered."""
    forger = Forger(root)
    register = forger.event("register")
    register["protocol"] |= changes
    register["protocol_digest"] = digest(register["protocol"])
    return signed(forger)


@slow
def test_protocols_that_ask_for_too_much(root, tmp_path):
    document = Forger(root).event("register")["protocol"]
    model, candidate = document["models"][0], document["candidates"][0]
    values = [f"0.{i}" for i in range(100)]
    contents = {
        "models": registered(root, models=[{**model, "name": f"m{i}"} for i in range(20_000)]),
        "budgets": registered(root, budgets=list(range(1, 500_000))),
        "both": registered(
            root, models=[{**model, "name": f"m{i}"} for i in range(200)], budgets=list(range(1, 201))
        ),
        "configurations": registered(root, candidates=[{**candidate, "tune": {f"p{i}": values for i in range(50)}}]),
        "values": registered(root, candidates=[{**candidate, "tune": {"lambda": [str(i) for i in range(500_000)]}}]),
        "candidates": registered(root, candidates=[{**candidate, "name": f"c{i}"} for i in range(50_000)]),
        "controls": registered(
            root, controls=[{"name": f"c{i}", "preset": "random_pp", "params": {}} for i in range(80_000)]
        ),
        "branches": registered(root, branches=[{**document["branches"][0], "name": f"b{i}"} for i in range(30_000)]),
        "samples": registered(
            root, generation={**document["generation"], "samples": 64}, budgets=list(range(1, 201))
        ),
    }  # fmt: skip
    failed(verdicts(root, "prereg/ledger.jsonl", contents, tmp_path), seconds=20)


def test_ledgers_of_many_events(root, tmp_path):
    forger = Forger(root)
    honest = list(forger.events)

    def more(events: list[dict]) -> bytes:
        forger.events = json.loads(json.dumps(events))
        return signed(forger)

    close = next(e for e in honest if e["event"] == "records")
    contents = {
        "sessions": more([*honest[:5], *[close] * 3000, *honest[5:]]),
        "registrations": more([*honest, *[{**honest[0], "time": honest[-1]["time"]}] * 2000]),
        "analyses": more([*honest, *[honest[-1]] * 3000]),
    }
    failed(verdicts(root, "prereg/ledger.jsonl", contents, tmp_path), seconds=30)


def test_a_ledger_of_many_studies(root, tmp_path):
    """They all name one large split, each with another digest, and come to nothing; this study is none of them."""
    forger = Forger(root)
    items = forger.manifests["dev"]["items"] * 200
    (root / "splits/large.json").write_bytes(json.dumps({**forger.manifests["dev"], "items": items}).encode())
    honest = json.dumps(forger.events[0])
    for i in range(1500):
        other = {**json.loads(honest), "study": f"s{i}", "time": forger.events[-1]["time"]}
        for lock in other["payload"]["splits"].values():
            lock.update(digest=digest(i), path="splits/large.json")
        forger.events.append(other)
    found = verdicts(root, "prereg/ledger.jsonl", {"studies": signed(forger)}, tmp_path)
    code, said, took, grown = found["studies"]
    assert code == 0 and took < 10 and grown < 300, found


def numbers(root: Path, path: tuple[str, ...], value: object) -> bytes:
    """The ledger with one value of its payloads replaced."""
    forger = Forger(root)
    at = forger.event(path[0])
    for step in path[1:-1]:
        at = at[step]
    at[path[-1]] = value
    return signed(forger)


def test_schedules_and_sizes_beyond_reason(root, tmp_path):
    frozen = ("select", "arms", "one/b24", "candidate")
    dev = ("dev_run", "matched", "one/b24", "candidate", "lambda=1.0")
    huge = 2**53 - 1
    contents = {}
    for where in (frozen, dev):
        for name in ("budget", "delta", "recent", "earliest", "chains"):
            for value in (2, 4096, huge):
                contents[f"{where[0]} {name} {value}"] = numbers(root, (*where, "schedule", name), value)
        contents[f"{where[0]} boundaries"] = numbers(root, (*where, "schedule", "boundaries"), list(range(300_000)))
        for name in ("heads", "head_dim", "itemsize", "trait_bytes", "shared_bytes", "fixed_bytes"):
            contents[f"{where[0]} {name}"] = numbers(root, (*where, "footprint", name), huge)
        contents[f"{where[0]} packing"] = numbers(
            root, (*where, "footprint", "packing"), {"bits": huge, "group": huge, "residual": huge}
        )
        contents[f"{where[0]} mean"] = numbers(root, (*where, "dev_mean"), "9" * 30 + "/1" + "0" * 10)
        contents[f"{where[0]} searched"] = numbers(
            root, (*where, "searched"), [{"budget": i + 1, "dev_mean": "1/3"} for i in range(30_000)]
        )
    failed(verdicts(root, "prereg/ledger.jsonl", contents, tmp_path), seconds=20)
