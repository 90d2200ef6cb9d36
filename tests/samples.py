"""docs/samples.md：不挑的二十首，种子 1 到 20，每首旁边是另一个检查点用同样的设置写的。

python tests/samples.py models/lyrics-small.pt checkpoints/best.pt > docs/samples.md
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from writing.loading import load_writer  # noqa: E402
from writing.settings import SONG_FLAGS, Settings  # noqa: E402

DEFAULTS = Settings(**{flag.name: flag.default for flag in SONG_FLAGS})
MOST_LINES = 24  # 自由写的，页面上只放这么多行

# (开头, 与默认不同的设置)；种子是序号
PROMPTS: list[tuple[str, dict]] = [
    ("今夜我", {}),
    ("如果爱", {}),
    ("城市的灯", {}),
    ("妈妈", {}),
    ("我们在海边", {}),
    ("", {"title": "毕业那天"}),
    ("雨一直下", {"temperature": 0.8}),
    ("凌晨三点", {"temperature": 0.8}),
    ("", {"title": "西江月", "singer": "苏轼"}),
    ("明月", {"title": "水调歌头", "temperature": 0.8}),
    ("春风", {}),
    ("今夜我", {"lines": 8, "line_chars": "7", "rhyme": "auto", "rhyme_scheme": "AABA"}),
    ("你说", {"lines": 8, "line_chars": "5-9", "rhyme": "江阳", "candidates": 8}),
    ("山", {"lines": 4, "line_chars": "5", "rhyme": "auto", "rhyme_scheme": "XAXA", "candidates": 8}),
    ("", {"acrostic": "今夜有雨", "line_chars": "7", "rhyme": "auto", "candidates": 8}),
    ("", {"structure": "主歌4 副歌4 主歌4 副歌", "line_chars": "7,7,5,7", "rhyme": "言前", "title": "远方"}),
    ("外婆的", {"structure": "主歌4 副歌4", "line_chars": "5-10", "rhyme": "auto", "candidates": 8}),
    ("老街", {"candidates": 8, "max_tokens": 120}),
    ("", {"title": "浣溪沙", "lines": 6, "line_chars": "7", "rhyme": "auto", "candidates": 8}),
    ("再见", {"temperature": 0.7}),
]


def main(ready: str, other: str) -> None:
    print(HEAD.format(ready=ready, other=other))
    writers = [load_writer(Path(path), "cpu", "fp32").writer for path in (ready, other)]
    for seed, (prompt, changes) in enumerate(PROMPTS, 1):
        settings = dataclasses.replace(DEFAULTS, **changes)
        asked = ({"prompt": prompt} if prompt else {}) | changes | {"seed": seed}
        shown = " ".join(
            f'--{name} "{value}"' if " " in str(value) else f"--{name} {value}" for name, value in asked.items()
        )
        print(f"## {seed}\n\n`{shown}`\n")
        songs = [writer.write(prompt, settings, seed, lambda text: None)[0].text for writer in writers]
        for name, song in zip(("现成的", "第一条命令的"), songs, strict=True):
            print(f"{name}：\n\n```text\n{shortened(song)}\n```\n")


HEAD = """# 不挑的二十首

`python tests/samples.py {ready} {other}` 的输出：种子 1 到 20，一首不换。
上面的是现成的小模型（[模型卡](../models/README.md)）；
下面的是 README 第一条命令两三分钟训出来的，同样的开头与设置（`--dtype fp32 --decode torch`）。
"""


def shortened(song: str) -> str:
    lines = song.strip("\n").split("\n")
    return "\n".join(lines[:MOST_LINES] + ["……"] * (len(lines) > MOST_LINES))


if __name__ == "__main__":
    main(*sys.argv[1:])
