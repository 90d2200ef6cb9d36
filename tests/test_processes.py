"""几个进程一起训练（gloo，CPU）：与一个进程相同；出错、信号、换进程数。"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import REPOSITORY, TINY, metrics

import checkpoint
import runtime
from runtime import DeviceError, Processes

EXACT = ("--dropout", "0", "--use_amp", "false", "--optimizer", "adamw")  # Muon 内部用 bf16，只近似相同


def launch(folder: Path, corpus: Path, name: str, *extra: str, patch: str = "") -> subprocess.Popen:
    """用 torchrun 启动两个进程；patch 是训练之前在每个进程里执行的代码。"""
    script = folder / f"{name}.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n"
        "import os, signal, time\nimport torch\nimport train, checkpoint, config\n"
        "from corpus.files import CorpusError\n"
        "rank = int(os.environ['RANK'])\n"
        f"{patch}\n"
        "config.run_script(train.main, config.UserError, CorpusError, checkpoint.CheckpointError, "
        "train.runtime.DeviceError, leave=train.leave)\n",
        encoding="utf-8",
    )
    places = ["--lyrics_dir", str(corpus), "--checkpoint_dir", name, "--cache_dir", f"cache-{name}"]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
        + [*TINY, *places, "--bpe_model_prefix", f"bpe-{name}", *extra],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, errors = process.communicate(timeout=120)
    return process.returncode, out, errors


def assert_close(first: Path, second: Path, loosely: bool = False) -> None:
    """记录与权重在浮点误差之内相同。"""
    ours, theirs = metrics(first), metrics(second)
    assert [event["iter"] for event in ours] == [event["iter"] for event in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-3 if loosely else 1e-4)
    for name in ("latest.pt", "best.pt"):
        a, b = (checkpoint.load(folder / name)["model"] for folder in (first, second))
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-3 if loosely else 1e-4)


@pytest.mark.parametrize(
    "split",
    [(), ("--micro_batch_size", "2"), ("--optimizer", "muon")],
    ids=["whole", "micro", "muon"],
)
def test_two_processes_equal_one(run, corpus, tmp_path, split):
    """丢弃率 0 时，损失、评估与最后的权重同一个进程的一致，批次分不匀也一样；只有主进程显示和写文件。"""
    options = (*EXACT, "--batch_size", "5", "--eval_iters", "50")
    _, _, one = run("one", *options, *split)
    code, out, errors = finish(launch(tmp_path, corpus, "two", *options, *split))
    assert code == 0, errors
    assert "2 个进程" in out
    assert [out.count(word) for word in ("训练完成", "步 10/10 ", "── 评估")] == [1, 1, 3]
    assert_close(one, tmp_path / "two", loosely="muon" in split)
    assert sorted(os.listdir(tmp_path / "two")) == ["best.pt", "latest.pt", "metrics.jsonl"]


def test_numbers_going_wrong_are_told_once(corpus, tmp_path):
    """连续的 nan 停下全部进程，只由主进程说。"""
    spoil = (
        "add = train.Processes.add\n"
        "def spoiled(self, tensors):\n"
        "    tensors = list(tensors)\n"
        "    if len(tensors) > 1 and rank == 1: tensors[1][0] = float('nan')\n"
        "    add(self, tensors)\n"
        "train.Processes.add = spoiled\n"
    )
    code, out, errors = finish(launch(tmp_path, corpus, "nan", patch=spoil))
    assert code != 0
    assert errors.count("连续 5 步") == 1
    assert out.count("权重不变") == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_can_change_its_number_of_processes(run, corpus, tmp_path, number):
    """信号只到一个进程：两个都在同一步停下并存好；换成一个进程接着训练，再换回两个，与一个进程从头到尾的一致。"""
    _, _, whole = run("whole", *EXACT)
    stop = (
        "step = train.Trainer.step\n"
        "def stopping(self):\n"
        "    result = step(self)\n"
        f"    if rank == 1 and self.iteration == 4: os.kill(os.getpid(), {int(number)})\n"
        "    return result\n"
        "train.Trainer.step = stopping\n"
    )
    began = time.monotonic()
    code, out, errors = finish(launch(tmp_path, corpus, "parts", *EXACT, patch=stop))
    assert time.monotonic() - began < 60
    assert code != 0
    assert str(REPOSITORY / "train.py") not in errors  # 有回溯的只是 torchrun 自己
    parts = tmp_path / "parts"
    latest = checkpoint.load(parts / "latest.pt", for_resume=True)
    assert (latest["iter"], latest["evaluation_due"]) == (4, True)
    assert out.count("已保存") == 1

    monkey = ("--cache_dir", str(tmp_path / "cache-parts"), "--bpe_model_prefix", str(tmp_path / "bpe-parts"))
    code, out, _ = run("parts", *EXACT, *monkey, "--train_iters", "10")
    assert code == 0
    assert "第 4 步继续" in out
    assert_close(whole, parts)

    _, _, longer = run("whole", *EXACT, "--train_iters", "13")
    code, out, errors = finish(launch(tmp_path, corpus, "parts", *EXACT, "--train_iters", "13"))
    assert code == 0, errors
    assert "第 10 步继续" in out
    assert_close(longer, parts)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_on_one_process_ends_both(corpus, tmp_path, failing):
    """一个进程出错：几秒内全部结束，显示的是它真正的错误；主进程还在时存好已做完的步。"""
    fail = (
        "step = train.Trainer.step\n"
        "def failing(self):\n"
        f"    if rank == {failing} and self.iteration == 5: raise ZeroDivisionError('the real reason')\n"
        "    return step(self)\n"
        "train.Trainer.step = failing\n"
    )
    began = time.monotonic()
    code, out, errors = finish(launch(tmp_path, corpus, "broken", patch=fail))
    assert time.monotonic() - began < 40
    assert code == 1
    assert errors.count("ZeroDivisionError: the real reason") == 1
    assert "PeerError" not in errors
    saved = checkpoint.load(tmp_path / "broken" / "latest.pt", for_resume=True)
    assert saved["iter"] == (3 if failing == 0 else 5)
    assert out.count("另一个进程先结束了") == (1 if failing else 0)


@pytest.mark.parametrize("phase", ["find_previous_run", "prepare", "archive"])
def test_an_error_of_the_main_process_before_training(corpus, tmp_path, phase):
    """主进程在开始之前就出错（检查点损坏、语料有误）：一句话，另一个进程不干等、不多嘴。"""
    patch = {
        "find_previous_run": "def broken(config): raise config_error\ntrain.find_previous_run = broken",
        "prepare": "def broken(*a, **k): raise config_error\nif rank == 0: train.prepare = broken",
        "archive": "def broken(*a, **k): raise config_error\ntrain.archive_earlier_run = broken",
    }[phase]
    began = time.monotonic()
    code, _, errors = finish(
        launch(tmp_path, corpus, "early", patch="config_error = config.UserError('这是原因')\n" + patch)
    )
    assert time.monotonic() - began < 40
    assert code == 1
    assert errors.count("错误：这是原因") == 1
    assert "PeerError" not in errors


def test_a_killed_process_ends_the_other(corpus, tmp_path):
    """kill -9 掉一个：另一个几秒内存好、结束，不会一直等；再启动就接着训练。"""
    kill = (
        "step = train.Trainer.step\n"
        "def killed(self):\n"
        "    if rank == 1 and self.iteration == 5 and not os.path.exists('killed'):\n"
        "        open('killed', 'w').close()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self)\n"
        "train.Trainer.step = killed\n"
    )
    began = time.monotonic()
    code, out, _ = finish(launch(tmp_path, corpus, "killed-run", patch=kill))
    assert time.monotonic() - began < 40
    assert code == 1
    assert checkpoint.load(tmp_path / "killed-run" / "latest.pt", for_resume=True)["iter"] == 5
    code, out, errors = finish(launch(tmp_path, corpus, "killed-run", patch=kill))
    assert code == 0, errors
    assert "第 5 步继续" in out


def test_out_of_memory_on_one_process_halves_both(corpus, tmp_path):
    """一块卡显存不足：各进程一起减半，仍在同一步。"""
    oom = (
        "from model import GPT\n"
        "loss = GPT.loss\n"
        "def small(self, x, y):\n"
        "    if rank == 1 and self.training and len(x) > 1: raise torch.OutOfMemoryError('injected')\n"
        "    return loss(self, x, y)\n"
        "GPT.loss = small\n"
    )
    code, out, errors = finish(launch(tmp_path, corpus, "oom", patch=oom))
    assert code == 0, errors
    assert out.count("微批次减为 1") == 1


def test_a_batch_smaller_than_the_processes_is_refused(corpus, tmp_path):
    """每步的序列分不到每个进程：说清楚。"""
    code, _, errors = finish(launch(tmp_path, corpus, "small", "--batch_size", "1"))
    assert code != 0
    assert errors.count("请加大 --batch_size") == 1


def test_shares_join_without_gap_or_overlap(monkeypatch):
    """各进程的段首尾相接，恰好盖住全部。"""
    for count in (1, 2, 3, 8):
        for total in (count, 7 * count + 3, 64):
            covered = []
            for rank in range(count):
                monkeypatch.setenv("RANK", str(rank))
                monkeypatch.setenv("WORLD_SIZE", str(count))
                covered += list(range(total))[Processes().share(total)]
            assert covered == list(range(total))


def test_devices_of_several_processes(monkeypatch):
    """每个进程用自己编号的卡；卡不够、指定了卡号都说清楚；没有卡时用 CPU。"""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    processes = Processes()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runtime.pick_device_for("auto", processes) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert runtime.pick_device_for("auto", processes) == torch.device("cuda", 1)
    assert runtime.pick_device_for("cuda", processes) == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match="cuda:0"):
        runtime.pick_device_for("cuda:0", processes)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DeviceError, match="2 块显卡"):
        runtime.pick_device_for("auto", Processes())


def test_one_process_never_opens_a_socket(monkeypatch):
    """没有用 torchrun：不建进程组，每个集合操作都是原样返回。"""

    def forbidden(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr(torch.distributed, "init_process_group", forbidden)
    monkeypatch.setattr(socket, "socket", forbidden)
    processes = Processes()
    processes.start(torch.device("cpu"))
    tensor = torch.ones(2)
    processes.add([tensor])
    processes.copy_from_main([tensor])
    assert (processes.largest(3), processes.from_main(lambda: "x"), tensor.tolist()) == (3, "x", [1.0, 1.0])
    processes.finish()
