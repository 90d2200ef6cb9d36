"""真实的机器会对训练做的事：信号、坏掉的数、写满的磁盘、不够的显存。"""

import errno
import math
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import assert_same_run, figures, metrics

import train
import training.device
from model import GPT
from terminal import UserError
from train import Trainer
from training import checkpoint, fallbacks
from training.checkpoint import CheckpointError
from training.fallbacks import ForwardBackward
from training.processes import StopSignals, signal_name
from training.skipped import MOST_IN_A_ROW


def weights(directory: Path, name: str = "latest.pt") -> dict[str, torch.Tensor]:
    return checkpoint.load(directory / name)["model"]


def during(monkeypatch, owner, name: str, at: int, number: int = signal.SIGINT, after: bool = False) -> None:
    """第 at 次调用 owner.name 时给自己发一个信号：之前，或（after）之后。"""
    original = getattr(owner, name)
    calls = []

    def wrapped(*arguments, **options):
        calls.append(None)
        if len(calls) == at and not after:
            os.kill(os.getpid(), number)
        result = original(*arguments, **options)
        if len(calls) == at and after:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(owner, name, wrapped)


# ---- 信号 ----


@pytest.mark.parametrize(
    ("owner", "name", "at", "saved_at", "number"),
    [
        (ForwardBackward, "__call__", 5, 5, signal.SIGINT),  # 一步的半中间：做完这一步
        (train, "validation_loss", 1, 4, signal.SIGTERM),  # 评估开始
        (train, "write_sample", 1, 4, signal.SIGHUP),  # 评估后的试写
        (checkpoint, "save", 2, 4, signal.SIGINT),  # 第 2 次存的是第 4 步的 best.pt
        (torch, "save", 1, 3, signal.SIGTERM),  # 存 latest.pt 的半中间：刚存好，不再多走一步
    ],
    ids=["step", "evaluation", "sample", "save-best", "save-latest"],
)
def test_a_signal_at_any_moment_loses_nothing(run, monkeypatch, owner, name, at, saved_at, number):
    """信号来得再不巧：存好 latest.pt，退出码 128+n；再运行就补完没做完的评估，结果与不中断时逐位相同。"""
    _, _, whole = run("whole")
    with monkeypatch.context() as patch:
        during(patch, owner, name, at, number)
        code, out, parts = run("parts")
    assert code == 128 + number
    assert "已保存" in out
    assert signal_name(number) in out
    assert checkpoint.load(parts / "latest.pt", for_resume=True)["iter"] == saved_at
    assert run("parts")[0] == 0
    assert_same_run(whole, parts)


def test_an_evaluation_is_put_down_at_once_and_made_up_for(run, monkeypatch):
    """评估可能要几分钟：收到信号不等它算完，下次启动先补上。"""
    calls = []
    original = GPT.loss

    def loss(self, x, y):
        if not self.training:
            calls.append(None)
            if len(calls) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
        return original(self, x, y)

    monkeypatch.setattr(GPT, "loss", loss)
    code, _, directory = run("parts", "--micro_batch_size", "1")
    assert code == 128 + signal.SIGTERM
    assert len(calls) == 1
    latest = checkpoint.load(directory / "latest.pt", for_resume=True)
    assert (latest["iter"], latest["evaluation_due"], latest["val_loss"]) == (4, True, None)
    assert not (directory / "best.pt").exists()
    run("parts", "--micro_batch_size", "1")
    assert [event["iter"] for event in metrics(directory) if "val_loss" in event] == [4, 8, 10]


def test_the_last_evaluation_is_made_up_for_too(run, monkeypatch):
    """停在最后一步的评估里：训练还不算完，再运行就补上，best.pt 总会有。"""
    with monkeypatch.context() as patch:
        during(patch, train, "validation_loss", 1)
        code, _, directory = run("last", "--eval_interval", "100")
    assert code == 130
    code, out, _ = run("last", "--eval_interval", "100")
    assert (code, "训练完成" in out) == (0, True)
    assert (directory / "best.pt").exists()


def test_the_second_signal_ends_at_once(run, monkeypatch):
    """第二次：不再保存，立即结束；上一次存的完好。"""
    monkeypatch.setattr(train, "StopSignals", lambda *_, **__: StopSignals(same_seconds=0))
    during(monkeypatch, ForwardBackward, "_accumulate", 5)
    during(monkeypatch, ForwardBackward, "_accumulate", 5, after=True)
    code, out, directory = run("twice")
    assert code == 130
    assert "没有保存" in out
    assert checkpoint.load(directory / "latest.pt", for_resume=True)["iter"] == 3


def test_a_signal_that_stops_the_compiler_does_not_turn_compiling_off(run, monkeypatch):
    """编译到一半，信号连编译器一起停下了：不改成逐步执行，存好退出，下次照样编译。"""

    def interrupted(function, **options):
        def call(*arguments):
            os.kill(os.getpid(), signal.SIGTERM)
            raise torch._inductor.exc.CppCompileError(["g++"], "Terminated")

        return call

    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", interrupted)
        code, out, directory = run("compiling", "--use_compile", "true")
    assert code == 128 + signal.SIGTERM
    assert "torch.compile 在这里不可用" not in out
    assert checkpoint.load(directory / "latest.pt", for_resume=True)["iter"] == 0
    _, _, whole = run("whole")
    run("compiling")
    assert_same_run(whole, directory)


# ---- 坏掉的数 ----


def precision(monkeypatch, dtype: torch.dtype) -> None:
    """让这台机器的混合精度是 dtype（fp16 带梯度缩放）。"""
    monkeypatch.setattr(training.device, "native_half", lambda device: dtype)


def spoil(monkeypatch, steps, value: float = math.nan, what: str = "loss") -> None:
    """让这些步（从 1 数）的损失，或只是一个权重的梯度，成为 value。"""
    original = ForwardBackward.__call__

    def forward_backward(self, x, y, iteration):
        total = original(self, x, y, iteration)
        if iteration + 1 in steps:
            if what == "loss":
                total = total * value
            else:
                self.model.norm.weight.grad[0] = value
        return total

    monkeypatch.setattr(ForwardBackward, "__call__", forward_backward)


@pytest.mark.parametrize(
    ("dtype", "what", "value"),
    [
        (torch.bfloat16, "loss", math.nan),
        (torch.bfloat16, "gradient", math.inf),
        (torch.float16, "loss", math.inf),
        (torch.float16, "gradient", math.nan),
    ],
)
def test_a_bad_step_is_skipped_and_counted(run, monkeypatch, dtype, what, value):
    """损失或梯度成了 nan、inf：这一步不动权重，记一笔，训练继续；检查点里没有 nan。"""
    precision(monkeypatch, dtype)
    spoil(monkeypatch, {5}, value, what)
    before_after = []
    original = Trainer.step

    def step(self):
        before = self.model.norm.weight.detach().clone()
        result = original(self)
        before_after.append(torch.equal(before, self.model.norm.weight))
        return result

    monkeypatch.setattr(Trainer, "step", step)
    code, _, directory = run("spoiled", "--optimizer", "muon")
    assert code == 0
    assert before_after.index(True) == 4
    assert before_after.count(True) == 1
    logged = [event for event in metrics(directory) if "train_loss" in event]
    assert [event["skipped_steps"] for event in logged] == [0] * 4 + [1] * 6
    assert logged[4]["train_loss" if what == "loss" else "grad_norm"] is None
    latest = checkpoint.load(directory / "latest.pt", for_resume=True)
    assert latest["skipped_steps"] == 1
    assert all(weight.isfinite().all() for weight in latest["model"].values())
    assert latest["optimizer"].keys() == {"muon", "adamw"}
    for saved in latest["optimizer"].values():
        assert all(value.isfinite().all() for state in saved["state"].values() for value in state.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_several_bad_steps_in_a_row_stop_the_run(run, monkeypatch, dtype):
    """连续 5 步：停下，给出办法；上一次的 latest.pt 完好，再运行就从它接着训练。"""
    precision(monkeypatch, dtype)
    with monkeypatch.context() as patch:
        spoil(patch, {2, 4, 5, 6, 7, 8})
        with pytest.raises(UserError, match="连续 5 步.*第 8 步") as error:
            run("ruined")
    assert "--learning_rate" in str(error.value)
    code, out, directory = run("ruined")
    assert code == 0
    assert "从 " in out
    assert all(weight.isfinite().all() for weight in weights(directory).values())


def test_bad_steps_apart_do_not_stop_the_run(run, monkeypatch):
    """隔开的坏步只记数。"""
    spoil(monkeypatch, {1, 2, 3, 4, 6, 7, 8, 9})
    code, _, directory = run("apart")
    assert code == 0
    assert checkpoint.load(directory / "latest.pt", for_resume=True)["skipped_steps"] == 8


def test_fp16_searching_for_its_scale_is_no_fault(run, monkeypatch):
    """fp16 的放大倍数太大时梯度溢出：跳过、减半、再来，连续多少次都不算坏掉。"""
    precision(monkeypatch, torch.float16)
    original = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: original(*a, init_scale=2.0**40, **k))
    code, out, directory = run("scaled", "--train_iters", "30")
    assert code == 0
    assert "跳过，权重不变" not in out
    latest = checkpoint.load(directory / "latest.pt", for_resume=True)
    assert latest["skipped_steps"] > MOST_IN_A_ROW
    assert latest["scaler"]["scale"] < 2.0**40


def test_skipped_steps_resume_exactly(run, monkeypatch):
    """跳过的步数也接得上。"""
    spoil(monkeypatch, {2, 7})
    _, _, whole = run("whole")
    with monkeypatch.context() as patch:
        during(patch, ForwardBackward, "__call__", 5)
        run("parts")
    run("parts")
    assert_same_run(whole, whole.parent / "parts")


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_nan_weights_never_reach_a_checkpoint(run, monkeypatch, value):
    """权重自己坏了（学习率离谱、内存出错）：不存，停下；原来的检查点一字节不动。"""
    _, _, directory = run("kept", "--train_iters", "3")
    before = {name: (directory / name).read_bytes() for name in ("latest.pt", "best.pt")}
    original = Trainer.step

    def step(self):
        result = original(self)
        if self.progress.iteration == 4:
            self.model.blocks[1].feed_forward.fc.weight.data[3, 3] = value
        return result

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(train, "validation_loss", lambda *_: (0.1, 0.1))
    with pytest.raises(UserError, match="权重里有 nan"):
        run("kept", "--train_iters", "6")
    assert before == {name: (directory / name).read_bytes() for name in before}


def test_an_evaluation_that_is_not_a_number(run, monkeypatch):
    """评估得到 nan：不当作最好，也不出错；结束时如实说。"""
    monkeypatch.setattr(train, "validation_loss", lambda *_: (math.nan, math.nan))
    code, out, directory = run("nan")
    assert code == 0
    assert not (directory / "best.pt").exists()
    assert "还没有最好的" in out
    assert "没有 best.pt" in out


# ---- 写不进去的磁盘 ----


def full_disk(monkeypatch, from_save: int, until: int = 10**9) -> None:
    """从第 from_save 次存检查点起磁盘就满了：写到一半得到 ENOSPC。"""
    original, calls = torch.save, []

    def save(contents, file, *arguments, **options):
        calls.append(None)
        if from_save <= len(calls) < until:
            file.write(b"PK\x03\x04" + bytes(100))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(contents, file, *arguments, **options)

    monkeypatch.setattr(torch, "save", save)


def test_a_full_disk_for_a_while(run, monkeypatch):
    """磁盘满了一阵：说一句，训练不停，腾出空间后照存；结果与没满过的相同。"""
    _, _, whole = run("whole")
    with monkeypatch.context() as patch:
        full_disk(patch, 1, 2)
        code, out, directory = run("full")
    assert code == 0
    assert out.count("没能存下") == 1
    assert "磁盘满了" in out
    assert_same_run(whole, directory)


def test_a_disk_that_stays_full(run, monkeypatch):
    """到结束还写不进去：如实报错；之前存的完好，腾出空间再运行，结果与不中断时相同。"""
    _, _, whole = run("whole")
    with monkeypatch.context() as patch:
        full_disk(patch, 2)
        with pytest.raises(UserError, match="没能存下"):
            run("full")
    directory = whole.parent / "full"
    assert checkpoint.load(directory / "latest.pt", for_resume=True)["iter"] == 3
    assert sorted(os.listdir(directory)) == ["latest.pt", "metrics.jsonl"]
    run("full")
    assert_same_run(whole, directory)


def test_an_interrupt_on_a_full_disk_does_not_claim_to_have_saved(run, monkeypatch):
    """要退出却存不下：不说「已保存」，报错并说从哪里接着训练。"""
    full_disk(monkeypatch, 2)
    during(monkeypatch, ForwardBackward, "__call__", 5)
    with pytest.raises(UserError, match="没能存下"):
        run("full")


def test_best_that_could_not_be_saved_is_tried_again(run, monkeypatch):
    """best.pt 没存下，就不能算有了：下一次评估照样存。"""
    losses = iter([2.0, 3.0, 4.0])
    monkeypatch.setattr(train, "validation_loss", lambda *_: (next(losses), 1.0))
    full_disk(monkeypatch, 2, 3)
    _, _, directory = run("best")
    assert checkpoint.load(directory / "best.pt")["val_loss"] == 3.0
    assert checkpoint.load(directory / "latest.pt", for_resume=True)["best_val_loss"] == 3.0


def test_a_small_disk_is_announced_before_training(run, monkeypatch):
    """磁盘装不下检查点：开始时就说；装得下就不说。"""
    free = []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free[-1]))
    free.append(10**12)
    assert "请先腾出空间" not in run("large", "--train_iters", "1")[1]
    _, _, directory = run("small", "--train_iters", "1")
    used = sum((directory / name).stat().st_size for name in ("latest.pt", "best.pt"))
    free.append(used)  # 第一次之后还要与新的 latest.pt 并存
    _, out, _ = run("small", "--train_iters", "1", "--resume", "false")
    assert "请先腾出空间" in out


def test_metrics_that_cannot_be_written_do_not_stop_training(run, monkeypatch):
    """记录写不进去：说一句，训练照常。"""
    _, _, whole = run("whole")
    directory = whole.parent / "blocked"
    (directory / "metrics.jsonl").mkdir(parents=True)
    code, _, _ = run("blocked", "--resume", "true")
    assert code == 0
    assert checkpoint.load(directory / "latest.pt")["iter"] == 10


# ---- 两个训练，一个文件夹 ----


def test_a_second_run_in_the_same_folder_is_refused(run):
    """另一个窗口里还在训练：第二个不开始，什么都不动。"""
    _, _, directory = run("shared", "--train_iters", "2")
    before = (directory / "latest.pt").read_bytes()
    with checkpoint.exclusive(directory), pytest.raises(CheckpointError, match="另一个训练正在使用"):
        run("shared", "--train_iters", "4")
    assert (directory / "latest.pt").read_bytes() == before
    assert run("shared", "--train_iters", "4")[0] == 0


# ---- 显存不足 ----


def memory_for(monkeypatch, rows: int, from_step: int = 0) -> list[int]:
    """一次前向至多容得下 rows 个序列，多了就是 OutOfMemoryError；返回每次成功的序列数。"""
    original, sizes = GPT.loss, []

    def loss(self, x, y):
        if self.training:
            if len(x) > rows and loss.trainer_step >= from_step:
                raise torch.OutOfMemoryError("CUDA out of memory (injected)")
            sizes.append(len(x))
        return original(self, x, y)

    original_step = Trainer.step

    def step(self):
        loss.trainer_step = self.progress.iteration
        return original_step(self)

    loss.trainer_step = 0
    monkeypatch.setattr(GPT, "loss", loss)
    monkeypatch.setattr(Trainer, "step", step)
    return sizes


@pytest.mark.parametrize(("rows", "halvings"), [(2, 1), (1, 2)])
def test_out_of_memory_halves_the_micro_batch(run, monkeypatch, rows, halvings):
    """头几步显存不足：微批次减半、累积加倍，说一句；损失与权重同整批的一致。"""
    exact = ("--dropout", "0", "--use_amp", "false", "--optimizer", "adamw")  # Muon 内部用 bf16
    _, _, whole = run("whole", *exact)
    with monkeypatch.context() as patch:
        sizes = memory_for(patch, rows)
        code, out, split = run("split", *exact)
    assert code == 0
    assert set(sizes) == {rows}
    assert out.count("显存不足：微批次减为") == halvings
    assert f"MICRO_BATCH_SIZE = {rows}" in out
    for ours, theirs in zip(figures(split), figures(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], weight, rtol=1e-3, atol=1e-4)


def test_out_of_memory_in_the_second_step_too(run, monkeypatch):
    """优化器的状态在第一步之后才占显存：第二步不足也一样处理。"""
    memory_for(monkeypatch, 2, from_step=1)
    code, out, _ = run("second")
    assert code == 0
    assert out.count("显存不足：微批次减为 2") == 1


def test_out_of_memory_that_halving_cannot_cure(run, monkeypatch):
    """一次一个序列也放不下：一句话说怎么办。"""
    memory_for(monkeypatch, 0)
    with pytest.raises(UserError, match="--max_seq_len"):
        run("hopeless")


def test_out_of_memory_later_is_an_error(run, monkeypatch):
    """过了头几步才不足（别的程序占了显存）：停下，给出办法，上一次存的完好。"""
    monkeypatch.setattr(fallbacks, "ADAPTING_STEPS", 2)
    memory_for(monkeypatch, 2, from_step=7)
    with pytest.raises(UserError, match="显存不足"):
        run("late")
