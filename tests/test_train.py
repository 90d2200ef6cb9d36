"""训练脚本：接着训练、拒绝覆盖、信号、评估。"""

import math
import os
import pty
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from test_tracking import FakeSwanLab
from tiny import REPOSITORY, TINY, assert_identical, assert_same_run, crash_at, metrics, stop_at, write_corpus

import checkpoint
import runtime
import train
from config import UserError
from corpus.cleaning import CLEANING_VERSION
from corpus.files import CorpusError, find_files, fingerprint_before, fingerprint_files


@pytest.mark.parametrize("amp", ["false", "true"])
@pytest.mark.parametrize("stop", [5, 8])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_resume_is_bit_for_bit(run, monkeypatch, stop, amp, optimizer):
    """N 步 = k 步 + Ctrl-C + 接着 N-k 步：权重、优化器、损失、记录逐位相同（丢弃率 0.1，k 可与评估同步）。"""
    options = ("--use_amp", amp, "--optimizer", optimizer)
    code, _, whole = run("whole", *options)
    assert code == 0
    with monkeypatch.context() as patch:
        stop_at(patch, stop)
        code, out, parts = run("parts", *options)
    assert code == 130
    assert f"第 {stop} 步" in out
    assert checkpoint.load(parts / "latest.pt", for_resume=True)["iter"] == stop
    code, out, _ = run("parts", *options)
    assert code == 0
    assert "接着训练" in out
    assert f"第 {stop} 步" in out
    assert_same_run(whole, parts)


def test_resume_after_a_crash_replays_exactly(run, monkeypatch):
    """没来得及保存就退出：从上一次的 latest.pt 重来，多出的记录截掉，结果与不中断时相同。"""
    _, _, whole = run("whole")
    with monkeypatch.context() as patch:
        crash_at(patch, 8)
        with pytest.raises(ZeroDivisionError):
            run("parts")
    parts = whole.parent / "parts"
    assert checkpoint.load(parts / "latest.pt", for_resume=True)["iter"] == 6
    assert metrics(parts)[-1]["iter"] == 7
    run("parts")
    assert_same_run(whole, parts)


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
    monkeypatch.setattr(train, "prepare", lambda *a, **k: os.kill(os.getpid(), signal.SIGINT))
    code, out, directory = run("early")
    assert code == 130
    assert "还没有开始" in out
    assert not (directory / "latest.pt").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--n_layers", "3"], "N_LAYERS：检查点 2，现在 3"),
        (["--n_embed", "64"], "N_EMBED：检查点 32，现在 64"),
        (["--optimizer", "adamw"], "OPTIMIZER：检查点 muon，现在 adamw"),
        (["--max_seq_len", "16"], "MAX_SEQ_LEN：检查点 32，现在 16"),
        (["--bpe_vocab_size", "4000"], "BPE_VOCAB_SIZE：检查点 3000，现在 4000"),
        (["--val_fraction", "0.2"], "VAL_FRACTION：检查点 0.05，现在 0.2"),
    ],
)
def test_another_architecture_is_refused(run, change, named):
    """架构、词表或划分不同：拒绝开始，列出差别，原检查点一字节不动。"""
    _, _, directory = run("kept", "--train_iters", "1")
    before = (directory / "latest.pt").read_bytes(), (directory / "best.pt").read_bytes()
    with pytest.raises(UserError) as error:
        run("kept", *change)
    assert named in str(error.value)
    assert "--resume false" in str(error.value)
    assert before == ((directory / "latest.pt").read_bytes(), (directory / "best.pt").read_bytes())


def test_another_corpus_is_refused_unless_allowed(run, tmp_path):
    """语料变了：拒绝；--allow_new_corpus true 沿用检查点的分词器继续，旧的 best.pt 留档。"""
    folder = write_corpus(tmp_path / "growing", 20)
    _, _, directory = run("kept", "--train_iters", "2", folder=folder)
    old_tokenizer = checkpoint.load(directory / "latest.pt")["tokenizer"]
    old_best = (directory / "best.pt").read_bytes()
    write_corpus(folder, 20, start=20)
    with pytest.raises(UserError, match="--allow_new_corpus true"):
        run("kept", "--train_iters", "4", folder=folder)
    code, out, _ = run("kept", "--train_iters", "4", "--allow_new_corpus", "true", folder=folder)
    assert code == 0
    assert "不再能逐位重现" in out
    assert checkpoint.load(directory / "latest.pt")["tokenizer"] == old_tokenizer
    archived = list(directory.glob("archive-*/best.pt"))
    assert [path.read_bytes() for path in archived] == [old_best]


def test_resume_false_archives_the_old_run(run):
    """--resume false：旧结果整个移入 archive-…/，新的从第 0 步开始。"""
    _, _, directory = run("again", "--train_iters", "2")
    before = {name: (directory / name).read_bytes() for name in ("best.pt", "latest.pt", "metrics.jsonl")}
    _, out, _ = run("again", "--train_iters", "1", "--resume", "false", "--n_layers", "1")
    (archive,) = directory.glob("archive-*")
    assert {path.name: path.read_bytes() for path in archive.iterdir()} == before
    assert str(archive) in out
    assert checkpoint.load(directory / "latest.pt", for_resume=True)["iter"] == 1


def test_a_wrong_folder_archives_nothing(run, tmp_path):
    """--resume false 时写错了语料文件夹：报错，旧结果原地不动。"""
    _, _, directory = run("kept", "--train_iters", "1")
    with pytest.raises(CorpusError):
        run("kept", "--resume", "false", folder=tmp_path / "typo")
    assert sorted(path.name for path in directory.iterdir()) == ["best.pt", "latest.pt", "metrics.jsonl"]


def test_best_alone_is_not_overwritten(run):
    """只有 best.pt（别人给的，或 latest.pt 已删）：先归档，不覆盖。"""
    _, _, directory = run("given", "--train_iters", "1")
    (directory / "latest.pt").unlink()
    given = (directory / "best.pt").read_bytes()
    run("given", "--train_iters", "1", "--seed", "5")
    assert [path.read_bytes() for path in directory.glob("archive-*/best.pt")] == [given]


def test_damaged_latest_is_never_replaced(run):
    """latest.pt 损坏：报错并留着它，不悄悄从头开始。"""
    _, _, directory = run("damaged", "--train_iters", "1")
    latest = directory / "latest.pt"
    latest.write_bytes(latest.read_bytes()[:1000])
    with pytest.raises(UserError, match="损坏"):
        run("damaged")
    assert latest.stat().st_size == 1000


def test_a_finished_run_says_so(run):
    """完成后再运行：说明已完成和怎样继续，退出码 0，什么都不动；增加步数就接着训练。"""
    _, _, directory = run("done")
    before = (directory / "latest.pt").read_bytes()
    code, out, _ = run("done")
    assert code == 0
    assert "已经完成" in out
    assert "--train_iters" in out
    assert (directory / "latest.pt").read_bytes() == before
    code, out, _ = run("done", "--train_iters", "12")
    assert code == 0
    assert checkpoint.load(directory / "latest.pt")["iter"] == 12


def test_micro_batches_equal_the_whole_batch(run):
    """MICRO_BATCH_SIZE 只省内存，不改结果（含不整除的 3）。"""
    exact = ("--dropout", "0", "--use_amp", "false", "--optimizer", "adamw")  # Muon 内部用 bf16
    _, _, whole = run("whole", *exact)
    reference = checkpoint.load(whole / "latest.pt")["model"]
    for size in ("1", "3"):
        _, _, split = run(f"split{size}", *exact, "--micro_batch_size", size)
        for ours, theirs in zip(metrics(split), metrics(whole), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)
        for name, weight in checkpoint.load(split / "latest.pt")["model"].items():
            torch.testing.assert_close(weight, reference[name], rtol=1e-3, atol=1e-4)


def test_best_is_saved_only_when_better(run, monkeypatch):
    """best.pt 只在验证损失更低时改写。"""
    losses = iter([3.0, 2.0, 4.0])
    monkeypatch.setattr(train.Trainer, "validation_loss", lambda self: (next(losses), 1.0))
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
    contents = checkpoint.load(directory / "latest.pt")
    model, tokenizer = checkpoint.restore(contents, directory / "latest.pt")
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


def test_without_swanlab_nothing_of_it_is_imported(corpus, tmp_path):
    """USE_SWANLAB=False 时不载入 swanlab；从别的文件夹启动也行。"""
    program = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import train; code = train.main(sys.argv[1:]); "
        "assert 'swanlab' not in sys.modules; sys.exit(code)"
    )
    places = [
        "--lyrics_dir",
        str(corpus),
        "--checkpoint_dir",
        "out",
        "--cache_dir",
        "cache",
        "--bpe_model_prefix",
        "bpe",
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *TINY, "--train_iters", "1", *places],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bpe.model", "cache", "out"]


def test_bad_values_exit_with_2_and_no_traceback(tmp_path):
    """命令行有误：全部问题列在一次报错里，退出码 2。"""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "train.py"), "--batch_sise", "4", "--dropout", "2", "--resume", "yes"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "--batch_size" in done.stderr
    assert "--dropout 2" in done.stderr
    assert "--resume yes" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("device", ["cuda:99", "tpu"])
def test_unknown_device(run, device):
    """不存在的设备：一句话。"""
    with pytest.raises(runtime.DeviceError):
        run("device", "--device", device)


def test_messages_name_missing_corpora(run, tmp_path):
    """语料文件夹不存在、为空：各有一句，接着训练时也一样。"""
    with pytest.raises(CorpusError, match="不存在"):
        run("none", folder=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="是空的"):
        run("none", folder=tmp_path / "empty")


@pytest.mark.parametrize("flag", ["--checkpoint_dir", "--cache_dir"])
def test_unwritable_folders_are_named(run, tmp_path, flag):
    """写不进去的文件夹一开始就报告，而不是训练几小时之后。"""
    (tmp_path / "file").write_text("占着位置的文件", encoding="utf-8")
    with pytest.raises(UserError, match="无法创建文件夹"):
        run("unused", flag, str(tmp_path / "file" / "inside"))


def test_a_vanished_terminal_does_not_stop_training(tmp_path, corpus):
    """终端没了（tmux kill-session）：照常训练、保存，不因为写不出一行字而中断。"""
    leader, follower = pty.openpty()
    places = ["--checkpoint_dir", "out", "--cache_dir", "cache", "--bpe_model_prefix", "bpe"]
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "train.py"), *TINY, "--lyrics_dir", str(corpus), *places],
        cwd=tmp_path,
        stdin=follower,
        stdout=follower,
        stderr=subprocess.PIPE,
    )
    os.close(follower)
    os.read(leader, 100)  # 已开始显示
    os.close(leader)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    assert errors == b""
    assert checkpoint.load(tmp_path / "out" / "latest.pt")["iter"] == 10


def test_changed_settings_are_listed_when_resuming(run):
    """接着训练时，能改的设置改了要列出来。"""
    run("listed", "--train_iters", "2")
    _, out, _ = run("listed", "--train_iters", "3", "--learning_rate", "5e-4")
    assert "learning_rate 0.003 → 0.0005" in out
    assert "train_iters 2 → 3" in out


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
    resuming |= {"evaluation_due", "skipped_steps"}
    assert set(latest) == promised | resuming
    assert not any(name.startswith(("_orig_mod.", "module.")) for name in latest["model"])
    assert latest["config"]["preset"] == "cpu"


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("c++") is None, reason="没有 C++ 编译器")
def test_compiled_training_resumes_bit_for_bit(run, monkeypatch):
    """编译后的训练同样逐位接续。"""
    options = ("--use_compile", "true", "--n_layers", "1", "--train_iters", "4")
    _, _, whole = run("whole", *options)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert run("parts", *options)[0] == 130
    run("parts", *options)
    assert_same_run(whole, whole.parent / "parts")


def test_a_resumed_run_continues_the_same_swanlab_run(run, monkeypatch):
    """接着训练用同一个 SwanLab 编号；数值是标量，试写的歌词是文字；断在半路的那次记作 aborted。"""
    fake = FakeSwanLab()
    monkeypatch.setitem(sys.modules, "swanlab", fake)
    options = ("--use_swanlab", "true")
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        run("logged", *options)
    run("logged", *options)
    first, second = fake.inits
    assert first["id"] == second["id"]
    assert second["resume"] == "allow"
    assert [end["state"] for end in fake.finishes] == ["aborted", "success"]
    scalars = [values for values, _ in fake.logs if "sample" not in values]
    assert {"train_loss", "grad_norm", "lr", "tokens_per_s", "val_loss", "val_bpc"} <= set().union(*scalars)
    samples = [(values["sample"], step) for values, step in fake.logs if "sample" in values]
    assert [step for _, step in samples] == [4, 8, 10]
    assert all(kind == "text" and text.startswith("今夜我") for (kind, text, _), _ in samples)


def test_swanlab_changes_nothing_in_training(run, monkeypatch):
    """用不用 SwanLab、它好不好用，训练都逐位相同。"""
    _, _, without = run("without")
    for name, fake in {"good": FakeSwanLab(), "bad": FakeSwanLab(log=RuntimeError("x"), finish=OSError("y"))}.items():
        monkeypatch.setitem(sys.modules, "swanlab", fake)
        _, _, directory = run(name, "--use_swanlab", "true")
        a, b = (checkpoint.load(folder / "latest.pt")["model"] for folder in (without, directory))
        assert_identical(a, b)
        assert metrics(without) == metrics(directory)


# ---- 语料与清洗的版本 ----


def as_cleaned_before(directory, folder) -> None:
    """把检查点改成清洗版本 1 时存的样子。"""
    for name in ("latest.pt", "best.pt"):
        contents = torch.load(directory / name, weights_only=True)
        if name == "latest.pt":
            contents["corpus"] = fingerprint_before(folder, contents["config"]["val_fraction"])
        else:
            del contents["corpus"]
        torch.save(contents, directory / name)


def test_changed_cleaning_is_not_blamed_on_the_corpus(run, corpus, tmp_path):
    """清洗的规则变了而文件没变：说的是清洗；--allow_new_corpus true 接着训练；写歌与微调不受影响。"""
    _, _, directory = run("old", "--train_iters", "4")
    as_cleaned_before(directory, corpus)
    with pytest.raises(UserError, match="清洗：规则的版本，检查点 1，现在") as caught:
        run("old", "--train_iters", "6")
    assert "歌词文件没有变" in str(caught.value)
    assert "--allow_new_corpus" in str(caught.value)
    more = write_corpus(tmp_path / "more", 50)
    with pytest.raises(UserError, match="语料：.*的内容与检查点训练时不同"):
        run("old", "--train_iters", "6", folder=more)
    code, out, _ = run("old", "--train_iters", "6", "--allow_new_corpus", "true")
    assert code == 0
    assert "第 4 步继续" in out
    assert torch.load(directory / "latest.pt", weights_only=True)["corpus"]["cleaning"] == CLEANING_VERSION
    archived = next(directory.glob("archive-*/best.pt"))
    assert run("tuned", "--init_from", str(archived), "--train_iters", "2")[0] == 0


def test_newer_cleaning_is_named(run, corpus, monkeypatch):
    """两样分开存：下一次规则再变，也说得清。"""
    _, _, directory = run("a", "--train_iters", "4")
    for name in ("latest.pt", "best.pt"):
        saved = torch.load(directory / name, weights_only=True)["corpus"]
        assert saved == {"files": fingerprint_files(corpus, find_files(corpus).files), "cleaning": CLEANING_VERSION}
    monkeypatch.setattr(train, "CLEANING_VERSION", CLEANING_VERSION + 1)
    with pytest.raises(UserError, match=f"检查点 {CLEANING_VERSION}，现在 {CLEANING_VERSION + 1}"):
        run("a", "--train_iters", "6")


def test_outputs_inside_the_lyrics_folder_can_be_resumed(tmp_path, capsys):
    """检查点、缓存都放在歌词文件夹里，也接得上。"""
    folder = write_corpus(tmp_path / "歌", 40)
    argv = [*TINY, "--lyrics_dir", str(folder), "--checkpoint_dir", str(folder / "checkpoints")]
    argv += ["--cache_dir", str(folder), "--bpe_model_prefix", str(folder / "bpe")]
    for iterations in ("4", "6"):
        assert train.main([*argv, "--train_iters", iterations]) == 0
    assert "第 4 步继续" in capsys.readouterr().out


def test_inspection_instead_of_training(run, tmp_path):
    """--inspect 写出歌就结束：没有检查点，没有缓存。"""
    code, out, directory = run("a", "--inspect", str(tmp_path / "看"))
    assert code == 0
    assert "语料：读到 40 首" in out
    kept = (tmp_path / "看" / "songs.txt").read_text(encoding="utf-8").count("━━")
    assert f"留下 {kept} 首" in out
    assert not directory.exists()
    assert not (tmp_path / "cache").exists()
