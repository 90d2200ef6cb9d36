"""README 说的与代码一致。"""

import ast
import re
from pathlib import Path

import pytest

import benchmark
import config
import evaluate
import export
import inference

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(title: str) -> list[list[str]]:
    """一节里表格的各行（不含表头）。"""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_length_and_title():
    """不超过 250 行，标题照约定，没有没填的空。"""
    assert len(README.splitlines()) <= 250
    assert README.startswith("# NanoGPT 中文歌词生成器\n")
    assert "@@" not in README


@pytest.mark.parametrize("row", rows("配置"), ids=lambda row: row[0])
def test_configuration_table(row):
    """配置表的默认值就是 config.py 的常量。"""
    name, default = row[0].strip("`"), row[1]
    constant = getattr(config, name)
    assert default == str(constant) or float(default) == constant


def test_configuration_table_has_the_promised_names():
    promised = "BATCH_SIZE MAX_SEQ_LEN LEARNING_RATE TRAIN_ITERS N_EMBED N_HEADS N_LAYERS USE_SWANLAB".split()
    assert set(promised) <= {row[0].strip("`") for row in rows("配置")}


def test_inference_table():
    """推理表列出全部参数，默认值与代码相同。"""
    table = {name.strip("` "): row[1].strip("`") for row in rows("写歌词") for name in row[0].split("、")}
    assert set(table) == {f"--{flag.name}" for flag in inference.FLAGS}
    for flag in inference.FLAGS:
        if flag.default is not None:
            default = str(flag.default).lower() if isinstance(flag.default, bool) else str(flag.default)
            assert table[f"--{flag.name}"] == default


def imported_from(paths: list[Path]) -> set[str]:
    """这些文件 import 的模块：文件夹里的只写文件夹的名字。"""
    imported = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    return imported


def test_file_table():
    """文件表列出根目录的全部脚本与放代码的文件夹，「引用」一栏是代码里真实的引用。"""
    places = {path.stem: [path] for path in REPOSITORY.glob("*.py")}
    for path in REPOSITORY.glob("*/*.py"):
        if path.parent.name != "tests":
            places.setdefault(path.parent.name, []).append(path)
    table = {row[0].strip("`/").removesuffix(".py"): row[2] for row in rows("文件")}
    assert set(table) == set(places)
    for name, written in table.items():
        ours = imported_from(places[name]) & set(places) - {name}
        assert ours == set(re.findall(r"\w+", written.replace("–", ""))), name


def test_links_and_files_exist():
    """链接到的文件都在。"""
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (REPOSITORY / target).exists(), target


def test_commands_use_real_flags():
    """代码块里每条命令的参数都存在。"""
    scripts = {
        "train": config.flags(),
        "inference": inference.FLAGS,
        "benchmark": benchmark.FLAGS,
        "export": export.FLAGS,
        "evaluate": evaluate.FLAGS,
    }
    for block in re.findall(r"```bash\n(.*?)```", README, re.S):
        for name, arguments in re.findall(r"(\w+)\.py([^|&;#\n]*)", block):
            known = {f"--{flag.name}" for flag in scripts[name]}
            assert set(re.findall(r"--[a-z_]+", arguments)) <= known, arguments


def test_faults_name_real_tests():
    """docs/faults.md 里每一行写的测试都存在。"""
    table = (REPOSITORY / "docs" / "faults.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", table))
    written = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").glob("test_*.py"))
    assert len(named) > 40
    assert named <= set(re.findall(r"^def (test_\w+)", written, re.M))
