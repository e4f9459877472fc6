"""The last line of every append-only file, cut anywhere or followed by rubbish, as a crash of the machine leaves it."""

import random

import pytest
from crashes import STUDY, Workplace, check, check_same, check_verdict
from faults import Faults

from cask_eval import jsonl
from cask_eval.errors import LedgerError
from cask_eval.ledger.log import Ledger
from cask_eval.ledger.state import StudyState
from cask_eval.protocol.keys import keys_root
from cask_eval.records.store import RecordStore

RUBBISH = [b"\0", bytes(4096), b'{"', b"\xff\xfe", b"{" * 300, b'{"seq":3,"prev":"sha256:0', "é".encode()[:-1], b"[1,2"]


@pytest.fixture(scope="module")
def halfway(tuned, server, tmp_path_factory) -> Workplace:
    """Stopped in the middle of the held-out run: the ledger ends in `consume`, both records files have lines."""
    import shutil

    place = Workplace(shutil.copytree(tuned.root, tmp_path_factory.mktemp("halfway") / "ws"))
    assert server(*place.command("confirm"), faults=Faults(str(place.root), 30, "kill", 0)).status == -9
    assert place.state.name == "consumed" and len(list(place.store("heldout").read())) > 3
    return place


def cut(path, keep: int) -> bytes:
    """Leave `keep` bytes of the last line; returns the whole line."""
    data = path.read_bytes()
    start = data.rstrip(b"\n").rfind(b"\n") + 1
    path.write_bytes(data[: start + keep])
    return data[start:]


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_the_ledger_cut_at_every_byte(every, halfway, tmp_path):
    data, path = halfway.ledger.read_bytes(), tmp_path / "ledger.jsonl"
    whole = Ledger(halfway.ledger).events()
    payload = StudyState.of(whole, STUDY).consume[1]
    size = len(data.splitlines(keepends=True)[-1])
    for keep in sorted({*range(0, size, every), size - 2, size - 1}):
        path.write_bytes(data)
        line = cut(path, keep)
        complete = keep == size - 1  # all but the newline
        kept = whole if complete else whole[:-1]
        assert Ledger(path).events() == kept
        Ledger(path).append(STUDY, "consume", payload)
        assert path.read_bytes().splitlines()[:-1] == data.splitlines()[: len(kept)]
        assert Ledger(path).events()[:-1] == kept
        torn = tmp_path / "ledger.jsonl.torn"
        assert (torn.read_bytes() if torn.exists() else b"") == (b"" if complete or not keep else line[:keep] + b"\n")
        torn.unlink(missing_ok=True)


@pytest.mark.parametrize("phase", ["dev", "heldout"])
def test_records_cut_at_every_byte(phase, halfway, tmp_path):
    source = halfway.store(phase)
    data, path = source.path.read_bytes(), tmp_path / "records.jsonl"
    *first, last = source.read()
    path.write_bytes(data)
    size = len(cut(path, 0))
    # The tail of a record is long; its first and last bytes and every tenth between them.
    for keep in sorted({*range(60), *range(60, size, 10), *range(size - 60, size)}):
        path.write_bytes(data)
        cut(path, keep)
        with RecordStore(path).open() as store:
            if keep == size - 1:
                assert store.done == {r.key for r in [*first, last]}
            else:
                assert store.done == {r.key for r in first}
                store.append([last])
        assert path.read_bytes() == data


@pytest.mark.parametrize("rubbish", RUBBISH, ids=range(len(RUBBISH)))
def test_rubbish_behind_the_last_line_is_set_aside(rubbish, halfway, copy):
    place = copy(halfway)
    for path in (place.ledger, place.store("dev").path, place.store("heldout").path):
        data = path.read_bytes()
        path.write_bytes(data + rubbish)
        before = jsonl.read(path)
        assert (before.lines, before.torn) == (data.splitlines(), rubbish)
        assert jsonl.repair(path) == rubbish and path.read_bytes() == data
        assert path.with_name(path.name + ".torn").read_bytes() == rubbish + b"\n"


def test_a_complete_line_that_is_wrong_is_not_set_aside(halfway, copy):
    """Nobody but an editor leaves one; it must be looked at."""
    place = copy(halfway)
    for rubbish in (b"{}\n", b"\n", b"\0\n"):
        data = place.ledger.read_bytes()
        place.ledger.write_bytes(data + rubbish)
        with pytest.raises(LedgerError, match="line 5"):
            Ledger(place.ledger).append(STUDY, "consume", place_consume(halfway))
        assert place.ledger.read_bytes() == data + rubbish
        place.ledger.write_bytes(data)


def place_consume(place):
    found = place.state.consume[1]
    assert found.keys != keys_root([])
    return found


def keeps(size: int, rng) -> list[int]:
    return [0, 1, size - 2, size - 1, *sorted(rng.sample(range(2, size - 2), 2))]


@pytest.mark.parametrize("file", ["ledger", *(pytest.param(f, marks=pytest.mark.slow) for f in ("dev", "heldout"))])
@pytest.mark.parametrize("some", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_the_study_goes_on_after_a_cut(file, some, registered, tuned, halfway, closed, copy, server):
    """dev: stopped while tuning. ledger: each event once the last one."""
    rng = random.Random(3)
    for source, path in sources(file, registered, tuned, halfway, copy, server):
        size = len(path(source).read_bytes().splitlines(keepends=True)[-1])
        for keep in rng.sample(keeps(size, rng), some):
            place = copy(source, f"{source.state.name}{keep}")
            cut(path(place), keep)
            go_on(place, server)
            check_same(place, closed, server)


def sources(file, registered, tuned, halfway, copy, server):
    if file == "heldout":
        return [(halfway, lambda place: place.store("heldout").path)]
    if file == "ledger":
        return [(tuned, lambda place: place.ledger), (halfway_begun(tuned, copy, server), lambda place: place.ledger)]
    place = copy(registered, "tuning")
    assert server(*place.command("tune"), faults=Faults(str(place.root), 20, "kill", 0)).status == -9
    return [(place, lambda place: place.store("dev").path)]


def halfway_begun(tuned, copy, server):
    """`consume` is written, and no prompt has been run."""
    place = copy(tuned, "begun")
    done = server(*place.command("confirm"), faults=Faults(str(place.root), 7, "kill", 0))
    assert done.status == -9 and place.state.name == "consumed" and not place.store("heldout").path.exists()
    return place


def go_on(place, server):
    while step := place.step():
        before = place.complete()
        done = server(*place.command(step))
        assert done.status == 0, done.err
        check(place, before)


@pytest.mark.slow
def test_records_of_an_amended_study(registered, copy, server):
    """The second dev run has a file of its own; the first one stays as it is."""
    place = copy(registered)
    assert server(*place.command("tune")).status == 0
    place.edit({'tune: {lambda: ["0.25", "1.0"]}': 'tune: {lambda: ["0.25", "0.5"]}'})
    amend = (*place.command("amend"), "--reason", "another value of lambda is of interest")
    assert server(*amend).status == 0
    first = (place.reports / "dev.jsonl").read_bytes()
    assert server(*place.command("tune"), faults=Faults(str(place.root), 20, "kill", 0.7)).status == -9
    path = place.reports / "dev-2.jsonl"
    cut(path, 100)
    go_on(place, server)
    assert (place.reports / "dev.jsonl").read_bytes() == first
    assert (place.reports / "dev-2.jsonl.torn").exists()
    check_verdict(place, server)
    assert server(*place.command("pack")).status == 0
    assert not list(place.reports.glob("*.jsonl")) and len(list(place.reports.glob("*.jsonl.gz"))) == 3
    check_verdict(place, server)
