"""边缘：关了的标准流、带 BOM 的 config.py、~、不成字的参数、空的 RANK、被移走的检查点文件夹。"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import REPOSITORY, TINY

import checkpoint
import config
import runtime
import train
from config import UserError

LONG = "长" * 12_000


def script(name: str, *argv: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess:
    command = f'exec "$0" "$@" {shell}'
    return subprocess.run(
        ["bash", "-c", command, sys.executable, str(REPOSITORY / name), *argv],
        capture_output=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def training(corpus: Path, folder: Path, *extra: str) -> list[str]:
    places = {
        "lyrics_dir": corpus,
        "checkpoint_dir": folder / "c",
        "cache_dir": folder / "k",
        "bpe_model_prefix": folder / "b",
    }
    return [*TINY, *(part for name, path in places.items() for part in (f"--{name}", str(path))), *extra]


# ---- 标准流 ----


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_training_with_closed_streams(corpus, tmp_path, closed):
    """标准流关着也照常训练，消息不会写进检查点。"""
    done = script("train.py", *training(corpus, tmp_path, "--train_iters", "3"), shell=closed)
    assert done.returncode == 0, done.stderr.decode()
    assert checkpoint.load(tmp_path / "c" / "latest.pt", for_resume=True)["iter"] == 3
    assert b"Traceback" not in done.stderr


def test_lyrics_into_a_full_disk(corpus, tmp_path):
    """歌词写不进去：一句话，退出码 2。"""
    if not os.path.exists("/dev/full"):
        pytest.skip("这里没有 /dev/full")
    assert train.main(training(corpus, tmp_path, "--train_iters", "3")) == 0
    flags = ["--checkpoint", str(tmp_path / "c" / "best.pt"), "--prompt", "我", "--device", "cpu", "--max_tokens", "5"]
    done = script("inference.py", *flags, shell=">/dev/full")
    assert done.returncode == 2
    assert "写不出去" in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_lyrics_in_a_pipe_are_utf8(corpus, tmp_path):
    """管道与文件里总是 UTF-8，不论系统的编码。"""
    assert train.main(training(corpus, tmp_path, "--train_iters", "3")) == 0
    flags = [
        "--checkpoint",
        str(tmp_path / "c" / "best.pt"),
        "--prompt",
        "今夜我",
        "--device",
        "cpu",
        "--max_tokens",
        "5",
    ]
    done = script("inference.py", *flags, PYTHONIOENCODING="gbk", PYTHONUTF8="0")
    assert done.stdout.decode("utf-8").startswith("今夜我")
    assert "?" not in done.stdout.decode("utf-8")


def test_streams_without_reconfigure(monkeypatch, capsys):
    """笔记本与 IDLE 的标准流没有 reconfigure。"""

    class Stream:
        encoding = "utf-8"

        def isatty(self) -> bool:
            return False

        def write(self, text: str) -> int:
            return len(text)

        def flush(self) -> None:
            pass

    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Stream())
    with pytest.raises(SystemExit) as left:
        config.run_script(lambda argv: 0)
    assert left.value.code == 0


# ---- 配置 ----


def test_config_saved_with_a_bom(tmp_path):
    """记事本存的 config.py 带 BOM，照常读。"""
    for name in ("config.py", "train.py"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / "config.py").write_bytes(b"\xef\xbb\xbf" + (REPOSITORY / "config.py").read_bytes())
    code = "import config; print(len(config.flags()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(config.RULES)


def test_home_in_paths(monkeypatch, tmp_path):
    """路径里的 ~：命令行与 config.py 都认。"""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert config.resolve(["--lyrics_dir", "~/歌"], False).lyrics_dir == tmp_path / "歌"
    monkeypatch.setattr(config, "CACHE_DIR", "~/缓存")
    assert config.resolve([], False).cache_dir == tmp_path / "缓存"


@pytest.mark.parametrize("name", ["train.py", "inference.py", "evaluate.py"])
def test_text_flags_that_are_not_utf8(name):
    """不成字的参数一开始就说，不等训练到试写的时候。"""
    flag = {"train.py": "--generate_prompt", "inference.py": "--prompt", "evaluate.py": "--prompt"}[name]
    if name == "evaluate.py":
        import evaluate

        flag = next(f"--{f.name}" for f in evaluate.FLAGS if f.rule.kind is str)
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / name), flag, "今夜".encode("gbk")], capture_output=True, timeout=60
    )
    assert done.returncode == 2
    assert "编码有误" in done.stderr.decode() or "应为" in done.stderr.decode()
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "argv", [["--batch_size", LONG], [f"--{LONG}", "1"], [LONG], ["--device", "cpu", "--seed", LONG]]
)
def test_messages_do_not_repeat_a_long_value(argv):
    """一万多字的值不整个重复在错误里。"""
    with pytest.raises(UserError) as caught:
        config.resolve(argv, False)
    assert len(str(caught.value)) < 400


def test_empty_rank(monkeypatch):
    """RANK= 写成空的，当作没有写。"""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    assert runtime.Processes().count == 1


# ---- 训练中 ----


def test_a_removed_checkpoint_folder_is_made_again(corpus, tmp_path, monkeypatch):
    """训练中检查点文件夹被删掉：下一次保存时重新建一个，训练到底，能接着训练。"""
    original = train.Trainer.step

    def step(self):
        result = original(self)
        if self.iteration == 4:
            shutil.rmtree(tmp_path / "c")
        return result

    monkeypatch.setattr(train.Trainer, "step", step)
    assert train.main(training(corpus, tmp_path, "--train_iters", "8")) == 0
    assert checkpoint.load(tmp_path / "c" / "latest.pt", for_resume=True)["iter"] == 8


@pytest.mark.parametrize(
    ("error", "out"),
    [
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_of_every_kind(error, out):
    assert config.is_out_of_memory(error) is out


def test_cpu_out_of_memory_halves_the_micro_batch(run, monkeypatch):
    """CPU 上内存不足与显存不足一样对付：微批次减半，数学不变。"""
    original, failed = train.Trainer._accumulate, []

    def accumulate(self, x, y):
        if not failed:
            failed.append(True)
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return original(self, x, y)

    monkeypatch.setattr(train.Trainer, "_accumulate", accumulate)
    code, out, _ = run("a", "--train_iters", "2")
    assert code == 0
    assert "微批次减为 2" in out
