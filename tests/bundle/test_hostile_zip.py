"""Bundles made to deceive or to break the reader end in a BundleError, at once and with little memory."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from simulator import STUDY, Forger
from test_export import EVIDENCE

from cask_eval.bundle import form
from cask_eval.bundle.contents import INDEX
from cask_eval.bundle.errors import BundleError
from cask_eval.bundle.names import clash, fault
from cask_eval.canonical import digest_bytes
from cask_eval.workspace import Workspace


def parts(data: bytes) -> dict[str, bytes]:
    """A bundle's members, in their order."""
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        return {name: z.read(name) for name in z.namelist()}


def packed(members: dict[str, bytes] | list[tuple[str, bytes]]) -> bytes:
    """These members in the form of a bundle, whatever they are."""
    import zlib

    out, made = b"", []
    for name, data in members.items() if isinstance(members, dict) else members:
        made.append(form.Member(name, len(data), zlib.crc32(data), len(out)))
        out += made[-1].local() + data
    return out + form.end(made, len(out))


def indexed(members: dict[str, bytes]) -> dict[str, bytes]:
    """The same with an index that fits: as somebody would do it who knows the form."""
    index = json.loads(members[INDEX])
    index["files"] = {name: digest_bytes(data) for name, data in members.items() if name != INDEX}
    return {**members, INDEX: json.dumps(index).encode()}


@pytest.fixture
def refused(tmp_path, cask):
    """The message with which `verify` refuses these bytes; nothing may be left anywhere, and exit code is 1."""

    def run(data: bytes) -> str:
        path = tmp_path / "b.zip"
        path.write_bytes(data)
        (tmp_path / "t").mkdir(exist_ok=True)
        before = set(tmp_path.rglob("*"))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("tempfile.tempdir", str(tmp_path / "t"))
            with pytest.raises(BundleError) as caught:
                cask("verify", path, "--require", "L0")
        assert caught.value.exit_code == 1 and set(tmp_path.rglob("*")) == before
        assert len(str(caught.value)) < 700 and "; " in str(caught.value)
        return str(caught.value)

    return run


def test_the_helpers_make_what_export_makes(sent):
    assert packed(parts(sent)) == sent


# --- the form of the file


def test_every_byte_counts(sent, tmp_path, refused):
    """Headers and index: any bit flipped anywhere is noticed. In the evidence it is the checksum's work."""
    heads = [(m.offset, m.data) for m in form.read(io.BytesIO(sent), "sent")]
    first = heads[1][0]
    ends = sent.rindex(b"PK\x05\x06")
    where = [*range(0, first, 97), *(a + 7 for a, _ in heads[1:]), *range(heads[-1][1], ends, 40011)]
    for at in [*where, *range(ends, len(sent)), ends - 3, ends - 60]:
        refused(sent[:at] + bytes([sent[at] ^ 4]) + sent[at + 1 :])


@pytest.mark.parametrize("cut", [0, 1, 21, 22, 100, 5000, -1, -22, -23, -500])
def test_cut_off(sent, refused, cut):
    refused(sent[:cut])


@pytest.mark.parametrize(
    "junk", [lambda b: b"#!/bin/sh\n" + b, lambda b: b + b"\n", lambda b: b + b, lambda b: b"%PDF-1.4\n" + b + b"%%EOF"]
)
def test_something_before_or_behind(sent, refused, junk):
    assert "something" in refused(junk(sent))


def test_something_between(sent, refused):
    at = form.read(io.BytesIO(sent), "sent")[3].offset
    refused(sent[:at] + b"x" * 100 + sent[at:])
    ends = struct.unpack("<I", sent[-6:-2])[0]
    refused(sent[:ends] + b"x" * 100 + sent[ends:])
    # The end record moved along: the gap is now in front of the directory.
    refused(sent[:ends] + b"x" * 100 + sent[ends:-6] + struct.pack("<I", ends + 100) + sent[-2:])


def with_zipfile(sent: bytes, change: Callable[[zipfile.ZipInfo], None], method: int = 0) -> bytes:
    """The members written by another program, each changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z:
        for name, data in parts(sent).items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr, info.create_system, info.compress_type = 0o100644 << 16, 3, method
            change(info)
            z.writestr(info, data)
    return out.getvalue()


def attributes(mode: int) -> Callable[[zipfile.ZipInfo], None]:
    return lambda info: setattr(info, "external_attr", mode << 16)


@pytest.mark.parametrize(
    "change, said",
    [(attributes(stat.S_IFLNK | 0o777), "a link or a folder"), (attributes(stat.S_IFIFO | 0o644), "a link or a folder"),
     (attributes(stat.S_IFCHR | 0o644), "a link or a folder"), (attributes(stat.S_IFREG | 0o4755), "attributes"),
     (attributes(stat.S_IFDIR | 0o755), "a link or a folder"),
     (lambda info: setattr(info, "comment", b"hello"), "comment length"),
     (lambda info: setattr(info, "extra", b"\x99\x99\x04\x00abcd"), "extra length"),
     (lambda info: setattr(info, "date_time", (2026, 1, 1, 0, 0, 0)), "date")],
)  # fmt: skip
def test_members_that_are_no_plain_files(sent, refused, change, said):
    # zipfile does not set the flag for UTF-8 names where ASCII is enough; that alone would be refused.
    data = with_zipfile(sent, change)
    at = data.index(b"PK\x01\x02")
    assert "flags" in refused(data)
    fixed = bytearray(data)
    for m in zipfile.ZipFile(io.BytesIO(data)).infolist():
        fixed[m.header_offset + 7] |= 8
        assert fixed[at : at + 4] == b"PK\x01\x02"
        fixed[at + 9] |= 8
        at += 46 + len(m.filename) + len(m.extra) + len(m.comment)
    assert said in refused(bytes(fixed))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members(sent, refused, method):
    assert "unpack it with a tool that you trust" in refused(with_zipfile(sent, lambda info: None, method))


@pytest.mark.parametrize("method", [1, 9, 93, 97, 98, 99, 65535])
def test_methods_nobody_knows(sent, refused, method):
    data = bytearray(sent)
    at = data.rindex(b"PK\x01\x02")
    data[at + 10 : at + 12] = struct.pack("<H", method)
    assert "method (compressed?)" in refused(bytes(data))


@pytest.mark.parametrize("bit", [0, 3, 6, 13])
def test_encrypted_and_streamed_members(sent, refused, bit):
    data = bytearray(sent)
    at = data.index(b"PK\x01\x02")
    flags = 0x0800 | 1 << bit
    data[at + 8 : at + 10] = data[6:8] = struct.pack("<H", flags)
    assert "flags (encrypted or streamed?)" in refused(bytes(data))


@pytest.mark.parametrize("size", [0, 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("both", [False, True])
def test_sizes_that_lie(sent, refused, size, both):
    data = bytearray(sent)
    at = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    offset = struct.unpack("<I", data[at + 42 : at + 46])[0]
    for place in (at + 20, at + 24, *((offset + 18, offset + 22) if both else ())):
        data[place : place + 4] = struct.pack("<I", size)
    refused(bytes(data))


def test_members_that_overlap(sent, refused):
    """The second directory line points to where the first member is (Fifield's bombs)."""
    members = form.read(io.BytesIO(sent), "sent")
    ends = struct.unpack("<I", sent[-6:-2])[0]
    twice = [*members[:3], members[2]._replace(name="splits/again.json"), *members[3:]]
    assert "offset" in refused(sent[:ends] + form.end(twice, ends))
    moved = [m._replace(offset=0) for m in members]
    assert "offset" in refused(sent[:ends] + form.end(moved, ends))


def test_too_many_members(refused):
    assert "at most 1000" in refused(packed([(f"f{i}", b"") for i in range(1001)]))


@pytest.mark.parametrize("count", [1, 1000, 65535])
def test_a_huge_directory_is_not_read(tmp_path, count):
    size = 3 << 30
    with open(tmp_path / "b.zip", "wb") as f:  # sparse: it takes no room
        f.seek(size)
        f.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, size, 0, 0))
    tracemalloc.start()
    with open(tmp_path / "b.zip", "rb") as f, pytest.raises(BundleError):
        form.read(f, "b.zip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_zip64_is_refused(refused):
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 46, 0)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, 0, 1)
    refused(end64 + locator + struct.pack("<4s4H2IH", b"PK\x05\x06", *(0xFFFF,) * 4, 0xFFFFFFFF, 0xFFFFFFFF, 0))


def test_a_file_that_is_no_zip(refused):
    refused(b"")
    refused(b"PK\x05\x06" + bytes(18))
    refused(os.urandom(5000))


# --- names

BAD = ["../x", "a/../../x", "/etc/x", "//host/x", "C:/x", "C:x", "a\\b", "..\\x", "a//b", "./a", "a/.", "a/", "",
       "a\0b", "a\nb", "a\x1b[2Jb", "a\u202eb", "a\u200bb", "con", "prereg/NUL.json", "com1", "a/aux.tar.gz", "a.",
       "a /b", "a:b", "x" * 201, "y/" * 300 + "z", "a*", "a?", "a|b", "\ufeffa"]  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_names_that_lead_elsewhere(sent, refused, name):
    members = parts(sent)
    assert fault(name)
    assert "the name" in refused(packed(list({**members, name: b"evil"}.items())))


@pytest.mark.parametrize(
    "pair",
    [("a", "A"), ("a/b", "A/B"), ("é", "e\u0301"), ("ﬁ", "fi"), ("straße", "STRASSE"), ("a", "a/b"), ("a/b", "A"),
     ("K", "\u212a"), ("x/y/z", "X/y")],
)  # fmt: skip
def test_names_that_are_one_file(sent, refused, pair):
    assert clash(pair) and clash(reversed(pair))
    extra = [(name, b"evil") for name in pair]
    said = refused(packed([*parts(sent).items(), *extra]))
    assert "are one file" in said


def test_names_that_are_several_files():
    assert not clash(["a", "ab", "a-b", "b/a", "b/ab", "ba", "c/a/b", "c/ab"])


def test_the_same_member_twice(sent, refused):
    """Readers that take the first and readers that take the last would see different evidence."""
    members = list(parts(sent).items())
    at = next(i for i, (name, _) in enumerate(members) if name == "reports/sim/analysis.json")
    assert "are one file" in refused(packed([*members, members[at]]))
    assert "are one file" in refused(packed([members[0], *members]))


def test_names_that_are_not_utf8(sent, refused):
    refused(sent.replace(b"splits/sim-dev.json", b"splits/sim-\xffev.json"))


# --- what is in it


@pytest.mark.parametrize("name", ["malware.exe", "reports/sim/report.html", "reports/b/heldout.jsonl", "splits/x.json"])
def test_what_nobody_asked_for(sent, refused, name):
    members = parts(sent)
    assert "is not both in the zip and in bundle.json" in refused(packed({**members, name: b"x"}))
    assert "which the ledger does not name" in refused(packed(indexed({**members, name: b"x"})))


@pytest.mark.parametrize("name", sorted({*EVIDENCE, "README.txt"}))
def test_what_was_left_out(sent, refused, tmp_path, cask, name):
    members = parts(sent)
    del members[name]
    assert "is not both" in refused(packed(members))
    if name != "prereg/ledger.jsonl":  # With an index that fits, a missing file is not checked, as in a workspace.
        (tmp_path / "b.zip").write_bytes(packed(indexed(members)))
        code = cask("verify", tmp_path / "b.zip", "--require", "L0").return_value
        assert code == (0 if name == "README.txt" else 3)
    else:
        assert "the ledger's is None" in refused(packed(indexed(members)))


@pytest.mark.parametrize("name", sorted({*EVIDENCE, "README.txt"}))
def test_what_was_changed(sent, refused, name):
    """Also by a byte that means nothing."""
    members = parts(sent)
    members[name] += b"\n"
    assert f"{name} is not the file that was exported" in refused(packed(members))


def test_a_ledger_that_ends_elsewhere(sent, refused):
    members = parts(sent)
    lines = members["prereg/ledger.jsonl"].splitlines(keepends=True)
    members["prereg/ledger.jsonl"] = b"".join(lines[:-1])
    assert "names the head" in refused(packed(indexed(members)))


@pytest.mark.parametrize(
    "index",
    [b"", b"{}", b"[]", b"nul", b"\xff", b"[" * 100_000, b'{"a":1e9}', b'{"a":' + b"9" * 10_000 + b"}",
     b"\xef\xbb\xbf{}", b'{"bundle":"cask-eval/bundle/1","bundle":"cask-eval/bundle/1"}',
     b'{"bundle": "cask-eval/bundle/2"}',
     b" " * (1 << 20) + b"{}"],
)  # fmt: skip
def test_an_index_that_is_none(sent, refused, index):
    assert "bundle.json" in refused(packed({**parts(sent), INDEX: index}))


@pytest.mark.parametrize("field, value", [("study", "../x"), ("study", "a" * 100), ("head", "x"), ("files", {}),
                                          ("files", {"../x": "sha256:" + "0" * 64}), ("more", 1), ("bundle", None),
                                          ("files", {INDEX: "sha256:" + "0" * 64})])  # fmt: skip
def test_an_index_with_wrong_fields(sent, refused, field, value):
    members = parts(sent)
    members[INDEX] = json.dumps({**json.loads(members[INDEX]), field: value}).encode()
    refused(packed(members))


def test_a_bundle_must_begin_with_its_index(sent, refused):
    members = parts(sent)
    assert "does not begin with" in refused(packed([*list(members.items())[1:], (INDEX, members[INDEX])]))


def test_forged_evidence_fails_with_its_id(root, sent, tmp_path, cask):
    forger = Forger(root)
    forger.analysis["branch"] = "C"
    forger.write()
    members = parts(sent)
    members["reports/sim/analysis.json"] = Workspace(root).analysis(STUDY).read_bytes()
    (tmp_path / "b.zip").write_bytes(packed(indexed(members)))
    result = cask("verify", tmp_path / "b.zip", "--require", "L0")
    assert result.return_value == 1 and "V21  FAIL" in result.output


# --- an unpacked bundle


@pytest.fixture
def unpacked(sent, tmp_path) -> Path:
    zipfile.ZipFile(io.BytesIO(sent)).extractall(tmp_path / "u")
    return tmp_path / "u"


def test_what_lies_beside_an_unpacked_bundle_does_not_matter(unpacked, cask):
    (unpacked / ".DS_Store").write_bytes(b"x")
    (unpacked / "notes").mkdir()
    assert cask("verify", unpacked, "--require", "L0").return_value == 0


def test_an_unpacked_bundle_that_was_changed(unpacked, cask):
    (unpacked / "reports/sim/analysis.json").write_bytes(b"{}")
    with pytest.raises(BundleError, match="is not the file that was exported"):
        cask("verify", unpacked)
    (unpacked / "reports/sim/analysis.json").unlink()
    with pytest.raises(BundleError, match="is not there"):
        cask("verify", unpacked)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("what", ["reports/sim/analysis.json", "reports", "bundle.json"])
def test_an_unpacked_bundle_with_links(unpacked, tmp_path, cask, what):
    shutil.move(unpacked / what, tmp_path / "moved")
    (unpacked / what).symlink_to(tmp_path / "moved")
    with pytest.raises(BundleError):
        cask("verify", unpacked)
    (unpacked / what).unlink()
    (unpacked / what).symlink_to(what.split("/")[-1])
    if what != "bundle.json":
        with pytest.raises(BundleError):
            cask("verify", unpacked)


def test_the_command_ends_with_1_and_one_line(sent, tmp_path):
    (tmp_path / "b.zip").write_bytes(sent + b"x")
    code = "import sys; sys.argv = ['cask-eval', 'verify', 'b.zip']; from cask_eval.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=60, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("error: b.zip: ") and done.stderr.count("\n") == 1
