"""对话：命令、提示、Ctrl-C、存盘，与真正的终端。"""

import codecs
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_writer import (
    ENVIRONMENT,
    converse,
    favour_ending,
    settings,
    stop_after,
)
from tiny import REPOSITORY

import generation
import inference
from lyrics.form import LyricsError
from lyrics.sound import lines_of, sung_count
from terminal import UserError


def test_a_line_is_a_prompt(talk, write):
    """输入开头就写一首，与命令行写的相同；空行什么也不做。"""
    assert talk("我在") == write("--prompt", "我在", "--seed", "1", "--max_tokens", "20")[0]
    assert talk("") == ""


def test_help_names_every_command(talk):
    """/help 说到每条命令，写到标准错误。"""
    assert talk("/help") == ""
    for command in [*talk.conversation.commands, "/quit", "Ctrl-C", "Ctrl-D"]:
        assert command in talk.err


def test_set_changes_the_next_song(talk, write):
    """/set 改一项，下一首就用它；/set 单独列出全部。"""
    talk("/set temperature 0")
    assert talk("我在") == write("--prompt", "我在", "--temperature", "0", "--max_tokens", "20")[0]
    talk("/set temperature 0.8")
    talk("/set max_tokens 5")
    talk("/set title 月亮")
    assert (talk.conversation.settings.temperature, talk.conversation.settings.max_tokens) == (0.8, 5)
    expected = write("--prompt", "我在", "--temperature", "0.8", "--title", "月亮", "--seed", "1", "--max_tokens", "5")[
        0
    ]
    assert talk("我在") == expected
    talk("/set title none")
    talk("/set seed none")
    assert talk.conversation.settings.title is None
    assert talk.conversation.settings.seed is None
    assert talk("/set") == ""
    for flag in inference.SONG_FLAGS:
        assert flag.name in talk.err
    assert "0.8" in talk.err


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("/set temperture 1", "temperature"),
        ("/set 温度 1", "/set"),
        ("/set top_p 1.5", "top_p"),
        ("/set temperature", "temperature"),
        ("/set temperature none", "temperature"),
        ("/set max_tokens 很多", "max_tokens"),
        ("/agian", "/again"),
        ("/qiut", "/quit"),
        ("/乱写", "/help"),
        ("/again", "还没有"),
        ("/more", "还没有"),
        ("/save 歌.txt", "还没有"),
        ("/rewrite 1", "还没有"),
        ("/lock 1", "还没有"),
        ("/save", "/save"),
        ("我\udce4", "编码"),
    ],
)
def test_mistakes_are_answered_with_a_hint(talk, line, named):
    """打错的命令、设置、值：一句话，指出最近的；设置不变。"""
    before = settings(max_tokens=20)
    message = talk.error(line)
    assert named in message
    assert "\n" not in message
    assert talk.conversation.settings == before


def test_again_writes_another_song_from_the_same_prompt(talk):
    """/again：同样的开头，另一首；种子固定时也换一首，且不与批里的其他首重复。"""
    first = talk("我在")
    again = talk("/again")
    third = talk("/again")
    assert again.startswith("我在")
    assert len({first, again, third}) == 3
    talk("/set num_samples 2")
    talk("/set seed 10")
    batches = [talk("我在").split("\n\n我在"), talk("/again").split("\n\n我在")]
    assert len({song.strip() for batch in batches for song in batch}) >= 4


def test_more_continues_the_same_song(talk, writer):
    """/more 接着同一首往下写：屏幕上的连起来就是整首；可以一直写到超过 max_seq_len。"""
    shown = talk("我在").removesuffix("\n")
    for _ in range(4):
        shown += talk("/more").removesuffix("\n")
    (song,) = writer.songs
    assert shown == song.text
    assert len(song.tokens) == len(writer.tokenizer.song("我在")) + 5 * 20


def test_more_loses_no_half_written_character(talk, writer, monkeypatch):
    """一个字的字节写到一半被 max_tokens 截断，/more 之后这个字完整出现。"""
    byte_ids = {piece[0]: i for i, piece in enumerate(writer.tokenizer.token_bytes) if len(piece) == 1 and i > 6}
    remaining = [byte_ids[byte] for byte in "龘龘".encode()]

    def fake(*_, **__):
        for _ in range(2):
            yield [(0, remaining.pop(0))]

    monkeypatch.setattr(generation, "generate", fake)
    talk.conversation.settings.max_tokens = 2
    shown = talk("我").removesuffix("\n")
    for _ in range(2):
        shown += talk("/more").removesuffix("\n")
    assert not remaining
    assert writer.songs[0].text == "我龘龘"
    assert shown == "我龘龘"


def test_more_after_an_ended_song_starts_a_new_line(talk, writer, monkeypatch):
    """自己收尾的歌，/more 另起一行接着写。"""
    favour_ending(writer, monkeypatch, 50.0)
    shown = talk("我在").removesuffix("\n")
    assert shown == "我在"
    assert writer.songs[0].ended
    assert "/more" not in talk.err
    monkeypatch.undo()
    shown += talk("/more").removesuffix("\n")
    assert shown == writer.songs[0].text
    assert shown.startswith("我在\n")
    assert len(shown) > 10
    assert "/more" in talk.err


def test_save_appends_exactly_what_was_shown(talk, tmp_path):
    """/save 添到文件末尾，一字不差，不覆盖已有的；文件名可以含空格。"""
    path = tmp_path / "我的 歌.txt"
    path.write_text("旧的\n\n", encoding="utf-8")
    first = talk("我在")
    first = first.removesuffix("\n") + talk("/more")
    talk(f"/save {path}")
    assert str(path) in talk.err
    talk("/set num_samples 2")
    second = talk("故乡")
    talk(f"/save {path}")
    assert path.read_bytes().decode() == f"旧的\n\n{first}\n{second}\n"


def test_save_to_an_impossible_place(talk, tmp_path):
    """写不进去：一句话，写明文件，对话继续。"""
    talk("我在")
    for path in (tmp_path / "none" / "歌.txt", tmp_path):
        message = talk.error(f"/save {path}")
        assert str(path) in message
        assert "\n" not in message


@pytest.mark.parametrize("end", ["/quit", " /quit ", EOFError])
def test_leaving(talk, monkeypatch, end):
    """/quit 与 Ctrl-D 离开；空行上的 Ctrl-C 不离开。"""
    converse(talk.conversation, monkeypatch, KeyboardInterrupt, "", "/help", end)


def test_ctrl_c_stops_the_song_and_keeps_what_was_written(talk, writer, monkeypatch, capsys, tmp_path):
    """Ctrl-C 停下这一首、回到提示符；已写的可以 /more 接着写，/save 存下。"""
    stop_after(monkeypatch, 8)
    path = tmp_path / "歌.txt"
    converse(talk.conversation, monkeypatch, "我在", "/more", f"/save {path}", "/quit")
    out, err = capsys.readouterr()
    assert "已停下" in err
    (song,) = writer.songs
    assert len(song.tokens) == len(writer.tokenizer.song("我在")) + 8 + 20
    partial = writer.tokenizer.decode(song.tokens[len(writer.tokenizer.song("我在")) : -20])
    assert out.startswith(f"我在{partial}\n")
    assert path.read_text(encoding="utf-8") == song.text + "\n\n"


def test_mistakes_do_not_end_the_conversation(talk, monkeypatch, capsys):
    """出错后说一句，继续读下一行。"""
    converse(talk.conversation, monkeypatch, "/agian", "/set temperture 1", "我在", "/quit")
    out, err = capsys.readouterr()
    assert "/again" in err
    assert "temperature" in err
    assert out.startswith("我在")


class Pseudoterminal:
    """在伪终端里运行 inference.py，像人一样打字、看屏幕。"""

    def __init__(self, *argv: str) -> None:
        import pty

        self.master, slave = pty.openpty()
        command = [sys.executable, str(REPOSITORY / "inference.py"), *argv]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env={**ENVIRONMENT, "TERM": "xterm"}, preexec_fn=self._own
        )
        os.close(slave)
        self.seen = ""
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # 一次读到的可能是半个字

    @staticmethod
    def _own() -> None:
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # 使 Ctrl-C 变成信号

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str, press: str = "", seconds: float = 30) -> str:
        """等到屏幕上出现 text；返回到它为止新出现的文字。press：等待时每两秒按一次的键。"""
        deadline = time.monotonic() + seconds
        next_press = time.monotonic() + 0.3  # 提示符显示后，readline 还要一会儿才开始等按键
        while text not in self.seen:
            if press and time.monotonic() > next_press:
                self.type(press)
                next_press += 2
            ready = select.select([self.master], [], [], 0.2)[0]
            if ready:
                try:
                    self.seen += self.decoder.decode(os.read(self.master, 65536))
                except OSError:  # 进程已结束
                    break
            assert time.monotonic() < deadline, f"没有等到 {text!r}：{self.seen[-500:]!r}"
        before, found, self.seen = self.seen.partition(text)
        assert found, f"进程结束时没有 {text!r}：{before[-500:]!r}"
        return before + found

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows 没有伪终端")
def test_a_conversation_in_a_terminal(trained):
    """真正的终端：提示符、命令、Ctrl-C 停下一首、Ctrl-D 以 0 退出。"""
    flags = f"--checkpoint {trained} --device cpu --dtype fp32 --max_tokens 10000000".split()
    terminal = Pseudoterminal(*flags)
    try:
        terminal.expect("歌词> ")
        terminal.type("/agian\n")
        terminal.expect("是否指 /again")
        terminal.expect("歌词> ")
        terminal.type("我在风里\n")
        terminal.expect("种子")
        terminal.expect("我在风里")
        terminal.expect("已停下", press="\x03")
        terminal.expect("歌词> ")
        terminal.expect("歌词> ", press="\x03")  # 空行上的 Ctrl-C 不离开
        terminal.type("/set temperature 0.8\n")
        terminal.expect("temperature = 0.8")
        terminal.expect("歌词> ")
        time.sleep(0.3)
        terminal.type("\x04")
        assert terminal.process.wait(timeout=20) == 0
        assert "Traceback" not in terminal.seen
    finally:
        terminal.close()


def test_rhymes_lists_characters(talk):
    """/rhymes：同韵的常用字，在词表里；不是汉字的说一句。"""
    assert talk("/rhymes 光") == ""
    assert talk.err.startswith("江阳辙")
    assert set(talk.err.splitlines()[1].split()) == {"亮", "乡", "唱"}
    for argument in ("", " abc", " ，"):
        with pytest.raises(UserError, match="汉字"):
            talk.conversation.answer(f"/rhymes{argument}")


@pytest.mark.parametrize(
    "message",
    ["[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory", "MPS backend out of memory"],
)
def test_out_of_memory_keeps_the_song(talk, monkeypatch, message, trained):
    """内存不足：命令行一句话；对话里说一句，歌还在。"""
    talk("我在")
    before = talk.conversation.writer.songs[0].text

    def fails(*_, **__):
        raise RuntimeError(message)

    monkeypatch.setattr(generation, "generate", fails)
    lines = iter(["/more"])
    monkeypatch.setattr(inference, "_read_line", lambda prompt: next(lines))
    with pytest.raises(StopIteration):
        talk.conversation.run()
    assert talk.conversation.writer.songs[0].text == before
    with pytest.raises(UserError, match="内存"):
        inference.main(["--checkpoint", str(trained), "--prompt", "我", "--device", "cpu"])


# ---- 填词 ----

TUNE = Path(__file__).with_name("tune.txt")


def test_like_again_and_rewrite_keep_the_form(talk, monkeypatch):
    """/like 之后从头写、改一项再写、改一行：字数、分节、回来的一行都在；与它同名的一行一起换。"""
    talk.conversation.settings.max_tokens = None
    talk(f"/like {TUNE}")
    assert "主歌 | 2-2 |  | A" in talk.err
    for line in ("/again", "/set temperature 0.7", "/again"):
        talk(line)
    (song,) = talk.conversation.writer.songs

    def shape() -> tuple[list[int], bool, int]:
        lines = lines_of(song.text)
        return [sung_count(line) for line in lines], lines[0] == lines[2], song.text.count("\n\n")

    assert shape() == ([4] * 4, True, 1)
    before = lines_of(song.text)
    monkeypatch.setattr(inference, "_read_line", lambda prompt: "1")
    talk("/rewrite 3")
    after = lines_of(song.text)
    assert shape() == ([4] * 4, True, 1)
    assert after[2] != before[2]
    assert (after[1], after[3]) == (before[1], before[3])


def test_like_and_cipai_replace_each_other(talk):
    """换一个样子，前一个就不用了；none 是都不用；错的说最相近的，设置不变。"""
    talk.conversation.settings.max_tokens = None
    talk("/cipai 忆江南")
    assert talk.conversation.settings.cipai == "忆江南"
    talk(f"/like {TUNE}")
    assert (talk.conversation.settings.cipai, talk.conversation.settings.like) == (None, TUNE)
    with pytest.raises(LyricsError, match="是否指 忆江南"):
        talk.conversation.answer("/cipai 忆江男")
    with pytest.raises(LyricsError, match="读不了"):
        talk.conversation.answer("/like 没有的文件")
    assert talk.conversation.settings.like == TUNE
    talk("/like none")
    assert not talk.conversation.settings.form().given
    talk("/cipai")
    assert len(talk.err.split("\n")) > 40
    assert "如梦令" in talk.err
