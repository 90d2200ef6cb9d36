"""边缘：关了的标准流、带 BOM 的 config.py、~、不成字的参数、空的 RANK、被移走的检查点文件夹。"""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
from tiny import REPOSITORY, TINY

import config
import flags
import train
from terminal import UserError, is_out_of_memory, run_script
from training import checkpoint
from training.fallbacks import ForwardBackward
from training.processes import Processes

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


@pytest.mark.parametrize("closed", [(0,), (1,), (2,)], ids=["<&-", ">&-", "2>&-"])
def test_training_with_closed_streams(monkeypatch, corpus, tmp_path, closed):
    """标准流关着一个也照常训练，消息不会写进检查点。"""
    monkeypatch.setattr(sys, "argv", ["train.py", *training(corpus, tmp_path, "--train_iters", "3")])
    code, _, errors = forked.run(lambda: run_script(train.main, leave=train.processes.leave), tmp_path, closed)
    assert code == 0, errors
    assert checkpoint.load(tmp_path / "c" / "latest.pt", for_resume=True)["iter"] == 3
    assert errors == ""


def test_training_with_closed_streams_from_a_shell(corpus, tmp_path):
    """三个都关着启动的，真正的进程。"""
    done = script("train.py", *training(corpus, tmp_path, "--train_iters", "3"), shell=">&- 2>&- <&-")
    assert done.returncode == 0
    assert checkpoint.load(tmp_path / "c" / "latest.pt", for_resume=True)["iter"] == 3


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory) -> list[str]:
    """写歌的参数，用一个训练了三步的检查点。"""
    folder = tmp_path_factory.mktemp("trained")
    assert train.main(training(corpus, folder, "--train_iters", "3")) == 0
    return ["--checkpoint", str(folder / "c" / "best.pt"), "--device", "cpu", "--max_tokens", "5"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="这里没有 /dev/full")
@pytest.mark.parametrize(
    "command",
    [
        ("inference.py", "--prompt", "我"),
        pytest.param(("evaluate.py", "--only", "loss"), marks=pytest.mark.slow),
        pytest.param(("export.py", "--format", "gguf", "--out"), marks=pytest.mark.slow),
    ],
    ids=lambda command: command[0],
)
def test_output_into_a_full_disk(trained, tmp_path, command):
    """标准输出写不进去：一句话，退出码 2；读的程序先走了：什么也不说。"""
    if command[-1] == "--out":
        command += (str(tmp_path / "a.gguf"), "--force")
    flags_given = trained if command[0] != "export.py" else trained[:2]
    done = script(command[0], *flags_given, *command[1:], shell=">/dev/full")
    assert done.returncode == 2
    assert "写不出去" in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    done = script(command[0], *flags_given, *command[1:], shell="| head -c 0")
    assert b"Traceback" not in done.stderr


def test_lyrics_in_a_pipe_are_utf8(trained):
    """管道与文件里总是 UTF-8，不论系统的编码。"""
    done = script("inference.py", *trained, "--prompt", "今夜我", PYTHONIOENCODING="gbk", PYTHONUTF8="0")
    assert done.stdout.decode("utf-8").startswith("今夜我")
    assert "\ufffd" not in done.stdout.decode("utf-8")


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
        run_script(lambda argv: 0)
    assert left.value.code == 0


# ---- 配置 ----


def with_config(folder: Path, content: bytes) -> subprocess.CompletedProcess:
    """换一份 config.py 启动。"""
    for name in ("flags.py", "terminal.py"):
        shutil.copy(REPOSITORY / name, folder / name)
    (folder / "config.py").write_bytes(content)
    code = "import flags; print(len(flags.training_flags()))"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60)


def test_config_saved_with_a_bom(tmp_path):
    """记事本存的 config.py 带 BOM，照常读。"""
    done = with_config(tmp_path, b"\xef\xbb\xbf" + (REPOSITORY / "config.py").read_bytes())
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(flags.RULES)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.encode("gbk"), "编码有误，请另存为 UTF-8"),
        (lambda text: text.encode("utf-16"), "编码有误，请另存为 UTF-8"),
        (lambda text: text.replace('CACHE_DIR = "cache"', 'CACHE_DIR = "缓存', 1).encode(), "第 15 行有误"),
        (lambda text: text.replace("USE_SWANLAB = True", "USE_SWANLAB = true").encode(), "name 'true' is not defined"),
        (lambda text: re.sub(r"(?m)^(N_LAYERS|N_HEADS) = .*\n", "", text).encode(), "里缺少 N_LAYERS、N_HEADS"),
        (lambda text: text.replace("PRESETS:", "PRESET_TABLE:").encode(), "里缺少 PRESETS"),
    ],
    ids=["gbk", "utf-16", "quote", "true", "missing", "presets"],
)
def test_config_that_cannot_be_read(tmp_path, change, told):
    """config.py 存错编码、写错一行、删了一项：一句话，退出码 2，没有回溯。"""
    done = with_config(tmp_path, change((REPOSITORY / "config.py").read_text(encoding="utf-8")))
    assert done.returncode == 2
    assert told in done.stderr
    assert str(tmp_path / "config.py") in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_home_in_paths(monkeypatch, tmp_path):
    """路径里的 ~：命令行与 config.py 都认。"""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert flags.resolve(["--lyrics_dir", "~/歌"], "cpu").lyrics_dir == tmp_path / "歌"
    monkeypatch.setattr(config, "CACHE_DIR", "~/缓存")
    assert flags.resolve([], "cpu").cache_dir == tmp_path / "缓存"


@pytest.mark.parametrize(
    ("name", "flag"),
    [("train.py", "--generate_prompt"), ("inference.py", "--prompt"), ("evaluate.py", "--device")],
)
def test_text_flags_that_are_not_utf8(monkeypatch, capsys, name, flag):
    """不成字的参数一开始就说，不等训练到试写的时候。"""
    monkeypatch.setattr(sys, "argv", [name, flag, os.fsdecode("今夜".encode("gbk"))])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(REPOSITORY / name), run_name="__main__")
    assert left.value.code == 2
    assert "编码有误" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["--batch_size", LONG], [f"--{LONG}", "1"], [LONG], ["--device", "cpu", "--seed", LONG]]
)
def test_messages_do_not_repeat_a_long_value(argv):
    """一万多字的值不整个重复在错误里。"""
    with pytest.raises(UserError) as caught:
        flags.resolve(argv, "cpu")
    assert len(str(caught.value)) < 400


def test_empty_rank(monkeypatch):
    """RANK= 写成空的，当作没有写。"""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    assert Processes().count == 1


# ---- 训练中 ----


def test_a_removed_checkpoint_folder_is_made_again(corpus, tmp_path, monkeypatch):
    """训练中检查点文件夹被删掉：下一次保存时重新建一个，训练到底，能接着训练。"""
    original = train.Trainer.step

    def step(self):
        result = original(self)
        if self.progress.iteration == 4:
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
    assert is_out_of_memory(error) is out


def test_cpu_out_of_memory_halves_the_micro_batch(run, monkeypatch):
    """CPU 上内存不足与显存不足一样对付：微批次减半，数学不变。"""
    original, failed = ForwardBackward._accumulate, []

    def accumulate(self, *given, **options):
        if not failed:
            failed.append(True)
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return original(self, *given, **options)

    monkeypatch.setattr(ForwardBackward, "_accumulate", accumulate)
    code, out, _ = run("a", "--train_iters", "2")
    assert code == 0
    assert "微批次减为 2" in out
