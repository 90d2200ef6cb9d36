"""制作信息、声明、段落标记：该去的去，唱的一行不少。"""

import pytest
from credits_score import FOLDER, score

from corpus.cleaning import RawSong, clean_song, clean_text
from corpus.credits import find_credits

SUNG = """
未经你的同意我就爱上你
Open your heart: let me in
Special love: so special
钢琴在角落轻轻地唱：别走
录音机里：旧时的光
人声鼎沸：谁在回头
制作：一个梦
鼓：咚咚咚
文：你好
String of lights: gone
""".strip().split("\n")

TRADITIONAL = """作詞：甲 作曲：乙
編曲：丙
製作人：丁
監製：戊
錄音：己
詞：甲
【間奏】
風吹過舊街口的第一盞燈
燈火落滿江南岸的夜晚
對唱：今夜的風
更多更詳盡歌詞 在 某歌詞網
未經許可 不得翻唱"""


@pytest.mark.parametrize("name", ["seen", "unseen"])
def test_collected_lines(name):
    """收集的几千行：制作信息去掉 95% 以上，唱词一行不误去。"""
    removed, total, sung, wrong = score(FOLDER / f"{name}.jsonl")
    assert wrong == []
    assert sung > 500
    assert total["credit"] > 300
    assert removed["credit"] >= 0.95 * total["credit"]
    assert removed.total() >= 0.9 * total.total()


@pytest.mark.parametrize("line", SUNG)
def test_sung_lines_stay(line):
    """名目像而值是一句话的，不论在开头、中间、结尾，都是唱词。"""
    verse = ["今夜我在风里等你", "山高水远路灯下"]
    for lines in ([line, *verse], [verse[0], line, verse[1]], [*verse, line]):
        assert clean_text("\n".join(lines)).split("\n") == lines


def test_sung_lines_stay_together():
    assert clean_text("\n".join(SUNG)).split("\n") == SUNG


def test_traditional_characters():
    """繁体的一页与简体的一样干净。"""
    assert clean_text(TRADITIONAL) == "風吹過舊街口的第一盞燈\n燈火落滿江南岸的夜晚\n今夜的風"
    assert clean_text("此歌曲為沒有填詞的純音樂，請您欣賞") == ""


def test_unknown_roles_go_with_their_block():
    """名目没见过的，夹在制作信息里就随着去掉；单独一行不动。"""
    lines = ["作词：王小明", "竖琴：丁小丁", "打杂：己小己", "混音：庚小庚", "今夜我在风里", "打杂：己小己"]
    assert sorted(find_credits(lines[:5])) == [0, 1, 2, 3]
    assert find_credits(lines[4:]) == {}


def test_conceit_of_a_film_crew_is_sung():
    """一串「名目：一句话」是唱词，里面像名字的一两行也留下。"""
    lines = ["导演：命运", "编剧：一时糊涂的春天", "主演：你和我 还有那把伞", "监制：岁月 它从来不喊停"]
    assert find_credits(["这一部电影终于亮了灯", *lines, "字幕滚完了 我还不肯离席"]) == {}


def test_value_on_the_next_line():
    lines = ["作词：", "王某石", "作曲：", "王某石", "旧公寓的电梯又坏了"]
    assert sorted(find_credits(lines)) == [0, 1, 2, 3]


def test_title_line_above_the_credits():
    """「歌名 - 歌手」在制作信息上面时去掉；没有制作信息时留下。"""
    assert sorted(find_credits(["纸飞机 - 何小北", "词：何小北", "纸飞机飞过窗"])) == [0, 1]
    assert find_credits(["你 - 我 - 他", "雨落下来分不均匀"]) == {}
    dropped = []
    song = clean_song(RawSong("纸飞机", "", "纸飞机\n作词：何小北\n飞过三年级的窗\n你画的太阳还没有晒干", ""), dropped)
    assert song.text == "飞过三年级的窗\n你画的太阳还没有晒干"
    assert [(line.line, line.reason) for line in dropped] == [("纸飞机", "歌名行"), ("作词：何小北", "制作信息")]


def test_keys_do_not_backtrack():
    """由名目的词反复拼成的长名目，不会让切词卡住。"""
    for key in ("作词" * 29 + "我", "词曲编唱" * 14 + "x", "一" * 59, "a " * 29 + "z", "作词作曲" * 1000):
        assert isinstance(clean_text(f"{key}：甲\n今夜我在风里"), str)


@pytest.mark.parametrize(
    "line",
    [
        "春风吹过旧城墙",
        "2020年写于北京的地下室",
        "24小时内删除我的记忆",
        "这首歌由我演唱",
        "感谢你的聆听",
    ],
)
def test_more_sung_lines_stay(line):
    """以歌名开头的第一行、像声明的唱词，都留下。"""
    text = f"{line}\n词：阿木\n我在桥头等你归灯火"
    assert clean_song(RawSong("春风", "", text, "")).text == f"{line}\n我在桥头等你归灯火"
