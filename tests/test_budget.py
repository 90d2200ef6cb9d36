"""步数随语料而定，不再变好就停，在走完的一次上接着训。"""

import math

import pytest
import torch
from tiny import TINY, metrics, stop_at, write_corpus

import flags
import train
from optimizer import EXTENSION_PEAK, learning_rate_at, scheduled_rate
from terminal import UserError
from training import checkpoint
from training.budget import MOST_EPOCHS, MOST_TUNING_EPOCHS, STEPS_PER_EPOCH, fitted

# ---- 步数随语料 ----


def fit(windows: int, *argv: str, processes: int = 1) -> tuple[flags.RunConfig, str]:
    said: list[str] = []
    config = flags.resolve(["--preset", "gpu", *argv], best_preset="gpu")
    return fitted(config, windows, processes, said.append), "".join(said)


def epochs(config: flags.RunConfig, windows: int) -> float:
    return config.train_iters * config.batch_size / windows


@pytest.mark.parametrize("windows", [1, 2, 7, 30, 100, 247, 1000, 5000, 10**4, 10**5])
def test_small_corpora_are_not_learnt_by_heart(windows):
    """自带样例（247 个窗口）、一百首（30 个）……：轮数有上限，每轮有许多步，评估不止一两次；大的语料照常量。"""
    config, said = fit(windows)
    plain = flags.resolve(["--preset", "gpu"], best_preset="gpu")
    if epochs(plain, windows) <= MOST_EPOCHS:
        assert config == plain
        assert not said
        return
    assert "语料只有" in said
    assert epochs(config, windows) <= max(MOST_EPOCHS + 1, 20 / windows)
    assert config.batch_size == 1 or windows / config.batch_size >= STEPS_PER_EPOCH
    assert config.warmup_iters <= config.train_iters / 10 or config.warmup_iters == 1
    assert config.eval_interval * 3 <= config.train_iters
    assert config.n_layers == plain.n_layers
    for name in ("train_iters", "batch_size", "warmup_iters", "eval_interval"):
        if getattr(config, name) != getattr(plain, name):
            assert f"{name.upper()} {getattr(plain, name)} → {getattr(config, name)}" in said


def test_fine_tuning_has_a_smaller_budget():
    """微调的起点已经会写，轮数更少。"""
    assert epochs(fit(1000)[0], 1000) > epochs(fit(1000, "--init_from", "x.pt")[0], 1000)
    assert epochs(fit(1000, "--init_from", "x.pt")[0], 1000) <= MOST_TUNING_EPOCHS + 1


def test_what_is_typed_stays():
    """命令行上写明的不动，哪怕与默认相同；关掉就照常量。"""
    typed = ["--train_iters", "2000", "--batch_size", "64", "--eval_interval", "200", "--warmup_iters", "200"]
    config, said = fit(30, *typed)
    assert (config.train_iters, config.batch_size, config.eval_interval, config.warmup_iters) == (2000, 64, 200, 200)
    assert "TRAIN_ITERS" not in said
    assert fit(30, "--train_iters", "900")[0].train_iters == 900
    off, said = fit(30, "--fit_to_corpus", "false")
    assert (off.train_iters, off.batch_size) == (2000, 64)
    assert not said


def test_every_process_has_a_sequence():
    assert fit(30, processes=4)[0].batch_size == 4


def test_a_fitted_run_resumes_as_itself(run, monkeypatch):
    """随语料定的步数每次启动都一样，中断了接得上，结束了知道结束。"""
    options = ("--fit_to_corpus", "true", "--patience", "none")
    free = {"--train_iters", "--batch_size", "--warmup_iters", "--eval_interval", "--save_interval"}
    pairs = zip(TINY[::2], TINY[1::2], strict=True)
    monkeypatch.setattr("conftest.TINY", [part for pair in pairs if pair[0] not in free for part in pair])
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        code, out, directory = run("fitted", *options)
    assert code == 130
    assert "语料只有" in out
    code, out, _ = run("fitted", *options)
    assert code == 0
    assert "第 7 步继续" in out
    latest = checkpoint.load(directory / "latest.pt")
    assert latest["iter"] == latest["config"]["train_iters"]
    assert "已经完成" in run("fitted", *options)[1]


# ---- 不再变好就停 ----


def worse_and_worse(monkeypatch) -> None:
    losses = iter([3.0, 2.0, *(2.0 + 0.1 * n for n in range(1, 100))])
    monkeypatch.setattr(train, "validation_loss", lambda *_: (next(losses), 4.0))


def test_stops_when_it_no_longer_improves(run, monkeypatch):
    """连续几次没有更好就停：best.pt 是最好的那次；再运行说已经完成，--patience none 接着训到底。"""
    worse_and_worse(monkeypatch)
    options = ("--train_iters", "40", "--eval_interval", "2")
    code, out, directory = run("early", *options, "--patience", "3")
    assert code == 0
    assert "提前停下" in out
    latest = checkpoint.load(directory / "latest.pt", for_resume=True)
    assert latest["iter"] == 10  # 第 2 步 3.0，第 4 步 2.0，再三次
    assert checkpoint.load(directory / "best.pt")["iter"] == 4
    code, out, _ = run("early", *options, "--patience", "3")
    assert code == 0
    assert "提前停下" in out
    assert "--patience none" in out
    code, out, _ = run("early", *options, "--patience", "none")
    assert code == 0
    assert "第 10 步继续" in out
    assert checkpoint.load(directory / "latest.pt")["iter"] == 40


def test_patience_survives_an_interruption(run, monkeypatch):
    """数到第几次没有更好也存着：中断再接，停在同一步。"""
    worse_and_worse(monkeypatch)
    options = ("--train_iters", "40", "--eval_interval", "2", "--patience", "4")
    with monkeypatch.context() as patch:
        stop_at(patch, 9)
        run("parts", *options)
    _, _, directory = run("parts", *options)
    assert checkpoint.load(directory / "latest.pt")["iter"] == 12


# ---- 接着走完的一次 ----


def test_schedule_without_an_extension_is_the_cosine():
    for step in range(100):
        assert scheduled_rate(step, 100, 10, 1.0, 0.1) == learning_rate_at(step, 100, 10, 1.0, 0.1)


def test_schedule_of_an_extension():
    """从最低升到最高的几成，再退火到最低；从不低于最低，也不跳回最高。"""
    rates = [scheduled_rate(step, 300, 20, 1.0, 0.1, extended_from=100) for step in range(100, 300)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(EXTENSION_PEAK)
    assert rates.index(max(rates)) <= 20
    assert rates[-1] == pytest.approx(0.1)
    assert all(later <= earlier + 1e-12 for earlier, later in zip(rates[20:], rates[21:], strict=False))


def test_an_extension_starts_gently_and_resumes(run, monkeypatch):
    """--train_iters 加倍：学习率从最低起；中断再接，与不中断的相同。"""
    run("whole")
    _, out, whole = run("whole", "--train_iters", "40")
    assert "上次走完了 10 步" in out
    run("parts")
    with monkeypatch.context() as patch:
        stop_at(patch, 25)
        run("parts", "--train_iters", "40")
    _, out, parts = run("parts", "--train_iters", "40")
    assert "上次走完了" not in out
    one, other = (checkpoint.load(folder / "latest.pt", for_resume=True) for folder in (whole, parts))
    assert one["extended_from"] == other["extended_from"] == 10
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
    rates = {row["iter"]: row["lr"] for row in metrics(whole) if "lr" in row}
    assert rates[11] <= 0.012 * EXTENSION_PEAK / 2
    assert max(rate for step, rate in rates.items() if step > 10) <= 0.012 * EXTENSION_PEAK + 1e-9


# ---- 权重的平均 ----


def test_best_holds_the_average(run):
    """best.pt 是滑动平均的权重，latest.pt 是当前的，另存着平均；0 是不平均。"""
    _, _, directory = run("averaged", "--average", "0.6", "--eval_interval", "10")
    best, latest = (checkpoint.load(directory / name) for name in ("best.pt", "latest.pt"))
    assert set(latest["average"]) == set(latest["model"])
    assert all(torch.equal(best["model"][name], latest["average"][name]) for name in best["model"])
    assert any(not torch.equal(best["model"][name], latest["model"][name]) for name in best["model"])
    _, _, directory = run("plain", "--average", "0", "--eval_interval", "10")
    best, latest = (checkpoint.load(directory / name) for name in ("best.pt", "latest.pt"))
    assert latest["average"] == {}
    assert all(torch.equal(best["model"][name], latest["model"][name]) for name in best["model"])


def test_a_checkpoint_without_an_average_goes_on(run):
    """从前的检查点没有平均：从当前的权重起。"""
    _, _, directory = run("old", "--train_iters", "6")
    contents = checkpoint.load(directory / "latest.pt", for_resume=True)
    for name in ("average", "stale_evaluations", "extended_from"):
        del contents[name]
    checkpoint.save(directory / "latest.pt", contents)
    code, _, _ = run("old", "--train_iters", "10")
    assert code == 0
    assert math.isfinite(checkpoint.load(directory / "best.pt")["val_loss"])


# ---- 各个子文件夹的比重 ----


@pytest.fixture
def two_folders(tmp_path):
    write_corpus(tmp_path / "songs/甲", 30)
    write_corpus(tmp_path / "songs/乙", 30, start=60)
    return tmp_path / "songs"


def test_weights_by_folder(run, two_folders, monkeypatch):
    """说出各占几成；中断再接逐位相同；写错的名字列出有的。"""
    options = ("--lyrics_weights", "甲=0,乙=2")
    _, out, whole = run("whole", *options, folder=two_folders)
    assert "乙 100%" in out
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        run("parts", *options, folder=two_folders)
    _, _, parts = run("parts", *options, folder=two_folders)
    one, other = (checkpoint.load(folder / "latest.pt") for folder in (whole, parts))
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
    with pytest.raises(ValueError, match="有的是：乙、甲"):
        run("wrong", "--lyrics_weights", "丙=2", folder=two_folders)
    with pytest.raises(ValueError, match="都去掉了"):
        run("none", "--lyrics_weights", "甲=0,乙=0", folder=two_folders)


@pytest.mark.parametrize("text", ["甲", "甲=", "=2", "甲=-1", "甲=x", "甲=2,", "甲=1e3", ""])
def test_wrong_weights_are_one_line(run, text):
    with pytest.raises(UserError, match="lyrics_weights"):
        run("wrong", "--lyrics_weights", text)
