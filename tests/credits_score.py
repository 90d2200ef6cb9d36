"""认制作信息认得怎样：`python tests/credits_score.py`。

tests/credits/*.jsonl 每行一段歌词文件：{"lines": [行…], "credits": {行号: 种类}}，没有写进 credits 的行都是唱词。
seen.jsonl 是写规则时看过的，unseen.jsonl 是写完之后才收集、没有看过的。全部是为本项目写的，人名、公司、唱词都是虚构的。
"""

import json
import sys
from collections import Counter
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "credits"
KINDS = {"credit": "制作信息", "notice": "声明", "part": "段落标记", "title": "歌名行"}

sys.path.insert(0, str(FOLDER.parent.parent))


def score(path: Path) -> tuple[Counter, Counter, int, list[str]]:
    """(各种类去掉的行数, 各种类的行数, 唱词的行数, 误去的唱词)。"""
    from corpus.cleaning import clean_text
    from corpus.credits import find_credits

    removed, total, sung, wrong = Counter(), Counter(), 0, []
    for text in path.read_text(encoding="utf-8").splitlines():
        excerpt = json.loads(text)
        lines, marked = excerpt["lines"], excerpt["credits"]
        found = find_credits(lines)
        left = set(clean_text("\n".join(lines)).split("\n"))
        for number, line in enumerate(lines):
            kind = marked.get(str(number))
            gone = number in found or " ".join(line.split()) not in left
            if kind:
                total[kind] += 1
                removed[kind] += gone
            elif line.strip():
                sung += 1
                wrong += [line] if number in found else []
    return removed, total, sung, wrong


def main() -> None:
    for name, title in (("seen", "看过的"), ("unseen", "没有看过的")):
        removed, total, sung, wrong = score(FOLDER / f"{name}.jsonl")
        parts = [f"{KINDS[kind]} {removed[kind]}/{total[kind]}（{removed[kind] / total[kind]:.1%}）" for kind in KINDS]
        print(f"{title}：{'、'.join(parts)}；唱词 {sung:,} 行，误去 {len(wrong)} 行")


if __name__ == "__main__":
    main()
