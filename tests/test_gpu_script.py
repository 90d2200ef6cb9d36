"""显卡上的验收脚本：没有显卡时说清楚；不靠显卡的几项在 CPU 上也成立，错了看得出来。"""

import os
import subprocess
import sys

import gpu
import pytest
import torch
from tiny import REPOSITORY

CHECKS = ["一步，与 CPU fp32", "损失分块", "坏步由设备跳过"]


def test_without_a_gpu_it_says_what_it_would_do(tmp_path):
    """一句说没有显卡，列出会做的四部分，退出码 2，不留报告。"""
    command = [sys.executable, REPOSITORY / "tests" / "gpu.py", "--out", tmp_path / "report.md"]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    made = subprocess.run(command, capture_output=True, text=True, env=hidden, encoding="utf-8")
    assert made.returncode == 2
    assert made.stdout == ""
    assert "没有能用的 CUDA 显卡" in made.stderr
    assert all(name in made.stderr for name in [*gpu.RIGHT, *gpu.FAST, *gpu.BESIDE])
    assert not (tmp_path / "report.md").exists()


@pytest.mark.parametrize("name", CHECKS)
def test_checks_hold_on_the_cpu(name):
    assert "错" not in gpu.row(name, lambda: gpu.RIGHT[name]("cpu"))
    assert gpu.FAILURES == []


def test_a_wrong_gradient_is_seen(monkeypatch):
    """梯度差了百分之一，这一项就是「错」，回溯留给报告的末尾。"""
    original, turn = gpu.gradients, iter([1.0, 1.01, 1.01])

    def off(*given, **options):
        loss, gradient = original(*given, **options)
        return loss, gradient * next(turn)

    monkeypatch.setattr(gpu, "gradients", off)
    assert "错：损失相差" in gpu.row("一步", lambda: gpu.step_against_cpu("cpu"))
    assert "AssertionError" in gpu.FAILURES.pop()


def test_a_step_that_was_not_skipped_is_seen(monkeypatch):
    monkeypatch.setattr(gpu, "update_unless", lambda broken, optimizers, scaler: [each.step() for each in optimizers])
    assert "错：坏步 True" in gpu.row("坏步", lambda: gpu.skipped_on_device("cpu"))
    gpu.FAILURES.clear()


@pytest.mark.slow
def test_resuming_on_the_cpu_is_exact():
    assert gpu.resumed("cpu") == "逐位相同"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="没有 CUDA")
@pytest.mark.parametrize("name", gpu.RIGHT)
def test_everything_is_right_on_a_gpu(name):
    assert "错" not in gpu.row(name, lambda: gpu.RIGHT[name]("cuda"))
