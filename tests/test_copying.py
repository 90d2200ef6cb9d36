"""语料的索引：没有就从检查点的语料建；语料不在、变了，说一句怎么办。"""

import json

import pytest
from small_writer import settings

from lyrics.form import LyricsError
from terminal import UserError
from writing.copying import index_of_checkpoint
from writing.loading import load_writer


def test_a_missing_index_is_built_from_the_corpus(run, corpus, tmp_path):
    """语料还在原处：建好，认得出里面的歌；歌换了，就说不是训练时的语料。"""
    _, _, folder = run("tuned", "--train_iters", "2")
    best = folder / "best.pt"
    tokenizer = load_writer(best, "cpu", "fp32").writer.tokenizer
    said: list[str] = []
    index = index_of_checkpoint(best, tokenizer, tmp_path / "copies", said.append, said.append)
    songs = json.loads(next(corpus.glob("*.json")).read_text(encoding="utf-8"))
    line = songs[0]["lyric"][0] if isinstance(songs[0]["lyric"], list) else songs[0]["lyric"].split("\n")[0]
    assert index.contains("".join(character for character in line if character.isalnum()))
    assert any("已建照抄索引" in message for message in said)
    assert any("排序" in message for message in said)  # 有进度

    added = corpus / "more.txt"
    added.write_text("新添的歌\n只有两行\n", encoding="utf-8")
    try:
        with pytest.raises(LyricsError, match="不是它训练时的语料"):
            index_of_checkpoint(best, tokenizer, tmp_path / "other", said.append, said.append)
    finally:
        added.unlink()


def test_setting_max_copy_finds_the_index(talk):
    """对话里 /set max_copy：要索引时才去找；找不到，设置不变。"""
    writer = talk.conversation.writer
    writer.copies, asked = None, []

    def find():
        asked.append(True)
        raise LyricsError("没有这个模型的语料索引")

    writer.find_copies = find
    talk("/set temperature 0.5")
    assert not asked
    with pytest.raises((LyricsError, UserError)):
        talk.conversation.answer("/set max_copy 4")
    assert asked
    assert talk.conversation.settings.max_copy == settings().max_copy
