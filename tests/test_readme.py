"""What the README shows is what works."""

import re
import sys
from pathlib import Path

import torch
from click.testing import CliRunner

from cask_eval.cli import COMMANDS, cli
from cask_eval.engine import registry
from cask_eval.engine.contract import Entries, Geometry, Host

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_every_command_of_the_readme_exists():
    shown = "\n".join(
        block or inline for block, inline in re.findall(r"```sh\n(.*?)```|`(cask-eval [^`]*)`", README, re.S)
    )
    named = set(re.findall(r"cask-eval (?:-C \S+ )?([a-z]+)", shown))
    assert named <= COMMANDS.keys() and {"register", "confirm", "verify"} <= named
    for name in named:
        assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0


def test_the_method_of_the_readme_works_from_its_own_package(tmp_path, monkeypatch):
    code = re.search(r"```python\n# loud/__init__.py\n(.*?)```", README, re.S).group(1)
    entry = re.search(r"```toml\n# its pyproject.toml\n\[project\.(.*?)```", README, re.S).group(1)
    (tmp_path / "loud").mkdir()
    (tmp_path / "loud" / "__init__.py").write_text(code)
    info = tmp_path / "loud-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1\n")
    # pyproject's [project.entry-points."group"] table is the same lines under [group] once installed
    (info / "entry_points.txt").write_text(entry.replace('entry-points."', "[").replace('"]', "]").replace('"', ""))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "loud", raising=False)

    method = registry.load("loudest").make("loudest", {"delta": 4, "power": "2", "prompt": "compete"})
    shape = Geometry(2, 4, 2, 8, torch.ones(4, dtype=torch.float64), 1.0, torch.float32)
    values = torch.randn(2, 1, 2, 12, 8, generator=torch.Generator().manual_seed(1))
    values[..., 10:, :] = torch.nan  # padding may hold anything
    positions = torch.tensor([*range(10), -1, -1]).expand(2, 1, 2, 12)
    one = torch.zeros(1, dtype=torch.int64)
    entries = Entries(values, values, positions, one + 3, one + 10, one, one, shape)
    keep = method.bind(Host(shape)).compress(entries, torch.tensor([4])).keep
    want = values[..., :10, :].norm(dim=-1).topk(4).indices.sort().values
    assert torch.equal(keep.nonzero()[:, -1].view(2, 1, 2, 4), want)


def test_the_table_of_methods_is_complete():
    table = README[README.index("| family | methods |") : README.index("take any scorer by name")]
    table = table[: table.rindex("|")]
    named = set(re.findall(r"`([a-z_0-9]+)`", table))
    words = {"slack", "periodic", "every_step", "trigger"}
    ours = {name for name, point in registry.available().items() if point.value.startswith("cask_methods.")}
    assert named - words == ours
