"""句式的写法。"""

import pytest
from judged import form

from lyrics.form import Form, LyricsError


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Form()),
        ({"lines": 4}, Form(lines=4)),
        ({"line_chars": "7"}, Form(lengths=((7, 7),))),
        ({"line_chars": "5-9"}, Form(lengths=((5, 9),))),
        ({"line_chars": " 7，7, 5 – 6，7~8"}, Form(lengths=((7, 7), (7, 7), (5, 6), (7, 8)))),
        ({"rhyme": "auto"}, Form(rhyme="auto")),
        ({"rhyme": "江阳"}, Form(rhyme="江阳")),
        ({"scheme": "aaba"}, Form(rhyme="auto", scheme="AABA")),
        ({"scheme": "XAXA", "rhyme": "中东"}, Form(rhyme="中东", scheme="XAXA")),
        ({"acrostic": "春夏秋冬"}, Form(lines=4, acrostic="春夏秋冬")),
        ({"acrostic": "春夏", "lines": 4}, Form(lines=4, acrostic="春夏")),
        ({"structure": "主歌4 副歌2"}, Form(lines=6, sections=(("主歌", 4), ("副歌", 2)))),
        (
            {"structure": "主歌4 副歌2 副歌", "lines": 8},
            Form(lines=8, sections=(("主歌", 4), ("副歌", 2), ("副歌", 0))),
        ),
        (
            {"structure": "主歌2 副歌2", "acrostic": "春夏"},
            Form(lines=4, acrostic="春夏", sections=(("主歌", 2), ("副歌", 2))),
        ),
    ],
)
def test_make_form(options, expected):
    """每种写法，与几项同用。"""
    assert form(**options) == expected
    assert form(**options).given == bool(options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"line_chars": "0"}, "--line_chars"),
        ({"line_chars": "9-5"}, "9-5"),
        ({"line_chars": "7,,7"}, "--line_chars"),
        ({"line_chars": "7,七"}, "七"),
        ({"line_chars": "-3"}, "-3"),
        ({"line_chars": "1000"}, "1000"),
        ({"rhyme": "江洋"}, "是否指 江阳"),
        ({"rhyme": "qqq"}, "auto"),
        ({"scheme": "A1"}, "--rhyme_scheme"),
        ({"scheme": "押"}, "--rhyme_scheme"),
        ({"scheme": "A A"}, "--rhyme_scheme"),
        ({"acrostic": "春a"}, "--acrostic"),
        ({"acrostic": "春，夏"}, "--acrostic"),
        ({"acrostic": "春1"}, "--acrostic"),
        ({"acrostic": "春夏秋", "lines": 2}, "3 个字"),
        ({"acrostic": "春夏秋", "structure": "主歌2"}, "3 个字"),
        ({"acrostic": "春夏", "structure": "主歌2 主歌"}, "藏头"),
        ({"structure": "主歌4", "lines": 5}, "4 行"),
        ({"structure": "主歌"}, "主歌4"),
        ({"structure": "主歌4 副歌"}, "副歌4"),
        ({"structure": "主歌0"}, "主歌0"),
        ({"structure": "4"}, "--structure"),
        ({"structure": "主歌4副歌4"}, "--structure"),
        ({"structure": "主歌1000"}, "--structure"),
    ],
)
def test_make_form_errors(options, named):
    """写法有误：一行，指出是哪一项。"""
    with pytest.raises(LyricsError) as caught:
        form(**options)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
