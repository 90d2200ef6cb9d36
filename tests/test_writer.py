"""写歌的房间：边写边送、收尾、min_tokens、候选、控制词元。"""

import json

import pytest
import torch
from small_writer import counts, favour_ending, settings, sung_lines

import generation
import tokenizer as tokenizer_module
from inference import Printer
from lyrics.sound import lines_of, sung_count
from training import checkpoint
from writing import kernels, loading
from writing.kernels import fastest_dtype
from writing.stats import Stats


def test_streamed_pieces_are_the_song(writer, write):
    """边写边送的文字连起来就是整首；从不出现半个字，也不缺字。"""
    pieces = []
    (song,) = writer.write("我在", settings(max_tokens=300, top_p=1.0), 1, pieces.append)
    assert len(pieces) > 50
    assert "我在" + "".join(pieces) == song.text
    assert "\ufffd" not in song.text
    prompt_length = len(writer.tokenizer.song("我在"))
    assert song.text == "我在" + writer.tokenizer.decode(song.tokens[prompt_length:])
    assert any(len(writer.tokenizer.token_bytes[token]) == 1 for token in song.tokens[prompt_length:])
    out, _ = write("--prompt", "我在", "--seed", "1", "--max_tokens", "300", "--top_p", "1.0")
    assert out == song.text + "\n"


def test_a_character_written_in_bytes_is_shown_whole(writer, monkeypatch):
    """一个字分三个字节词元写出：到齐才送出；没写完的半个字不送出。"""
    byte_ids = {piece[0]: i for i, piece in enumerate(writer.tokenizer.token_bytes) if len(piece) == 1 and i > 6}
    ids = [byte_ids[byte] for byte in "龘龘".encode()]

    def fake(*_, **__):
        yield from ([(0, token)] for token in ids[:5])

    monkeypatch.setattr(generation, "generate", fake)
    pieces = []
    (song,) = writer.write("我", settings(), 1, pieces.append)
    assert pieces == ["龘"]
    assert song.text == "我龘"


def test_control_tokens_are_kept_away_by_the_ban_only(writer, monkeypatch):
    """上面的模型若不禁止，写的就是控制词元：所以上面的测试抓得住遗漏。"""
    never = set(writer.tokenizer.never_written)
    monkeypatch.setattr(tokenizer_module.Tokenizer, "never_written", property(lambda _: []))
    (song,) = writer.write("我", settings(), 2, lambda _: None)
    assert len(never & set(song.tokens)) >= 3


def test_a_song_may_end_by_itself(writer, monkeypatch):
    """写出 </s> 就停：ended 为真，</s> 不写出，也不占词元。"""
    favour_ending(writer, monkeypatch, 24.0)
    songs = writer.write("我", settings(num_samples=8, max_tokens=100), 1, lambda _: None)
    ended = [song for song in songs if song.ended]
    assert ended
    for song in songs:
        assert writer.tokenizer.eos_id not in song.tokens
        assert song.ended == (len(song.tokens) < 100 + len(writer.tokenizer.song("我")))


def test_min_tokens_holds_the_ending_back(write, writer, monkeypatch):
    """想立刻收尾的模型：写满 min_tokens 才许收尾。"""
    favour_ending(writer, monkeypatch, 60.0)
    for least in (0, 1, 17):
        (song,) = writer.write("我", settings(min_tokens=least), 1, lambda _: None)
        assert len(song.tokens) == least + len(writer.tokenizer.song("我"))
        assert song.ended
    writer.extend(song, settings(min_tokens=5), 1, lambda _: None)
    assert len(song.tokens) == 17 + len(writer.tokenizer.song("我")) + 1 + 5  # 换行与新的五个


def test_stats_of_a_song_without_tokens(writer, monkeypatch):
    """一个词元也没写成：没有的项是 null，不出错。"""
    favour_ending(writer, monkeypatch, 60.0)
    stats = Stats("fp32", 0.5)
    printer = Printer(writer, stats)
    with printer.around():
        writer.write("我", settings(), 1, lambda _: None)
    found = json.loads(stats.line(None))
    assert (found["tokens"], found["tokens_per_s"], found["first_token_s"]) == (0, None, None)


def test_auto_says_what_it_picked(trained, capsys, monkeypatch):
    """auto：有原生半精度的 CPU 用 int8，没有的用 fp32；显卡用它的半精度；选了什么写在标准错误里。"""
    for half, expected in ((torch.bfloat16, "int8"), (None, "fp32")):
        monkeypatch.setattr(loading, "native_half", lambda _, half=half: half)
        loaded = loading.load_writer(trained, "cpu", "auto")
        assert loaded.writer.model.head is not None
        assert f"{expected}（auto 选定）" in loaded.about
    monkeypatch.setattr(kernels, "_working", lambda *_: None)  # 没有 int8 算子的 torch
    assert fastest_dtype(torch.device("cpu"), torch.bfloat16) == "bf16"
    assert fastest_dtype(torch.device("cuda"), torch.float16) == "fp16"
    assert "auto" not in loading.load_writer(trained, "cpu", "bf16").about


def test_more_candidates_are_more_likely(writer):
    """每行多起几稿，模型自己更看好；不重复前面的行。"""

    def likelihood(song) -> float:
        logits = writer.model(torch.tensor([song.tokens[:-1]]))[0]
        found = torch.log_softmax(logits, -1).gather(-1, torch.tensor(song.tokens[1:])[:, None])
        return found[2:].mean().item()

    one, many = [
        [
            writer.write("我", settings(lines=3, line_chars="4", candidates=count), seed, lambda _: None)[0]
            for seed in range(5)
        ]
        for count in (1, 12)
    ]
    assert sum(map(likelihood, many)) > sum(map(likelihood, one))
    assert all(len(set(sung_lines(song.text))) == 3 for song in many)


def test_a_form_does_not_take_more_than_max_tokens_without_lines(writer):
    """没有行数：写满 max_tokens 个词元的那一行写完为止。"""
    (song,) = writer.write("我", settings(line_chars="4", max_tokens=30), 1, lambda _: None)
    assert set(counts(song.text)) == {4}
    assert not song.ended
    assert 30 <= len(song.tokens) <= 60


def test_more_finishes_a_stopped_song_first(writer):
    """写到一半停下的，先写满原来的行数。"""
    asked = settings(lines=6, line_chars="4")
    song = writer.start("", asked)[0]
    song.text = "我在风里\n你在故乡"
    writer.extend(song, asked, 1, lambda text: None)
    assert [sung_count(line) for line in lines_of(song.text)] == [4] * 6


@pytest.mark.parametrize("extra", [{"line_chars": "5"}, {"candidates": 2}])
def test_min_tokens_holds_line_by_line(trained, tokenizer, tmp_path, extra):
    """一行一行写时，总想收尾的模型，写满 min_tokens 之前也不收尾。"""
    contents = torch.load(trained, weights_only=True)
    contents["model"]["embedding.weight"][tokenizer.eos_id, 0] = 9.0
    checkpoint.save(tmp_path / "soon.pt", contents)
    writer = loading.load_writer(tmp_path / "soon.pt", "cpu", "fp32").writer
    lengths = {}
    for least in (0, 60):
        asked = settings(**extra, min_tokens=least, max_tokens=90)
        songs = [writer.write("我", asked, seed, lambda text: None)[0] for seed in range(4)]
        lengths[least] = [len(tokenizer.encode(song.text)) for song in songs]
        assert all(song.ended for song in songs)
    assert max(lengths[0]) < 30
    assert min(lengths[60]) >= 55


def test_control_characters_are_never_written(writer):
    """控制字符的字节与控制词元一样，从不写出。"""
    refused = {writer.tokenizer.token_bytes[index] for index in writer.tokenizer.control_characters}
    assert refused == {bytes([code]) for code in (*range(32), 127) if code != 10}
    (song,) = writer.write("我", settings(temperature=50.0, top_p=1.0, max_tokens=400), 3, lambda text: None)
    assert not [letter for letter in song.text if letter != "\n" and ord(letter) < 32]
