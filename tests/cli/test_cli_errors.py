"""What a user types wrongly: each gets one message with the place and the remedy, the promised exit code, and never a
traceback."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cask_eval import cli
from cask_eval.cli.common import command_line
from cask_eval.protocol.template import template
from cask_eval.splits.freeze import freeze
from cask_eval.splits.store import write
from cask_eval.tasks import registry
from cask_eval.workspace import Workspace

STUDY = "alpha-vs-triattention"
PROTOCOL = f"ws/prereg/{STUDY}.yaml"


def problems(seed: int, count: int):
    return registry.load("chain").problems({"seed": seed, "count": count})


@pytest.fixture(scope="session")
def template_workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    for name in ("ws/prereg", "ws/splits", "a folder"):
        (root / name).mkdir(parents=True)
    (root / PROTOCOL).write_text(template())
    for name, role, seed in (("dev", "dev", 1), ("heldout", "heldout", 2), ("same", "heldout", 1)):
        source = {"seed": seed, "count": 5}
        manifest = freeze(f"chain-{name}", "chain", role, source, "all", problems(seed, 5))
        write(root / f"ws/splits/chain-{name}.json", manifest)
    (root / "file").write_text("text")
    return root


@pytest.fixture
def here(template_workspace, tmp_path, monkeypatch):
    """A folder with the workspace ws/, a text file and a folder; the current folder."""
    root = tmp_path / "here"
    shutil.copytree(template_workspace, root)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def run(monkeypatch, capsys):
    """Run main() as the console script does: (exit code, stdout, stderr)."""

    def call(*args: str):
        monkeypatch.setattr(sys, "argv", ["cask-eval", *args])
        monkeypatch.setattr(sys, "stdin", open(os.devnull))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capsys.readouterr()
        return stop.value.code or 0, said.out, said.err

    return call


FREEZE = "split freeze {} --task chain --role dev --param seed=1 --param count=5"

USAGE = [
    # the command and the workspace
    ("", "Commands"),
    ("nonsense", "No such command 'nonsense'"),
    ("verifi", "Did you mean 'verify'?"),
    ("-C", "requires an argument"),
    ("-C nowhere status", "'nowhere' does not exist"),
    ("-C ws/nowhere status", "'ws/nowhere' does not exist"),
    ("status", "neither this folder nor one above it holds prereg/"),
    ("status --nope", "No such option"),
    # names of studies
    ("-C ws status other", "the ledger has no study 'other'; it is empty"),
    ("-C ws verify", "run `cask-eval register PROTOCOL` first"),
    ("-C ws verify other", "the ledger has no study 'other'; it is empty"),
    ("-C ws verify ../other", "the ledger has no study '../other'"),
    ("-C ws verify --head abc", "a head is `sha256:` and 64 hexadecimal digits"),
    ("-C ws verify --require L9", "'L9' is not one of 'L0', 'L1', 'L2', 'L3'"),
    ("-C ws report", "the ledger has no study; run `cask-eval register PROTOCOL` first"),
    ("-C ws analyze other", "the ledger has no study 'other'"),
    ("-C ws confirm", "Missing option '--split'"),
    ("-C ws confirm --split dev", "'dev' is not 'heldout'"),
    ("-C ws tune --slots 0", "0 is not in the range"),
    # init and demo
    ("init ws", "exists and is not overwritten"),
    ("init new --study Bad", "--study 'Bad': use lower-case letters"),
    ("init new --study ../x", "--study '../x': use lower-case letters"),
    ("init file", "file/prereg: Not a directory"),
    # protocols
    ("lint", "Missing argument 'PROTOCOL'"),
    ("-C ws tune --ray foo", "--ray 'foo': is no HOST:PORT; give that of the head node"),
    ("-C ws tune --ray h:²", "--ray 'h:²': is no HOST:PORT"),
    ("-C ws tune --ray h:99999", "--ray 'h:99999': is no HOST:PORT"),
    ("-C ws tune --ray ray://host:1", "--ray 'ray://host:1': is no HOST:PORT"),
    ("lint nope.yaml", "nope.yaml: cannot be read (No such file or directory)"),
    ("lint ws", "'ws' is a directory"),
    ("lint file", "file:1: document: must hold named fields"),
    # splits
    ("split", "Commands"),
    ("split freeze x.json", "Missing option '--task'"),
    ("split freeze x.json --task chian --role dev", "did you mean 'chain'?"),
    ("split freeze x.json --task chain --role test", "'test' is not one of 'dev', 'heldout'"),
    ("split freeze x.json --task chain --role dev", "--param: seed is missing"),
    (FREEZE.format("x.json") + " --param nope=1", "nope is no parameter of the chain task; use seed"),
    (FREEZE.format("x.json") + " --param seed", "--param 'seed': write NAME=VALUE"),
    (FREEZE.format("x.json") + " --param =1", "--param '=1': write NAME=VALUE"),
    (FREEZE.format("x.json") + " --param seed=2", "--param seed is given twice, as 1 and 2; keep one"),
    (FREEZE.format("x.json") + " --param start=--5", "start is '--5'; give a whole number"),
    (FREEZE.format("x.json") + " --param start=²", "start is '²'; give a whole number"),
    (FREEZE.format("x.json") + " --param start=1.5", "start is '1.5'; give a whole number"),
    (FREEZE.format("x.json") + f" --param start={'9' * 20}", "source: not canonical JSON"),
    (FREEZE.format("x.json") + f" --param start={'9' * 5000}", "give a whole number"),
    (FREEZE.format("x.json") + " --param variables=99", "variables is 99; give a whole number between 3 and 10"),
    (FREEZE.format("Bad.json"), "split 'Bad': name"),
    (FREEZE.format("ws"), "'ws' is a directory"),
    (FREEZE.format("file/x.json"), "file: File exists"),
    (FREEZE.format("ws/splits/chain-heldout.json"), "a frozen split does not change"),
    (FREEZE.format("x.json") + " --disjoint-from nope.json", "'nope.json' does not exist"),
    (FREEZE.format("x.json") + " --disjoint-from file", "file: is not strict JSON"),
    (FREEZE.format("x.json") + " --disjoint-from ws/splits/chain-dev.json", "would overlap"),
    ("split show nope.json", "does not exist"),
    ("split show file", "file: is not strict JSON"),
    ("split check", "Missing argument"),
    ("split check ws/splits/chain-dev.json ws/splits/chain-same.json", "has the same id in chain-dev and chain-same"),
    # calibrate
    ("calibrate", "Missing option '-o'"),
]


@pytest.mark.parametrize("line, message", USAGE, ids=[u[0][:70] or "nothing" for u in USAGE])
def test_a_bad_command_line(line, message, run, here):
    code, out, err = run(*line.split())
    assert (code, "Traceback" in err) == (2, False), err
    assert message in err + out
    assert len(err.splitlines()) < 50


PROTOCOLS = {
    "empty": ("", "the file is empty"),
    "tab": (template().replace("tuning: {", "tuning:\n\t{"), "cannot start any token"),
    "duplicate": (template() + "study: again\n", "study: appears twice, first at line"),
    "anchor": (template().replace("budgets: [", "budgets: &b ["), "&b is an anchor"),
    "alias": (template() + "more: *b\n", "*b is an alias; write the value out"),
    "decimal": (template().replace("budgets: [64", "budgets: [64.5"), "budgets[0]: 64.5 is an unquoted decimal"),
    "huge": (template().replace("budgets: [64", f"budgets: [{'9' * 30}"), "is beyond ±9007199254740991"),
    "misspelt": (template().replace("hypothesis:", "hypotesis:"), "did you mean `hypothesis`?"),
    "procedure": (template().replace("paired_bootstrap", "paired_bootstap"), "did you mean 'paired_bootstrap'?"),
    "tag": (template().replace("study: ", "study: !!str "), "has the tag"),
    "two": (template() + "---\n" + template(), "a second document begins here"),
    "unreachable": (template().replace('positive_cells: ">=1"', 'positive_cells: ">=9"'), "cannot be reached"),
    "method": (template().replace("preset: random_pp", "preset: randm_pp"), "did you mean random_pp"),
    "parameter": (template().replace("delta: 16", "dleta: 16"), "unknown parameter 'dleta'"),
    "parameter meant": (template().replace("delta: 16", "dleta: 16"), "did you mean 'delta'?"),
    "line": (template().replace("preset: random_pp", "preset: randm_pp"), f"{PROTOCOL}:46: controls[random]: "),
    "model": (template().replace("embedded:chain-s", "embedded:nope"), "models[chain-s].id: 'nope' is no embedded"),
    "budget": (template().replace("budgets: [64", "budgets: [20"), "nothing generated could be kept"),
    "calibration": (template().replace("calibration: bundled", "calibration: x.st"), "].calibration: "),
    "context": (template().replace("max_new_tokens: 300", "max_new_tokens: 9000"), "exceed the 2048 positions"),
    "task": (template().replace("name: chain,", "name: chian,"), "task.name: no task is called 'chian'"),
    "roles": (template().replace("chain-heldout.json", "chain-dev.json"), "is the dev split of task 'chain'"),
    "policies":
        (template().replace("head, prompt: pinned", "head, prompt: compete", 1), "and where they differ a comparison is void"),
    "tuned value": (template().replace("lambda: [", 'lambda: ["x", '), "parameter lambda is 'x'"),
    "no otherwise": (template().replace("- {name: C, otherwise: true,", "# {"), "no branch says `otherwise: true`"),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_bad_protocol(name, run, here):
    text, message = PROTOCOLS[name]
    (here / PROTOCOL).write_text(text)
    code, out, err = run("lint", PROTOCOL)
    assert (code, "Traceback" in err) == (2, False), err
    assert message in err + out


@pytest.mark.parametrize("data", [template().replace("\n", "\r\n").encode(), b"\xef\xbb\xbf" + template().encode()])
def test_line_ends_and_byte_order_marks_do_not_matter(data, run, here):
    (here / PROTOCOL).write_bytes(data)
    assert run("lint", PROTOCOL)[0] == 0


def test_a_protocol_without_its_splits(run, here):
    (here / PROTOCOL).write_text(template().replace("splits/chain-dev.json", "splits/nope.json"))
    code, out, _ = run("lint", PROTOCOL)
    assert code == 2 and ": task.dev: " in out and "nope.json" in out
    assert "digest:" not in out, "what cannot be registered has no digest to agree on"


def test_bytes_that_are_no_text(run, here):
    (here / PROTOCOL).write_bytes(template().encode("utf-16"))
    code, _, err = run("lint", PROTOCOL)
    assert code == 2 and "is not UTF-8; save the file as UTF-8" in err


def test_a_damaged_manifest(run, here):
    path = here / "ws/splits/chain-dev.json"
    text = path.read_text()
    for old, new, message in (
        ('"seed": 1', '"sed": 1', "source: sed is no parameter"),
        ('"count": 5', '"count": 4', "is missing"),
        ('"count": 5', '"count": 5.0', "is not strict JSON"),
        ('"task": "chain"', '"task": "chan"', "did you mean 'chain'?"),
    ):
        path.write_text(text.replace(old, new))
        code, _, err = run("split", "check", str(path))
        assert code == 2 and message in err and "Traceback" not in err


def test_a_file_where_a_folder_is_needed_and_the_reverse(run, here):
    (here / "ws/prereg/ledger.jsonl").mkdir()
    code, _, err = run("-C", "ws", "status")
    assert code == 2 and "ledger.jsonl: Is a directory" in err and "Traceback" not in err


def test_output_that_cannot_be_written(here):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "cask_eval", "-C", "ws", "schema"], stdout=full,
                              stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert done.returncode == 2 and "No space left" in done.stderr and "Traceback" not in done.stderr


def test_a_reader_who_stops_reading(here):
    """Neither 0 nor 1: from `verify` these would be verdicts."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "cask_eval", "schema"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_names_with_spaces_and_umlauts(run, here):
    code, out, _ = run("init", "spaß und spiel")
    assert code == 0 and out == "".join(
        f"cask-eval {step} 'spaß und spiel/prereg/{STUDY}.yaml'\n" for step in ("lint", "register")
    )
    assert run("lint", f"spaß und spiel/prereg/{STUDY}.yaml")[0] == 0


def test_the_next_command_can_be_typed_where_one_is(run, here, monkeypatch):
    space = Workspace(here / "ws")
    assert command_line(space, "tune s") == f"cask-eval -C {shlex.quote(str(here / 'ws'))} tune s"
    monkeypatch.chdir(here / "ws" / "prereg")
    assert command_line(space, "tune s") == "cask-eval tune s"


def test_results_go_to_stdout_and_logs_to_stderr(run, here):
    code, out, err = run("-C", "ws", "status", "--json")
    assert (code, out, err) == (0, "[]\n", "")


def test_an_interruption_says_how_to_go_on(run, here, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.cli, "main", stop)
    code, _, err = run("-C", "ws", "status")
    assert code == 130 and "`cask-eval status` says how to go on" in err


# --- a closed study, made without a model


@pytest.fixture(scope="session")
def template_study(tmp_path_factory):
    path = Path(__file__).parents[1] / "verify"
    sys.path.insert(0, str(path))
    try:
        import simulator
    finally:
        sys.path.remove(str(path))
    root = tmp_path_factory.mktemp("closed") / "closed"
    simulator.build(root)
    return root


@pytest.fixture
def closed(template_study, tmp_path):
    return Path(shutil.copytree(template_study, tmp_path / "closed"))


@pytest.mark.parametrize(
    "line, code, message",
    [
        ("verify", 3, "evidence level L0, required L2"),
        ("verify --require L0", 0, "; nothing found wrong"),
        ("verify sim --require L0 --json", 0, '"exit_code": 0'),
        (f"verify --require L0 --head sha256:{'0' * 64}", 1, "is not in the ledger"),
        ("verify smi", 2, "did you mean 'sim'?"),
        ("status smi", 2, "did you mean 'sim'?"),
        ("status", 0, "sim: closed"),
        ("report", 2, None),
        ("analyze", 0, "branch"),
        ("analyze other", 2, "it has sim (closed)"),
    ],
)
def test_a_closed_study(line, code, message, run, closed):
    if line == "report":
        (closed / "reports/sim/analysis.json").unlink()
        message = "has no analysis yet; run `cask-eval analyze sim`"
    found, out, err = run("-C", str(closed), *line.split())
    assert found == code and message in out + err and "Traceback" not in err


def test_a_study_folder_names_its_study(run, closed):
    code, out, _ = run("verify", str(closed / "reports" / "sim"), "--require", "L0")
    assert code == 0 and "; nothing found wrong" in out


def test_a_study_that_was_struck_from_the_ledger_fails(run, closed):
    """Its name is no slip: its records are there."""
    (closed / "prereg/ledger.jsonl").write_bytes(b"")
    code, out, _ = run("-C", str(closed), "verify", "sim")
    assert code == 1 and "V02  FAIL" in out


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"a": 1.5}'])
@pytest.mark.parametrize("command", ["report", "verify"])
def test_an_analysis_that_is_none(command, data, run, closed):
    (closed / "reports/sim/analysis.json").write_bytes(data)
    code, out, err = run("-C", str(closed), command, "sim")
    assert code == 1 and "analysis.json" in out + err and "Traceback" not in err


@pytest.mark.parametrize("command", ["report", "analyze", "status", "tune", "confirm --split heldout"])
def test_a_damaged_ledger_stops_every_command(command, run, closed):
    path = closed / "prereg/ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"expected":240', b'"expected":239'))
    code, _, err = run("-C", str(closed), *command.split())
    assert code == 1 and "restore the file from version control" in err and "Traceback" not in err


def test_records_that_changed_are_not_analysed(run, closed):
    path = closed / "reports/sim/heldout.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    code, _, err = run("-C", str(closed), "analyze")
    assert code == 1 and "differs from what was closed" in err


def test_a_spent_split_has_its_own_exit_code(run, closed):
    for command in ("tune", "confirm --split heldout --yes 00000000"):
        code, _, err = run("-C", str(closed), *command.split())
        assert code == 4 and "study 'sim' is closed" in err


def test_a_run_that_was_cut_off_is_no_spent_split_for_those_who_only_read(run, closed):
    path = closed / "prereg/ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    for command in ("analyze", "report", "verify"):
        code, _, err = run("-C", str(closed), command)
        assert code == 2 and "to resume its one attempt" in err


def test_pages_are_not_wrapped_in_a_pipe(run, closed):
    code, out, _ = run("-C", str(closed), "report")
    assert code == 0 and len([line for line in out.splitlines() if line.startswith(("one/", "two/"))]) == 4
    assert all("cache" in line for line in out.splitlines() if line.startswith(("one/", "two/")))


# --- commands that run models


DEVICES = ["tpu", "meta", "cuda:x", "", "CPU", "cuda:999"]


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_that_is_none(device, run, closed):
    code, _, err = run("-C", str(closed), "tune", "--device", device)
    assert code == 2 and f"--device {device}:" in err and "Traceback" not in err


@pytest.mark.parametrize(
    "line, message",
    [
        ("register nope.yaml", "nope.yaml: cannot be read"),
        ("register ws", "'ws' is a directory"),
        ("methods show nonsense", "no method is called 'nonsense'"),
        ("methods show alhpa", "did you mean alpha"),
        ("demo closed", "holds a ledger already"),
        ("calibrate -o x.pt", "--out x.pt: the file must end in .safetensors"),
        ("calibrate -o x.safetensors", "give --model and --split to measure, or --import FILE"),
        (
            "calibrate --model embedded:chain-s --split ws/splits/chain-heldout.json -o x.safetensors",
            "calibration may only use a dev split",
        ),
        ("calibrate --model embedded:none --split ws/splits/chain-dev.json -o x.safetensors", "none"),
        ("calibrate --model embedded:chain-s --split file -o x.safetensors", "file: is not strict JSON"),
        ("calibrate --import file -o x.safetensors", "file"),
    ],
)
def test_a_bad_command_line_of_a_command_that_runs_models(line, message, run, here, closed, monkeypatch):
    pytest.importorskip("torch")
    shutil.copytree(closed, here / "closed")
    if line.startswith("calibrate"):
        monkeypatch.chdir(here)
        line = line.replace("ws/", f"{here}/ws/")
        code, _, err = run("-C", "ws", *line.split())
    else:
        code, _, err = run(*line.split())
    assert code == 2 and message in err and "Traceback" not in err, err


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("preset: alpha", "preset: alhpa", "alpha"),
        ("lambda:", "lamda:", "lambda"),
        ('"0.25"', '"x"', "lambda"),
        ("chain-dev.json", "chain-no.json", "task.dev"),
        ("chain-dev.json", "chain-heldout.json", "is the heldout split"),
        ("chain-heldout.json", "chain-same.json", "dev and held-out overlap"),
        ("embedded:chain-s", "embedded:chain-x", "chain-x"),
        ("splits/chain-dev.json", "../chain-dev.json", "must stay inside the workspace"),
    ],
)
def test_a_protocol_that_fits_nothing_here(old, new, message, run, here):
    pytest.importorskip("torch")
    text = (here / PROTOCOL).read_text()
    assert old in text
    (here / PROTOCOL).write_text(text.replace(old, new))
    code, _, err = run("register", PROTOCOL, "--device", "cpu")
    assert code == 2 and message in err and "Traceback" not in err, err
    assert not (here / "ws/prereg/ledger.jsonl").exists()


def test_kernels_that_do_not_exist(run, here, monkeypatch):
    (here / PROTOCOL).write_text(template())
    monkeypatch.setenv("CASK_EVAL_KERNELS", "flash")
    code, out, _ = run("lint", PROTOCOL)
    assert code == 2 and "error: " in out and "there is no kernel 'flash'" in out


@pytest.mark.parametrize(
    "old, new", [("max_new_tokens: 300", "max_new_tokens: 20"), ("budgets: [64, 96]", "budgets: [400, 500]"),
                 ("params: {delta: 16, mode", "params: {delta: 400, mode")]
)  # fmt: skip
def test_a_study_in_which_nothing_can_be_compressed(old, new, run, here):
    (here / PROTOCOL).write_text(template().replace(old, new))
    said = run("lint", PROTOCOL)[1]
    assert "the baseline (triattention) never compresses anything of chain-s: prompts of up to 35" in said
    (here / PROTOCOL).write_text(template())
    assert "never compresses" not in run("lint", PROTOCOL)[1]


def test_a_full_cache_as_the_baseline(run, here):
    params = "preset: triattention\n  params: {delta: 16, mode: per_layer_head, prompt: pinned}"
    text = template().replace(params, "preset: fullkv")
    text = text.replace('tolerance: "0.03"', 'tolerance: "0.03", prompt_policies: any')
    (here / PROTOCOL).write_text(text)
    assert "the baseline (fullkv) never compresses anything" in run("lint", PROTOCOL)[1]


def test_an_expected_discordance_of_nothing(run, here):
    (here / PROTOCOL).write_text(template() + 'expected_discordance: "0"\n')
    assert "discordance 0.2, assumed as expected_discordance is 0" in run("lint", PROTOCOL)[1]
    code, out, _ = run("plan", PROTOCOL)
    assert code == 0 and "at discordance 0.2 (assumed)" in out
