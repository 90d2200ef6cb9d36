"""训练脚本：信号、评估、编译、错误、只写说好的地方。"""

import math
import os
import pty
import signal
import subprocess
import sys

import forked
import pytest
import torch
from test_tracking import FakeSwanLab
from tiny import REPOSITORY, TINY, assert_identical, figures, metrics, stop_at

import train
import training.data
from terminal import UserError, run_script
from training import checkpoint


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_save_and_exit_128_plus_n(run, monkeypatch, number):
    """SIGTERM、SIGHUP 与 Ctrl-C 一样先保存；退出码 128+n。"""
    stop_at(monkeypatch, 2, number)
    code, out, directory = run("signalled")
    assert code == 128 + number
    assert signal.Signals(number).name in out
    assert checkpoint.load(directory / "latest.pt", for_resume=True)["iter"] == 2


def test_interrupt_before_training_starts(run, monkeypatch):
    """还在准备语料时按 Ctrl-C：立即结束，说明还没开始。"""
    monkeypatch.setattr(training.data, "prepare", lambda *a, **k: os.kill(os.getpid(), signal.SIGINT))
    code, out, directory = run("early")
    assert code == 130
    assert "还没有开始" in out
    assert not (directory / "latest.pt").exists()


def test_micro_batches_equal_the_whole_batch(run):
    """MICRO_BATCH_SIZE 只省内存，不改结果（含不整除的 3）。"""
    exact = ("--dropout", "0", "--use_amp", "false", "--optimizer", "adamw")  # Muon 内部用 bf16
    _, _, whole = run("whole", *exact)
    reference = checkpoint.load(whole / "latest.pt")["model"]
    for size in ("1", "3"):
        _, _, split = run(f"split{size}", *exact, "--micro_batch_size", size)
        for ours, theirs in zip(figures(split), figures(whole), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)
        for name, weight in checkpoint.load(split / "latest.pt")["model"].items():
            torch.testing.assert_close(weight, reference[name], rtol=1e-3, atol=1e-4)


def test_best_is_saved_only_when_better(run, monkeypatch):
    """best.pt 只在验证损失更低时改写。"""
    losses = iter([3.0, 2.0, 4.0])
    monkeypatch.setattr(train, "validation_loss", lambda *_: (next(losses), 1.0))
    _, _, directory = run("best")
    assert checkpoint.load(directory / "best.pt")["iter"] == 8
    latest = checkpoint.load(directory / "latest.pt", for_resume=True)
    assert (latest["iter"], latest["val_loss"], latest["best_val_loss"]) == (10, 4.0, 2.0)


def test_every_finished_run_has_a_best(run):
    """再短的训练也以评估结束，所以总有 best.pt；过长的预热会缩短并说明。"""
    _, out, directory = run("short", "--train_iters", "1", "--eval_interval", "100", "--warmup_iters", "50")
    assert (directory / "best.pt").exists()
    assert "预热 50 步比全程还长" in out


def test_validation_metric(run):
    """验证损失是每词元的 nat，比特数以验证歌曲的字数为分母：与逐字直接计算一致。"""
    _, _, directory = run("metric", "--use_amp", "false", "--eval_iters", "1000")
    contents = checkpoint.load(directory / "best.pt")
    model, tokenizer = checkpoint.restore(contents, directory / "best.pt")
    model.eval()
    stream = next(directory.parent.glob("cache/val.bin"))
    tokens = torch.tensor(memoryview(stream.read_bytes()[64:]).cast("H").tolist())
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, 32):
            window = tokens[start : start + 33]
            log_probabilities = model(window[None, :-1])[0].log_softmax(-1)
            nats -= log_probabilities.gather(-1, window[1:, None]).sum().item()
    characters = len(tokenizer.decode(tokens.tolist()))
    assert contents["val_loss"] == pytest.approx(nats / (len(tokens) - 1), rel=1e-4)
    assert contents["val_bpc"] == pytest.approx(nats / math.log(2) / characters, rel=1e-4)


def test_without_a_compiler_training_goes_on(run, monkeypatch):
    """torch.compile 用不了：说一句，照常训练，结果与不编译相同。"""

    def unusable(function, **options):
        def call(*arguments):
            raise torch._dynamo.exc.Unsupported("没有 C++ 编译器")

        return call

    monkeypatch.setattr(torch, "compile", unusable)
    code, out, compiled = run("compiled", "--use_compile", "true")
    assert code == 0
    assert out.count("torch.compile 在这里不可用") == 1
    _, _, eager = run("eager")
    a, b = (checkpoint.load(folder / "latest.pt")["model"] for folder in (compiled, eager))
    assert_identical(a, b)


def test_our_own_errors_are_not_taken_for_compiler_errors(run, monkeypatch):
    """编译可用时，我们代码里的错误保留回溯。"""
    monkeypatch.setattr(torch, "compile", lambda function, **options: lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("bug", "--use_compile", "true")


@pytest.fixture(scope="module")
def handed_down(corpus, tmp_path_factory):
    """从别的文件夹启动的真正的进程，像 nohup、后台脚本那样交给它「不理 SIGINT、SIGHUP」；训练中各收到一个。"""
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(REPOSITORY)!r})
import train
step = train.Trainer.step
def stepping(self):
    if self.progress.iteration in (3, 5):
        os.kill(os.getpid(), signal.SIGINT if self.progress.iteration == 3 else signal.SIGHUP)
    return step(self)
train.Trainer.step = stepping
code = train.main(sys.argv[1:])
print("swanlab" in sys.modules)
sys.exit(code)
"""
    folder = tmp_path_factory.mktemp("elsewhere")
    places = "--checkpoint_dir out --cache_dir cache --bpe_model_prefix bpe".split()
    return folder, subprocess.run(
        ["bash", "-c", 'trap \'\' INT HUP; exec "$0" "$@"', sys.executable, "-c", program, *TINY]
        + ["--lyrics_dir", str(corpus), *places],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_signals_handed_down_ignored_stay_ignored(handed_down):
    """nohup 之下断开终端、后台脚本里按 Ctrl-C：训练不停，也不说收到了。"""
    folder, done = handed_down
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(folder / "out" / "latest.pt")["iter"] == 10
    assert "收到" not in done.stdout
    assert "训练完成" in done.stdout


def test_without_swanlab_nothing_of_it_is_imported(handed_down):
    """USE_SWANLAB=False 时不载入 swanlab；从别的文件夹启动，只写说好的地方。"""
    folder, done = handed_down
    assert done.stdout.splitlines()[-1] == "False"
    assert sorted(path.name for path in folder.iterdir()) == ["bpe.model", "cache", "out"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_ignored_signal_leaves_the_others(run, monkeypatch, number):
    """不理其中一个时，别的照样停下训练。"""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with monkeypatch.context() as patch:
            stop_at(patch, 3, number)
            stop_at(patch, 5, signal.SIGTERM)
            code, _, directory = run("ignored")
    finally:
        signal.signal(number, before)
    assert code == 128 + signal.SIGTERM
    assert checkpoint.load(directory / "latest.pt", for_resume=True)["iter"] == 5


@pytest.mark.parametrize("flag", ["--checkpoint_dir", "--cache_dir"])
def test_unwritable_folders_are_named(run, tmp_path, flag):
    """写不进去的文件夹一开始就报告，而不是训练几小时之后。"""
    (tmp_path / "file").write_text("占着位置的文件", encoding="utf-8")
    with pytest.raises(UserError, match="无法创建文件夹"):
        run("unused", flag, str(tmp_path / "file" / "inside"))


def test_a_vanished_terminal_does_not_stop_training(monkeypatch, tmp_path, corpus):
    """终端没了（tmux kill-session）：照常训练、保存，不因为写不出一行字而中断。"""
    leader, follower = pty.openpty()
    places = {"checkpoint_dir": "out", "cache_dir": "cache", "bpe_model_prefix": "bpe"}
    argv = [part for name, place in places.items() for part in (f"--{name}", str(tmp_path / place))]
    monkeypatch.setattr(sys, "argv", ["train.py", *TINY, "--lyrics_dir", str(corpus), *argv])

    def without_leader() -> None:
        os.close(leader)
        run_script(train.main, leave=train.processes.leave)

    errors = os.open(tmp_path / "errors", os.O_WRONLY | os.O_CREAT)
    process = forked.fork(without_leader, (follower, follower, errors))
    for file in (follower, errors):
        os.close(file)
    os.read(leader, 100)  # 已开始显示
    os.close(leader)
    assert forked.finish(process) == 0
    assert (tmp_path / "errors").read_bytes() == b""
    assert checkpoint.load(tmp_path / "out" / "latest.pt")["iter"] == 10


def test_only_the_promised_places_are_written(run, tmp_path, corpus):
    """训练只写检查点文件夹、缓存和分词模型文件。"""
    before = sorted(corpus.rglob("*"))
    run("places", "--train_iters", "1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bpe.model", "cache", "places"]
    assert sorted(path.name for path in (tmp_path / "places").iterdir()) == ["best.pt", "latest.pt", "metrics.jsonl"]
    assert sorted(corpus.rglob("*")) == before


def test_latest_keys_follow_the_contract(run):
    """检查点的顶层键、设备无关的权重名与分词器。"""
    _, _, directory = run("keys", "--train_iters", "1")
    best = torch.load(directory / "best.pt", weights_only=True)
    latest = torch.load(directory / "latest.pt", weights_only=True)
    promised = {
        "format",
        "model",
        "model_config",
        "config",
        "tokenizer",
        "iter",
        "val_loss",
        "val_bpc",
        "data",
        "corpus",
    }
    assert set(best) == promised
    resuming = {"optimizer", "scaler", "rng", "best_val_loss", "best_val_bpc", "corpus", "run_id"}
    resuming |= {"evaluation_due", "skipped_steps", "stale_evaluations", "extended_from", "average"}
    assert set(latest) == promised | resuming
    assert not any(name.startswith(("_orig_mod.", "module.")) for name in latest["model"])
    assert latest["config"]["preset"] == "cpu"


def test_swanlab_changes_nothing_in_training(run, monkeypatch, tmp_path):
    """用不用 SwanLab、它好不好用，训练都逐位相同。"""
    _, _, without = run("without")
    fake = FakeSwanLab(tmp_path, monkeypatch)
    for name, plan in {"good": {}, "bad": {"log": ["raise RuntimeError"], "finish": ["sys.exit(1)"]}}.items():
        fake.plan(**plan)
        _, _, directory = run(name, "--use_swanlab", "true")
        a, b = (checkpoint.load(folder / "latest.pt")["model"] for folder in (without, directory))
        assert_identical(a, b)
        assert metrics(without) == metrics(directory)


def test_inspection_instead_of_training(run, tmp_path):
    """--inspect 写出歌就结束：没有检查点，没有缓存。"""
    code, out, directory = run("a", "--inspect", str(tmp_path / "看"))
    assert code == 0
    assert "语料：读到 40 首" in out
    kept = (tmp_path / "看" / "songs.txt").read_text(encoding="utf-8").count("━━")
    assert f"留下 {kept} 首" in out
    assert not directory.exists()
    assert not (tmp_path / "cache").exists()
