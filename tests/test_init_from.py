"""微调：从另一次训练的检查点的权重与分词器开始。"""

import pytest
import torch
from tiny import write_corpus

from terminal import UserError
from training import checkpoint
from training.checkpoint import CheckpointError


@pytest.fixture
def base(run):
    _, _, directory = run("base")
    return directory / "best.pt"


def weights(path):
    return checkpoint.load(path)["model"]


def test_starts_from_the_weights_and_the_tokenizer(run, base, tmp_path):
    """第 0 步的权重与词表就是检查点的；步数、优化器、学习率从头来；架构随检查点，不论现在的设置。"""
    style = write_corpus(tmp_path / "style", 12, start=50)
    options = ("--init_from", str(base), "--n_layers", "3", "--bpe_vocab_size", "4000")
    code, out, directory = run(
        "tuned", *options, "--learning_rate", "1e-12", "--muon_learning_rate", "1e-12", "--min_lr", "0", folder=style
    )
    assert code == 0
    assert "微调" in out
    assert "2 层 × 32 维" in out
    tuned, began = checkpoint.load(directory / "latest.pt", for_resume=True), checkpoint.load(base)
    assert tuned["tokenizer"] == began["tokenizer"]
    assert tuned["iter"] == 10
    for name, weight in began["model"].items():
        torch.testing.assert_close(tuned["model"][name], weight, rtol=1e-5, atol=1e-6)


def test_fine_tuning_learns_the_new_corpus(run, base, tmp_path):
    style = write_corpus(tmp_path / "style", 12, start=50)
    _, _, tuned = run("tuned", "--init_from", str(base), folder=style)
    before, after = weights(base), weights(tuned / "latest.pt")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_resumes_with_the_same_command(run, base, tmp_path):
    """中途停下，同样的命令接着训练，与不停的相同；检查点移走了也能接着。"""
    style = write_corpus(tmp_path / "style", 12, start=50)
    options = ("--init_from", str(base))
    run("parts", *options, "--train_iters", "10", folder=style)
    _, _, whole = run("whole", *options, "--train_iters", "14", folder=style)
    contents = base.read_bytes()
    base.unlink()
    code, out, parts = run("parts", *options, "--train_iters", "14", folder=style)
    assert code == 0
    assert "第 10 步继续" in out
    base.write_bytes(contents)
    assert checkpoint.load(parts / "latest.pt")["iter"] == checkpoint.load(whole / "latest.pt")["iter"] == 14


def test_another_run_in_the_folder_is_refused(run, base, tmp_path):
    """文件夹里是别的训练（例如正是原来那次）：不当作这次微调接着训练，也不盖掉它。"""
    before = base.read_bytes()
    for options in (["--train_iters", "20"], ["--resume", "false"]):
        with pytest.raises(UserError, match="INIT_FROM") as error:
            run("base", "--init_from", str(base), *options)
        assert "--checkpoint_dir" in str(error.value)
        assert "BPE_VOCAB_SIZE" not in str(error.value)
    (base.parent / "latest.pt").unlink()
    with pytest.raises(UserError, match="--checkpoint_dir"):
        run("base", "--init_from", str(base))
    assert base.read_bytes() == before
    assert not list(base.parent.glob("archive-*"))


def test_the_same_base_under_another_name_resumes(run, base, tmp_path):
    """换一种写法指同一个检查点，不算另一次训练。"""
    run("tuned", "--init_from", str(base), "--train_iters", "2")
    link = tmp_path / "link"
    link.symlink_to(base.parent)
    for name in (link / "best.pt", tmp_path / "tuned" / ".." / "base" / "best.pt"):
        code, _, _ = run("tuned", "--init_from", str(name), "--train_iters", "2")
        assert code == 0


def test_a_missing_or_damaged_checkpoint_is_one_line(run, base, tmp_path):
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(base.read_bytes()[:-500])
    for path in (damaged, tmp_path / "none.pt"):
        with pytest.raises(CheckpointError, match=path.name):
            run("new", "--init_from", str(path))
    assert not list((tmp_path / "new").glob("*.pt"))


def test_best_is_never_worse_than_the_start(run, base, tmp_path):
    """微调之前先量一次：越练越坏时，best.pt 就是起点。"""
    style = write_corpus(tmp_path / "style", 12, start=50)
    harmful = ("--learning_rate", "1", "--muon_learning_rate", "1", "--min_lr", "0.5")
    _, out, directory = run("worse", "--init_from", str(base), *harmful, folder=style)
    assert "评估 · 第 0 步" in out
    best = checkpoint.load(directory / "best.pt")
    assert best["iter"] == 0
    assert all(torch.equal(best["model"][name], weight) for name, weight in weights(base).items())
