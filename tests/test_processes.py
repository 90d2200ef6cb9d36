"""几个进程一起训练（gloo，CPU）：与一个进程相同；出错、信号、换进程数。"""

import functools
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
import torch
from tiny import REPOSITORY, TINY, figures
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import train
import training.data
import training.fallbacks
import training.reduction
from corpus.files import CorpusError
from model import GPT
from terminal import UserError, run_script
from training import checkpoint, processes
from training.checkpoint import CheckpointError
from training.device import DeviceError, pick_device_for
from training.fallbacks import ForwardBackward
from training.processes import Processes

EXACT = ("--dropout", "0", "--use_amp", "false", "--optimizer", "adamw")  # Muon 内部用 bf16，只近似相同


def arguments(folder: Path, corpus: Path, name: str, *extra: str) -> list[str]:
    places = ["--lyrics_dir", corpus, "--checkpoint_dir", folder / name, "--cache_dir", folder / f"cache-{name}"]
    return [*TINY, *map(str, places), "--bpe_model_prefix", str(folder / f"bpe-{name}"), *extra]


def together(worker: Callable[..., None], *given) -> int:
    """worker(*given) 在两个进程里；返回退出码。"""
    options = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2, "start_method": "fork", "max_restarts": 0}
    meeting = {"run_id": "two", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    try:
        elastic_launch(LaunchConfig(**options, **meeting), worker)(*given)
    except ChildFailedError:
        return 1
    return 0


@pytest.fixture
def launch(tmp_path, corpus):
    """launch(名字, 参数…, patch=…) → (退出码, 标准输出, 标准错误)。

    与 `torchrun --nproc_per_node=2 train.py` 用同一个启动器，只是两个进程从这里 fork 出来，省去各载一次 torch；
    patch(编号) 在每个进程里训练之前执行。一分钟还没有结束就失败：一个出错，另一个不能一直等下去。
    """

    def worker(argv: list[str], patch: Callable[[int], None]) -> None:
        sys.argv = ["train.py", *argv]
        patch(int(os.environ["RANK"]))
        run_script(train.main, UserError, CorpusError, CheckpointError, leave=processes.leave)

    def call(name: str, *extra: str, patch: Callable[[int], None] = lambda rank: None) -> tuple[int, str, str]:
        argv = arguments(tmp_path, corpus, name, *extra)
        return forked.run(lambda: together(worker, argv, patch), tmp_path, seconds=60)

    return call


def before_step(iteration: int, action: Callable[[], None]) -> None:
    """在第 iteration 步之后、下一步之前做一件事。"""
    original = train.Trainer.step

    def step(self):
        if self.progress.iteration == iteration:
            action()
        return original(self)

    train.Trainer.step = step


def assert_close(first: Path, second: Path, loosely: bool = False) -> None:
    """记录与权重在浮点误差之内相同。"""
    ours, theirs = figures(first), figures(second)
    assert [event["iter"] for event in ours] == [event["iter"] for event in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-3 if loosely else 1e-4)
    for name in ("latest.pt", "best.pt"):
        a, b = (checkpoint.load(folder / name)["model"] for folder in (first, second))
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-3 if loosely else 1e-4)


@pytest.mark.slow
def test_torchrun_trains_as_one_process_does(run, corpus, tmp_path):
    """真正的 torchrun：损失、评估与最后的权重同一个进程的一致；只有主进程显示和写文件。"""
    options = (*EXACT, "--batch_size", "5", "--eval_iters", "50")
    _, _, one = run("one", *options)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(REPOSITORY / "train.py"), *arguments(tmp_path, corpus, "two", *options)],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert_as_one(done.stdout, one, tmp_path / "two")


def assert_as_one(out: str, one: Path, two: Path, loosely: bool = False) -> None:
    assert "2 个进程" in out
    assert [out.count(word) for word in ("训练完成", "步 10/10 ", "── 评估")] == [1, 1, 3]
    assert_close(one, two, loosely)
    assert sorted(os.listdir(two)) == ["best.pt", "latest.pt", "metrics.jsonl"]


@pytest.mark.parametrize("split", [("--micro_batch_size", "2"), ("--optimizer", "muon")], ids=["micro", "muon"])
def test_two_processes_equal_one(run, launch, tmp_path, split):
    """丢弃率 0 时，与一个进程的一致，批次分不匀、再分微批次、用 Muon 也一样。"""
    options = (*EXACT, "--batch_size", "5", "--eval_iters", "50")
    _, _, one = run("one", *options, *split)
    code, out, errors = launch("two", *options, *split)
    assert code == 0, errors
    assert_as_one(out, one, tmp_path / "two", loosely="muon" in split)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradients_are_summed_while_backward_goes_on(run, launch, tmp_path, compiled):
    """过了会重来的头几步，一块梯度齐了就开始传；与一个进程的一致。编译的一张图最后才给出梯度，结果也一样。"""
    options = (*EXACT, "--batch_size", "5", "--eval_iters", "50", "--micro_batch_size", "2")
    _, _, one = run("one", *options)

    def small_pieces(rank: int) -> None:
        training.fallbacks.ADAPTING_STEPS, training.reduction.BUCKET_BYTES = 2, 5000
        accumulate = ForwardBackward._accumulate
        torch.compile = functools.partial(torch.compile, backend="aot_eager")

        def watched(self, *given, **options):
            found = accumulate(self, *given, **options)
            print("反传完时开始了", len(self.gradient_sum._sent), "块，共", len(self.gradient_sum._buckets))
            return found

        ForwardBackward._accumulate = watched

    code, out, errors = launch("two", *options, "--use_compile", str(compiled), patch=small_pieces)
    assert code == 0, errors
    assert_as_one(out, one, tmp_path / "two")
    started = re.findall(r"开始了 (\d+) 块，共 (\d+)", out)
    assert [begun for begun, _ in started[:4]] == ["0"] * 4  # 两个进程的头两步
    assert len(started) == 20
    assert all(begun == whole and int(whole) > 3 for begun, whole in started[4:])


def test_numbers_going_wrong_are_told_once(launch):
    """连续的 nan 停下全部进程，只由主进程说。"""

    def spoil(rank: int) -> None:
        begin = Processes.begin_sum

        def spoiled(self, tensor):
            if rank == 1 and tensor.numel() > 1000:
                tensor[0] = float("nan")
            return begin(self, tensor)

        Processes.begin_sum = spoiled

    code, out, errors = launch("nan", patch=spoil)
    assert code != 0
    assert errors.count("连续 5 步") == 1
    assert out.count("权重不变") == 5


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_run_can_change_its_number_of_processes(run, launch, tmp_path, number):
    """信号只到一个进程：两个都在同一步停下并存好；换成一个进程接着训练，再换回两个，与一个进程从头到尾的一致。"""
    _, _, whole = run("whole", *EXACT)

    def stop(rank: int) -> None:
        original = train.Trainer.step

        def step(self):
            result = original(self)
            if rank == 1 and self.progress.iteration == 4:
                os.kill(os.getpid(), number)
            return result

        train.Trainer.step = step

    code, out, errors = launch("parts", *EXACT, patch=stop)
    assert code != 0
    assert str(REPOSITORY / "train.py") not in errors  # 有回溯的只是启动器自己
    parts = tmp_path / "parts"
    latest = checkpoint.load(parts / "latest.pt", for_resume=True)
    assert (latest["iter"], latest["evaluation_due"]) == (4, True)
    assert out.count("已保存") == 1

    places = ("--cache_dir", str(tmp_path / "cache-parts"), "--bpe_model_prefix", str(tmp_path / "bpe-parts"))
    code, out, _ = run("parts", *EXACT, *places, "--train_iters", "10")
    assert code == 0
    assert "第 4 步继续" in out
    assert_close(whole, parts)

    _, _, longer = run("whole", *EXACT, "--train_iters", "13")
    code, out, errors = launch("parts", *EXACT, "--train_iters", "13")
    assert code == 0, errors
    assert "第 10 步继续" in out
    assert_close(longer, parts)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_on_one_process_ends_both(launch, tmp_path, failing):
    """一个进程出错：几秒内全部结束，显示的是它真正的错误；主进程还在时存好已做完的步。"""

    def fail():
        raise ZeroDivisionError("the real reason")

    code, out, errors = launch("broken", patch=lambda rank: before_step(5, fail) if rank == failing else None)
    assert code == 1
    assert errors.count("ZeroDivisionError: the real reason") == 1
    assert "PeerError" not in errors
    saved = checkpoint.load(tmp_path / "broken" / "latest.pt", for_resume=True)
    assert saved["iter"] == (3 if failing == 0 else 5)
    assert out.count("另一个进程先结束了") == (1 if failing else 0)


@pytest.mark.parametrize(
    ("owner", "phase"),
    [(train.resume, "find_previous_run"), (training.data, "prepare"), (train.resume, "archive_earlier_run")],
    ids=["find_previous_run", "prepare", "archive"],
)
def test_an_error_of_the_main_process_before_training(launch, owner, phase):
    """主进程在开始之前就出错（检查点损坏、语料有误）：一句话，另一个进程不干等、不多嘴。"""

    def broken(*arguments, **options):
        raise UserError("这是原因")

    code, _, errors = launch("early", patch=lambda rank: setattr(owner, phase, broken) if rank == 0 else None)
    assert code == 1
    assert errors.count("错误：这是原因") == 1
    assert "PeerError" not in errors


def test_a_killed_process_ends_the_other(launch, tmp_path):
    """kill -9 掉一个：另一个几秒内存好、结束，不会一直等；再启动就接着训练。"""

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    code, _, _ = launch("killed", patch=lambda rank: before_step(5, kill) if rank == 1 else None)
    assert code == 1
    assert checkpoint.load(tmp_path / "killed" / "latest.pt", for_resume=True)["iter"] == 5
    code, out, errors = launch("killed")
    assert code == 0, errors
    assert "第 5 步继续" in out


def test_out_of_memory_on_one_process_halves_both(launch):
    """一块卡显存不足：各进程一起减半，仍在同一步。"""

    def small(rank: int) -> None:
        original = GPT.loss

        def loss(self, x, y):
            if rank == 1 and self.training and len(x) > 1:
                raise torch.OutOfMemoryError("injected")
            return original(self, x, y)

        GPT.loss = loss

    code, out, errors = launch("oom", patch=small)
    assert code == 0, errors
    assert out.count("微批次减为 1") == 1


def test_a_result_arrives_with_its_tensors(tmp_path):
    """各种类型、形状的张量与别的东西，到了别的进程还是原样；张量不随别的一起打包。"""
    given = {
        "权重": torch.randn(3, 5).t(),
        "里面": [torch.tensor(7), {"真假": torch.tensor([True, False]), "空": torch.empty(0, 4)}],
        "半": torch.randn(4).bfloat16(),
        "字": "歌词",
    }

    def worker() -> None:
        group = Processes()
        group.start(torch.device("cpu"))
        send, sizes = torch.distributed.broadcast_object_list, []

        def counted(message, *given, **options):
            sizes.append(sum(map(len, message)))
            return send(message, *given, **options)

        torch.distributed.broadcast_object_list = counted
        large = torch.zeros(100_000)
        found, received = group.broadcast_result(lambda: (given, large))
        assert received.shape == large.shape
        assert max(sizes) < 2000
        assert found.pop("字") == "歌词"
        torch.testing.assert_close(found, {name: given[name] for name in found}, rtol=0, atol=0)
        group.finish()

    assert forked.run(lambda: together(worker), tmp_path, seconds=60)[0] == 0


def test_a_batch_smaller_than_the_processes_is_refused(launch):
    """每步的序列分不到每个进程：说清楚。"""
    code, _, errors = launch("small", "--batch_size", "1")
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
                covered += list(range(total))[Processes().rank_slice(total)]
            assert covered == list(range(total))


def test_devices_of_several_processes(monkeypatch):
    """每个进程用自己编号的卡；卡不够、指定了卡号都说清楚；没有卡时用 CPU。"""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    second = Processes()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device_for("auto", second) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device_for("auto", second) == torch.device("cuda", 1)
    assert pick_device_for("cuda", second) == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match="cuda:0"):
        pick_device_for("cuda:0", second)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DeviceError, match="2 块显卡"):
        pick_device_for("auto", Processes())


def test_one_process_never_opens_a_socket(monkeypatch):
    """没有用 torchrun：不建进程组，每个集合操作都是原样返回。"""

    def forbidden(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr(torch.distributed, "init_process_group", forbidden)
    monkeypatch.setattr(socket, "socket", forbidden)
    alone = Processes()
    alone.start(torch.device("cpu"))
    tensor = torch.ones(2)
    alone.all_reduce_sum([tensor])
    alone.broadcast_tensors([tensor])
    assert (alone.all_reduce_max(3), alone.broadcast_result(lambda: "x"), tensor.tolist()) == (
        3,
        "x",
        [1.0, 1.0],
    )
    alone.finish()


def test_tensors_on_cards_go_over_nccl(monkeypatch):
    """显卡张量走 NCCL，有自己的、短得多的时限；别的走 gloo，等得起主进程清洗语料。"""
    monkeypatch.setenv("WORLD_SIZE", "2")
    groups, sent = {}, []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda name, timeout: groups.update({name: timeout}))
    monkeypatch.setattr(
        torch.distributed, "new_group", lambda backend, timeout: groups.update({backend: timeout}) or backend
    )
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, group, async_op: sent.append(group))
    several = Processes()
    several.start(torch.device("cuda"))
    for on_card in (True, False):
        several.begin_sum(SimpleNamespace(is_cuda=on_card))
    assert sent == ["nccl", None]
    assert groups == {"gloo": processes.PEER_TIMEOUT, "nccl": processes.CARD_TIMEOUT}
    assert processes.CARD_TIMEOUT < processes.PEER_TIMEOUT
