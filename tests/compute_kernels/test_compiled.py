"""Every kernel compiles to machine code, with no GPU: the interpreter also runs what is no valid Triton."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles(capability, tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'cask-eval[kernels]'")
    env = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "CASK_EVAL_KERNELS")}
    env["TRITON_CACHE_DIR"] = str(tmp_path)
    script = Path(__file__).with_name("compiled.py")
    done = subprocess.run([sys.executable, script, str(capability), "128x7"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "_chunk, _finish, _join, _mark, _pick, _place, _raw compile" in done.stdout
