"""接着训练：逐位相同，该拒绝的拒绝，旧的结果不丢。"""

import shutil

import pytest
import torch
from test_tracking import FakeSwanLab
from tiny import TINY, assert_same_run, crash_at, metrics, stop_at, write_corpus

import train
from corpus.cleaning import CLEANING_VERSION
from corpus.files import CorpusError, find_files, fingerprint_before, fingerprint_files
from terminal import UserError
from training import checkpoint, resume


@pytest.mark.parametrize(
    ("optimizer", "stop", "amp"),
    [("muon", 5, "true"), ("muon", 8, "false"), ("adamw", 5, "false"), ("adamw", 8, "true")],
)
def test_resume_is_bit_for_bit(run, monkeypatch, optimizer, stop, amp):
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


def test_changed_settings_are_listed_when_resuming(run):
    """接着训练时，能改的设置改了要列出来。"""
    run("listed", "--train_iters", "2")
    _, out, _ = run("listed", "--train_iters", "3", "--learning_rate", "5e-3")
    assert "learning_rate 0.012 → 0.005" in out
    assert "train_iters 2 → 3" in out


@pytest.mark.slow
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


def test_a_resumed_run_continues_the_same_swanlab_run(run, monkeypatch, tmp_path):
    """接着训练用同一个 SwanLab 编号；数值是标量，试写的歌词是文字；断在半路的那次记作 aborted。"""
    fake = FakeSwanLab(tmp_path, monkeypatch)
    fake.plan()
    options = ("--use_swanlab", "true")
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        run("logged", *options)
    run("logged", *options)
    first, second = fake.calls("init")
    assert first["id"] == second["id"]
    assert [end["state"] for end in fake.calls("finish")] == ["aborted", "success"]
    logs = [(log["step"], log["values"]) for log in fake.calls("log")]
    names = set().union(*(values for _, values in logs))
    assert {"train_loss", "grad_norm", "lr", "tokens_per_s", "val_loss", "val_bpc"} <= names
    samples = [(step, *values["sample"]) for step, values in logs if "sample" in values]
    assert [step for step, _, _ in samples] == [4, 8, 10]
    assert all(text.startswith(caption) for _, text, caption in samples)


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
    monkeypatch.setattr(resume, "CLEANING_VERSION", CLEANING_VERSION + 1)
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
