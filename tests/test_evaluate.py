"""量质量：每项指标与手算相符，各部分从头到尾走通，错误只有一行。"""

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import forms
import numpy as np
import pytest
import torch
from forms import FINALS, character_count, copied_beyond, final_class, rhymes_kept
from tiny import TINY, write_corpus

import config
import evaluate
import train
from corpus.cleaning import CLEANING_VERSION
from corpus.files import CorpusError
from lyrics.copies import CopyIndex
from lyrics.form import LyricsError
from lyrics.plan import SongPlan
from lyrics.sound import RHYME_CLASSES, normalise, sung_count
from measures import (
    LOSS_METRICS,
    SONG_METRICS,
    Metric,
    distinct,
    estimate,
    mean,
    measure_song,
    quantile,
    ratio,
    spread,
    table_of,
    whole_lines,
)
from terminal import UserError
from training import checkpoint

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory, corpus):
    """训好的小模型：checkpoints、cache、copies 都在这个文件夹里。"""
    folder = tmp_path_factory.mktemp("evaluate")
    argv = [*TINY, "--lyrics_dir", str(corpus), "--checkpoint_dir", str(folder / "checkpoints")]
    argv += ["--cache_dir", str(folder / "cache"), "--bpe_model_prefix", str(folder / "bpe"), "--max_seq_len", "48"]
    assert train.main(argv) == 0
    return folder


@pytest.fixture
def measure(place, capsys, tmp_path):
    """measure(参数…) → (表的各行 {项目: 各格}, JSON, 标准错误)。"""

    def call(*argv: str):
        capsys.readouterr()
        fixed = ["--checkpoint", str(place / "checkpoints/best.pt"), "--copy_index", str(place / "copies")]
        fixed += ["--device", "cpu", "--json", str(tmp_path / "e.json")]
        if argv[0] in forms.PARTS:  # forms.py 的一部分
            assert forms.main([argv[0], *fixed, *argv[1:]]) == 0
        else:
            assert evaluate.main([*fixed, *argv]) == 0
        out, err = capsys.readouterr()
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()]
        contents = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
        return {name: cells for name, *cells in lines}, contents, err

    return call


# ---- 指标 ----


def copies_of(folder: Path, songs: list[str], own: int) -> CopyIndex:
    CopyIndex.build(songs, songs, folder / "index", "f", own)
    return CopyIndex.load(folder / "index", "f")


def test_a_song_measured_by_hand(tmp_path):
    """四行：月、雪、夜（乜斜）与 风（中东）；一行照搬训练集，前两行照搬留出的歌。"""
    lines = ["今夜的明月", "远山有雪", "吹过一阵风", "今夜的长夜"]
    training = ["听见歌声吹过一阵风 停了", "远山有人"]
    copies = copies_of(tmp_path, [*training, "今夜的明月远山有雪"], own=2)
    found = measure_song(lines, True, {"吹过一阵风"}, copies)
    assert found["lines"] == 4
    assert found["dominant"] == 3
    assert (found["pairs"], found["rhymed_pairs"]) == (3, 1)
    assert (found["characters"], found["squares"]) == (19, 25 + 16 + 25 + 25)
    assert found["known"] == 1
    assert found["copied"] == 5  # 留出的歌不算
    assert found["ended"] is True
    assert math.isnan(found["distinct_1"])  # 不足 50 字
    assert found["repeated_4"] == 0.0


def test_repeats_and_distinct(tmp_path):
    """distinct-n（Li 等 2016）：不同的 n 元 / 全部 n 元；只看前 50 字。"""
    assert distinct("天地天地", 1) == 2 / 4
    assert distinct("天地天地", 2) == 2 / 3
    assert math.isnan(distinct("天", 2))
    copies = copies_of(tmp_path, ["别的歌"], own=1)
    found = measure_song(["天地玄黄"] * 2, False, set(), copies)
    assert found["repeated_4"] == pytest.approx(1 / 5)  # 5 个片段里有 4 种
    opening = [chr(0x4E00 + number) for number in range(50)]
    found = measure_song(["".join(opening), opening[0] * 30], False, set(), copies)
    assert (found["distinct_1"], found["distinct_2"]) == (1.0, 1.0)


def test_a_cut_line_does_not_count():
    """截断的最后一行不计；只有一行时仍算；没有字的行不算。"""
    assert whole_lines("春风\n秋雨\n半", False) == ["春风", "秋雨"]
    assert whole_lines("春风\n秋雨\n半", True) == ["春风", "秋雨", "半"]
    assert whole_lines("半", False) == ["半"]
    assert whole_lines("春风\n……\n\n秋雨", True) == ["春风", "秋雨"]
    assert whole_lines("", True) == []


def test_figures_over_songs():
    """和之比、平均、百分位、标准差；没有可除的是 nan。"""
    columns = table_of([{"a": 1, "b": 2, "c": math.nan}, {"a": 2, "b": 2, "c": 4.0}, {"a": 9, "b": 0, "c": 2.0}])
    assert ratio("a", "b")(columns) == 3.0
    assert mean("c")(columns) == 3.0
    assert quantile("a", 0.5)(columns) == 2.0
    nothing = table_of([{"a": 1, "b": 0, "c": math.nan}])
    assert math.isnan(ratio("a", "b")(nothing))
    assert math.isnan(mean("c")(nothing))
    lines = table_of([{"lines": 2, "characters": 12, "squares": 74}, {"lines": 1, "characters": 9, "squares": 81}])
    assert spread(lines) == pytest.approx(np.std([5, 7, 9]))


def test_the_interval_is_the_bootstrap_of_songs():
    """平均值的自助区间接近 ±1.96 个标准误；重测相同；一首歌没有区间。"""
    values = np.random.default_rng(1).normal(10, 2, 400)
    value, low, high = estimate(Metric("", "", mean("x")), {"x": values})
    error = values.std() / 20
    assert value == pytest.approx(values.mean())
    assert low == pytest.approx(value - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(value + 1.96 * error, abs=0.3 * error)
    assert estimate(Metric("", "", mean("x")), {"x": values}) == (value, low, high)
    assert estimate(Metric("", "", mean("x")), {"x": np.array([3.0])}) == (3.0, None, None)


def test_independent_reading_of_rhyme_and_length():
    """另写的韵母表与 lyrics 的相同；整行注音；字数的算法也相同。"""
    assert {final: name for name, finals in RHYME_CLASSES.items() for final in finals.split()} == FINALS
    assert final_class("江上一轮明月。") == "乜斜"
    assert final_class("一起快乐") == "梭坡"  # 不是音乐的乐
    assert final_class("baby") is None
    assert final_class("……") is None
    for line in ("春风 又绿", "say hello 世界", "1999 年，下雪", "啊！", ""):
        assert character_count(line) == sung_count(line)


def test_rhymes_as_asked():
    a, b = "明月", "清风"
    assert rhymes_kept([a, "白雪", b, "长夜"], "AABA", "auto") == [True] * 4
    assert rhymes_kept([a, b, b, "长夜"], "AABA", "auto") == [True, False, True, True]
    assert rhymes_kept([a, "白雪", "长夜", "长夜"], "AABA", "auto") == [True, True, False, True]  # B 不得与 A 同韵
    assert rhymes_kept([a, b, "白雪", "天空"], "ABAB", "auto") == [True] * 4
    assert rhymes_kept([a, "白雪"], "AB", "auto") == [True, False]
    assert rhymes_kept([a, b], "AX", "auto") == [True, True]
    assert rhymes_kept([a, b], "A", "中东") == [False, True]
    assert rhymes_kept(["ok", a], "A", "auto") == [False, True]


def test_copies_found_by_plain_search():
    assert copied_beyond("我说 春风又绿江南岸", 6, "0春风又绿江南岸0")
    assert not copied_beyond("我说 春风又绿江南岸", 7, "0春风又绿江南岸0")
    assert not copied_beyond("春风", 6, "春风又绿")


def test_songs_of_a_stream(place):
    """词元流 → 歌：歌名歌手在、正文原样。"""
    tokenizer = checkpoint.restore(checkpoint.load(place / "checkpoints/best.pt"), place)[1]
    ids = [*tokenizer.song("今夜\n风", "长街", "少年"), tokenizer.eos_id, *tokenizer.song("花"), tokenizer.eos_id]
    found = list(evaluate.decode_songs(np.array(ids, dtype=np.uint16), tokenizer))
    assert found == [("长街", "少年", "今夜\n风"), ("", "", "花")]


# ---- 从头到尾 ----


def test_one_command_one_table(measure, place):
    """默认的表：损失与 train.py 的相同；每项两边都有；同样的种子结果相同。"""
    table, contents, _ = measure("--songs", "6", "--max_tokens", "30")
    names = [metric.name for metric in LOSS_METRICS + SONG_METRICS]
    assert list(table) == ["项目", "---", *names]
    assert table["项目"] == ["模型", "真人"]
    saved = checkpoint.load(place / "checkpoints/best.pt")
    results = contents["results"]
    assert results["比特/字"]["模型"][0] == pytest.approx(saved["val_bpc"], rel=2e-3)  # 训练时是 bf16
    assert results["留出的损失（nat/词元）"]["模型"][0] == pytest.approx(saved["val_loss"], rel=2e-3)
    assert all(set(results[metric.name]) == {"模型", "真人"} for metric in SONG_METRICS)
    assert results["每行字数：平均"]["真人"][0] > 4
    assert len(contents["songs"]["songs"]) == 6
    again = measure("--songs", "6", "--max_tokens", "30")[1]
    assert again["results"] == results
    assert again["songs"] == contents["songs"]


def test_human_songs_are_cut_and_measured_after_their_first_line(measure, corpus):
    """真人的一边：首行之后的各行；写得完的算收尾。"""
    results = measure("--only", "songs", "--songs", "2", "--max_tokens", "500")[1]["results"]
    assert results["以 </s> 收尾"]["真人"][0] == 1.0
    assert 1 < results["与训练集最长的相同（字）：中位数"]["真人"][0] < 40  # 只与训练的歌比，自己不算
    assert 5 <= results["每行字数：平均"]["真人"][0] <= 8
    results = measure("--only", "songs", "--songs", "2", "--max_tokens", "10")[1]["results"]
    assert results["以 </s> 收尾"]["真人"][0] == 0.0


def test_form_is_kept_and_its_perplexity_stands_beside_free_text(measure):
    table, contents, _ = measure("form", "--songs", "3", "--candidates", "3", "--max_tokens", "40")
    assert table["项目"] == ["自由写", "1 稿", "3 稿"]
    results = contents["results"]
    for side in ("1 稿", "3 稿"):
        assert results["行数、行长合乎要求的行"][side][0] == 1.0
        assert results["押韵合乎要求的行"][side][0] == 1.0
    perplexities = results["困惑度（每词元，不加约束的模型）"]
    assert results["困惑度与自由写之比"]["3 稿"][0] == perplexities["3 稿"][0] / perplexities["自由写"][0]
    assert [len(song.split("\n")) for song in contents["songs"]["3 稿"]] == [8, 8, 8]


def test_perplexity_counts_what_it_says(place):
    """重新分词、含换行、不计头：与逐个词元算的相同；长过上下文的分段，空的不计。"""
    options = {flag.name: flag.default for flag in evaluate.FLAGS}
    options |= {"checkpoint": place / "checkpoints/best.pt", "device": "cpu", "copy_index": place / "copies"}
    subject = evaluate.load(options)
    length, long = subject.model.config.max_seq_len, "今夜我在风里等你\n" * 30
    texts = ["今夜我\n等你", "", long]
    found = forms.text_nats(subject, texts)
    for text, nats, tokens in zip(texts, found["nats"], found["tokens"], strict=True):
        ids = torch.tensor(subject.tokenizer.song(text))
        expected = 0.0
        for place_ in range(1, len(ids) - 1):
            start = place_ // length * length
            logits = subject.model(ids[None, start : place_ + 1])[0, -1]
            expected -= torch.log_softmax(logits, dim=-1)[ids[place_ + 1]].item()
        assert nats == pytest.approx(expected, rel=1e-4)
        assert tokens == len(subject.tokenizer.encode(text))
    assert len(subject.tokenizer.song(long)) > 2 * length


def test_a_form_that_cannot_be_written_counts_as_missed(measure, monkeypatch):
    """写不出来的一首算没有守住，而不是不算。"""

    def write(self, composer, max_tokens=None):
        raise LyricsError("没有可用的字")
        yield

    monkeypatch.setattr(SongPlan, "write", write)
    _, contents, err = measure("form", "--songs", "2", "--max_tokens", "20")
    assert contents["results"]["行数、行长合乎要求的行"]["8 稿"][0] == 0.0
    assert "没有写成" in err


def test_acrostics_are_exact(measure):
    table, contents, _ = measure("acrostic", "--songs", "5")
    assert table["藏头分毫不差"] == ["100.0%（100.0%–100.0%）"]
    heads = ["".join(line[0] for line in song.split("\n")) for song in contents["songs"]["acrostic"]]
    assert len(heads) == 5
    assert all(4 <= len(head) <= 8 for head in heads)


def test_copies_stay_within_the_limit(measure):
    """上限之下没有超过的；不限的一边有，查的是真的。"""
    _, contents, _ = measure("copy", "--songs", "4", "--max_copy", "1", "--max_tokens", "30")
    name = "有超过 1 字与语料相同的歌"
    assert contents["results"][name]["不限"][0] > 0
    assert contents["results"][name]["--max_copy 1"] == [0.0, 0.0, 0.0]
    assert contents["results"]["最长的相同（字）：最多"]["--max_copy 1"][0] == 1.0


def test_the_index_is_built_once_and_again_when_the_corpus_changes(measure, place, corpus, tmp_path):
    """索引只在需要时建；inference 认得它；语料变了就重建，也说与检查点训练时的不同。"""
    shutil.rmtree(place / "copies", ignore_errors=True)
    assert "已建照抄索引" in measure("--only", "index")[2]
    assert "已建照抄索引" not in measure("--only", "index")[2]
    tokenizer = checkpoint.restore(checkpoint.load(place / "checkpoints/best.pt"), place)[1]
    copies = CopyIndex.load(place / "copies", tokenizer.fingerprint)
    song = json.loads((corpus / "songs0.json").read_text(encoding="utf-8"))[0]
    assert copies.longest(normalise("".join(song["lyric"]))).length == len("".join(song["lyric"]))
    labels = {copies.label(number) for number in range(30)}
    assert any(label.startswith("《歌") and "》人" in label for label in labels)
    assert any(label.startswith("「") for label in labels)
    other = write_corpus(tmp_path / "more", 44)
    err = measure("--only", "index", "--lyrics_dir", str(other), "--cache_dir", str(tmp_path / "cache"))[2]
    assert "已建照抄索引" in err
    assert "训练时的不同" in err


def test_a_checkpoint_from_another_machine(place, tmp_path, monkeypatch, capsys):
    """检查点里记的文件夹不在这台机器上：说一句，改用 config.py 的。"""
    contents = checkpoint.load(place / "checkpoints/best.pt")
    contents["config"] |= {"lyrics_dir": str(tmp_path / "gone"), "cache_dir": str(tmp_path / "away"), "eval_iters": "x"}
    checkpoint.save(tmp_path / "best.pt", contents)
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))
    assert evaluate.main(["--checkpoint", str(tmp_path / "best.pt"), "--only", "loss", "--device", "cpu"]) == 0
    err = capsys.readouterr().err
    assert f"gone 不在，改用 {REPOSITORY / 'ChineseLyrics'}" in err
    assert (tmp_path / "cache" / "val.bin").exists()


def test_the_picture(measure, tmp_path):
    """三幅并列的图；只量损失时只有曲线。"""
    pytest.importorskip("matplotlib")
    widths = {}
    for only in ("loss", "songs"):
        path = tmp_path / f"{only}.png"
        measure("--only", only, "--songs", "2", "--max_tokens", "20", "--plot", str(path))
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        widths[only] = int.from_bytes(content[16:20], "big")
    assert widths["songs"] == 3 * widths["loss"] > 0


def test_loss_curves_skip_what_they_cannot_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"iter": 1, "train_loss": 3.5}', "半行{", '{"iter": 2, "val_loss": 3.0}']
    lines += ['{"iter": 3, "val_loss": null}', "[1]", '{"train_loss": 1.0}']
    path.write_text("\n".join(lines), encoding="utf-8")
    assert evaluate.loss_curves(path) == {"train_loss": [(1, 3.5)], "val_loss": [(2, 3.0)]}
    assert evaluate.loss_curves(tmp_path / "none") == {"train_loss": [], "val_loss": []}


# ---- 错误 ----


def test_errors_are_one_line(place, tmp_path, monkeypatch):
    """没有检查点、没有语料、存不了、画不了：开始写歌之前就说。"""
    best = ["--checkpoint", str(place / "checkpoints/best.pt"), "--device", "cpu"]
    cases = [
        (["--checkpoint", str(tmp_path / "none.pt")], UserError, "找不到检查点"),
        ([*best, "--lyrics_dir", str(tmp_path / "none")], CorpusError, "歌词文件夹不存在"),
        ([*best, "--json", str(tmp_path / "none/e.json")], UserError, "文件夹不存在"),
        ([*best, "--plot", str(tmp_path / "e.pdf")], UserError, "png"),
        ([*best, "--only", "rhyme"], UserError, "--only rhyme"),
    ]
    for argv, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            evaluate.main(argv)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install -r requirements-plot.txt"):
        evaluate.main([*best, "--plot", str(tmp_path / "e.png")])


def test_from_the_command_line(tmp_path):
    """退出码 2，一行中文，没有回溯。"""
    command = [sys.executable, "evaluate.py", "--checkpoint", str(tmp_path / "none.pt")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("错误：找不到检查点")
    assert len(done.stderr.splitlines()) == 1


def test_another_corpus_is_noticed_for_best_pt():
    """best.pt 也记着语料：文件变了、只是清洗变了、早先没有记，各有说法。"""
    now = {"files": "f", "cleaning": CLEANING_VERSION}
    assert evaluate.corpus_difference(now, "f") == ""
    assert "内容与检查点训练时的不同" in evaluate.corpus_difference(now, "g")
    assert "清洗规则" in evaluate.corpus_difference({**now, "cleaning": 1}, "f")
    assert evaluate.corpus_difference(None, "f") == ""
    assert "清洗规则" in evaluate.corpus_difference("old", "f")
