"""kill -9：tests/kill.py 的短版（长版：`python tests/kill.py --kills 50`）。"""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_few_kills_change_nothing():
    """随机的时刻 kill -9 几次：留下的文件都完好，接着训完与没受打扰的逐位相同。"""
    script = Path(__file__).resolve().parent / "kill.py"
    short = ["--kills", "4", "--steps", "400", "--longest", "2.5"]
    done = subprocess.run(
        [sys.executable, str(script), *short], capture_output=True, encoding="utf-8", timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "杀了 4 次" in done.stdout
