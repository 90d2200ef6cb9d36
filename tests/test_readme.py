"""README 与 docs 说的与代码一致。"""

import re
from pathlib import Path

import forms
import pytest

import benchmark
import config
import evaluate
import export
import flags
import inference
import webui

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / "README.md"
PAGES = [README, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "models" / "README.md"]
PAGES += sorted((REPOSITORY / "docs").glob("*.md"))
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def rows(page: Path, title: str) -> list[list[str]]:
    """一节里表格的各行（不含表头）。"""
    section = read(page).split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_length_and_title():
    """五分钟读得完：不超过 200 行；标题照约定。"""
    assert len(read(README).splitlines()) <= 200
    assert read(README).startswith("# NanoGPT 中文歌词生成器\n")


@every_page
def test_nothing_left_to_fill_in(page):
    assert [mark for mark in ("@@", "TODO", "FIXME") if mark in read(page)] == []


@pytest.mark.parametrize("row", rows(README, "配置"), ids=lambda row: row[0])
def test_configuration_table(row):
    """配置表的默认值就是 config.py 的常量。"""
    name, default = row[0].strip("`"), row[1]
    constant = getattr(config, name)
    assert default == str(constant) or float(default) == constant


def test_configuration_table_has_the_promised_names():
    promised = "BATCH_SIZE MAX_SEQ_LEN LEARNING_RATE TRAIN_ITERS N_EMBED N_HEADS N_LAYERS USE_SWANLAB".split()
    assert set(promised) <= {row[0].strip("`") for row in rows(README, "配置")}


def test_inference_table():
    """写歌词的表列出全部参数，默认值与代码相同。"""
    written = rows(REPOSITORY / "docs" / "writing.md", "参数")
    table = {name.strip("` "): row[1].strip("`") for row in written for name in row[0].split("、")}
    assert set(table) == {f"--{flag.name}" for flag in inference.FLAGS}
    for flag in inference.FLAGS:
        if flag.default is not None:
            default = str(flag.default).lower() if isinstance(flag.default, bool) else str(flag.default)
            assert table[f"--{flag.name}"] == default


def test_table_of_rooms():
    """每个根目录的文件、每个放代码的文件夹各占一行；文件夹的一行说到里面的每个文件。"""
    table = {row[0].strip("`"): row[1] for row in rows(README, "房间")}
    inside = list(REPOSITORY.glob("[a-z]*/*.py"))
    assert set(table) == {path.name for path in REPOSITORY.glob("*.py")} | {f"{path.parent.name}/" for path in inside}
    for path in inside:
        if path.parent.name != "tests":
            assert f"`{path.stem}`" in table[f"{path.parent.name}/"], path


@every_page
def test_links_exist(page):
    """链接到的文件、文件里的标题都在。"""
    for target, _, anchor in re.findall(r"\]\(([^)#]*)(#?)([^)]*)\)", read(page)):
        if target.startswith("http"):
            continue
        linked = (page.parent / target).resolve() if target else page
        assert linked.exists(), target
        if anchor:  # GitHub 的写法：小写，去掉标点，空格换成连字符
            titles = re.findall(r"^#+ (.*)$", read(linked), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, anchor


@every_page
def test_commands_use_real_flags(page):
    """代码块与反引号里每条命令的参数都存在。"""
    scripts = {
        "train.py": flags.training_flags(),
        "inference.py": inference.FLAGS,
        "benchmark.py": benchmark.FLAGS,
        "export.py": export.FLAGS,
        "evaluate.py": evaluate.FLAGS,
        "webui.py": webui.FLAGS,
        "tests/forms.py": forms.FLAGS,
    }
    blocks = re.findall(r"```bash\n(.*?)```", read(page), re.S) + re.findall(r"`([^`\n]+)`", read(page))
    for block in blocks:
        for name, arguments in re.findall(r"((?:tests/)?\w+\.py)([^&;#\n]*)", block):
            known = {"--help", *(f"--{flag.name}" for flag in scripts.get(name, ()))}
            assert name not in scripts or set(re.findall(r"--[a-z_]+", arguments)) <= known, arguments


def test_a_figure_stands_in_one_place():
    """README「实测」的结果（三位以上的数）不在 docs/measurements.md 里再写一遍。"""

    def figures(text: str) -> set[str]:
        return {found for found in re.findall(r"\d[\d,.]*\d", text) if sum(map(str.isdigit, found)) >= 3}

    ours = figures(" ".join(row[-1] for row in rows(README, "实测")))
    assert len(ours) > 10
    assert not ours & figures(read(REPOSITORY / "docs" / "measurements.md"))


def test_faults_name_real_tests():
    """docs/faults.md 里每一行写的测试都存在。"""
    named = set(re.findall(r"`(test_\w+)`", read(REPOSITORY / "docs" / "faults.md")))
    written = "".join(read(path) for path in (REPOSITORY / "tests").glob("test_*.py"))
    assert len(named) > 40
    assert named <= set(re.findall(r"^def (test_\w+)", written, re.M))


def test_constraints_pin_every_requirement():
    """constraints.txt 给 requirements*.txt 里的每一样定了确切的版本（画图的除外）。"""
    pinned = set(re.findall(r"^([a-z0-9-]+)==", read(REPOSITORY / "constraints.txt"), re.M))
    for path in REPOSITORY.glob("requirements*.txt"):
        if path.name != "requirements-plot.txt":
            assert set(re.findall(r"^([a-z0-9-]+)[><=]", read(path), re.M)) <= pinned, path.name
