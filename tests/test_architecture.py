"""The rooms of the house: imports point down, the wings do not meet, and readers need no torch."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cask_eval"

# What each room may import; the floor lies below them all.
FLOOR = {"errors", "canonical", "fields", "schedule", "footprint", "residency", "jsonl", "workspace", "embedded"}
FLOOR |= {"fidelity", "invocation", "occupancy", "stages"}
FOUNDATION = ["protocol", "splits", "ledger", "records", "stats", "decide", "tasks"]
MAY_IMPORT = {
    "protocol": set(),
    "splits": {"protocol"},
    "ledger": {"protocol", "splits"},
    "records": {"protocol", "splits", "ledger"},
    "stats": set(),
    "grading": set(),
    "tasks": {"grading"},
    "decide": {"protocol", "splits", "ledger", "records", "stats"},
    "engine": set(),
    "runner": {*FOUNDATION, "engine", "grading"},
    "replay": {*FOUNDATION, "engine", "runner", "report"},
    "cluster": {*FOUNDATION, "engine", "grading", "runner", "replay"},
    "anchor": {"protocol", "splits", "ledger"},
    "verify": {*FOUNDATION, "anchor"},
    "report": set(FOUNDATION),
    "bridge": {*FOUNDATION, "grading"},
    "bundle": {*FOUNDATION, "verify"},
    "embedded": {"tasks"},
}
TORCH_FREE = [*FOUNDATION, "grading", "anchor", "verify", "report", "bridge", "bundle"]


def imports(path: Path) -> set[str]:
    """Modules a file imports anywhere, also inside functions."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            out |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            out |= {f"{node.module}.{a.name}" for a in node.names}
    return out


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_lies_below_it(room):
    for path in (PACKAGE / room).rglob("*.py"):
        rooms = {m.split(".")[1] for m in imports(path) if m.startswith("cask_eval.") and m.count(".")}
        rooms = {r for r in rooms if (PACKAGE / r).is_dir()}
        assert rooms <= {room, *MAY_IMPORT[room], *FLOOR}, path


def test_the_floor_imports_no_room():
    for name in FLOOR - {"embedded"}:
        path = PACKAGE / f"{name}.py"
        assert not {m for m in imports(path) if any(m.startswith(f"cask_eval.{r}") for r in MAY_IMPORT)}, path


def test_the_toolkit_names_no_method():
    for path in PACKAGE.rglob("*.py"):
        assert not any(m.startswith("cask_methods") for m in imports(path)), path


def test_methods_know_nothing_of_studies():
    for path in (ROOT / "methods").rglob("*.py"):
        rooms = {m.split(".")[1] for m in imports(path) if m.startswith("cask_eval.")}
        assert rooms <= {"engine", "errors", "schedule", "footprint"}, path


BLOCKED = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Wall())
import importlib, pkgutil
import cask_eval
for room in {rooms}:
    package = importlib.import_module('cask_eval.' + room)
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):
        if '.kernels.' not in info.name:  # those need Triton, and are imported where one is asked for
            importlib.import_module(info.name)
"""


def run(code: str, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=ROOT)


def test_the_foundation_and_the_reading_wing_import_without_torch():
    result = run(BLOCKED.format(blocked={"torch", "transformers", "safetensors", "tokenizers"}, rooms=TORCH_FREE))
    assert result.returncode == 0, result.stderr


def test_replays_are_read_and_summarised_without_torch():
    readers = ("records", "summary", "questions", "blocks")
    code = BLOCKED.format(blocked={"torch", "transformers", "safetensors", "tokenizers"}, rooms=[])
    result = run(code + "".join(f"\nimport cask_eval.replay.{name}" for name in readers))
    assert result.returncode == 0, result.stderr


def test_the_cluster_is_imported_when_it_is_asked_for_and_ray_when_it_is_joined():
    code = BLOCKED.format(blocked={"ray"}, rooms=["runner", "replay", "cli"])
    without = "\nassert not [m for m in sys.modules if m.startswith('cask_eval.cluster')]"
    with_it = "".join(f"\nimport cask_eval.cluster.{p.stem}" for p in (PACKAGE / "cluster").glob("[a-z]*.py"))
    result = run(code + without + with_it)
    assert result.returncode == 0, result.stderr


def test_work_is_shared_out_without_torch():
    code = BLOCKED.format(blocked={"torch", "transformers", "ray"}, rooms=[])
    names = ("queue", "messages", "connect", "crew")
    result = run(code + "".join(f"\nimport cask_eval.cluster.{name}" for name in names))
    assert result.returncode == 0, result.stderr


def test_engine_and_methods_import_without_pydantic():
    code = BLOCKED.format(blocked={"pydantic", "pydantic_core", "rfc8785", "ruamel", "click"}, rooms=["engine"])
    result = run(code + "\nimport cask_methods.presets.alpha, cask_methods.presets.recency")
    assert result.returncode == 0, result.stderr


def test_engine_and_methods_import_without_triton():
    code = BLOCKED.format(blocked={"triton"}, rooms=["engine"])
    code += "\nimport cask_methods.scorers.triattention, cask_methods.selectors.diverse, cask_methods.selectors.top_k"
    without = "\nassert not [m for m in sys.modules if '.kernels.' in m]"
    result = run(code + without)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("args", [["--help"], ["verify", "--help"], ["split", "--help"], ["confirm", "--help"]])
def test_help_answers_at_once_and_loads_nothing_heavy(args):
    code = """
import sys, time
sys.argv = ['cask-eval', *sys.argv[1:]]
from cask_eval.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {'torch', 'transformers', 'scipy', 'statsmodels', 'pandas', 'matplotlib', 'sympy'} & set(sys.modules)
assert not heavy, heavy
print('CPU', time.process_time(), file=sys.stderr)
"""
    result = run(code, *args)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Usage: ")
    assert float(result.stderr.split()[-1]) < 0.5


@pytest.mark.slow
def test_a_wheel_installs_two_packages_and_their_data(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"cask_eval", "cask_methods"}
    for needed in (
        "cask_eval/report/templates/report.html",
        "cask_eval/embedded/chain-s/model.safetensors",
        "cask_eval/embedded/chain-s/calibration.safetensors",
    ):
        assert needed in names
