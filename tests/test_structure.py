"""结构：import 只向下、脚本互不 import、函数不过一屏。"""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = {"train", "inference", "evaluate", "benchmark", "export"}
# 库文件可以 import 的自家文件；脚本可以 import 一切，除了别的脚本。
LIBRARIES = {
    "config": set(),
    "runtime": set(),
    "tokenizer": set(),
    "model": set(),
    "optimizer": set(),
    "corpus.files": set(),
    "corpus.credit_words": set(),
    "corpus.credit_lines": {"corpus.credit_words"},
    "corpus.notices": {"corpus.credit_lines", "corpus.credit_words"},
    "corpus.credits": {"corpus.credit_lines", "corpus.credit_words", "corpus.notices"},
    "corpus.karaoke": set(),
    "corpus.cleaning": {"corpus.credits", "corpus.karaoke"},
    "corpus.formats": {"corpus.cleaning", "corpus.files", "corpus.karaoke", "corpus.notices"},
    "corpus.near_copies": set(),
    "corpus.songs": {"corpus.cleaning", "corpus.files", "corpus.formats", "corpus.near_copies"},
    "corpus.inspection": {"corpus.files", "corpus.songs"},
    "corpus.tokens": {"tokenizer", "corpus.cleaning", "corpus.files", "corpus.songs"},
    "generation": {"model", "tokenizer"},
    "checkpoint": {"model", "tokenizer"},
    "gguf_file": {"model", "tokenizer"},
    "tracking": set(),
    "lyrics": set(),
}
WITHOUT_TORCH = {"config", "tokenizer", "tracking", "lyrics"} | {
    name for name in LIBRARIES if name.startswith("corpus.")
}
LONGEST_FUNCTION = 60
SOURCES = sorted([*REPOSITORY.glob("*.py"), *REPOSITORY.glob("corpus/*.py")])


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


every_source = pytest.mark.parametrize("path", SOURCES, ids=module_name)


def imported_modules(path: Path) -> set[str]:
    """文件里（含函数内部）import 的模块：自家文件夹里的写全名，别的写顶层的名字。"""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name if alias.name in LIBRARIES else alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} 第 {node.lineno} 行：不用相对 import"
            found.add(node.module if node.module in LIBRARIES else node.module.split(".")[0])
    return found


def test_every_root_file_has_a_place():
    """根目录新添的文件必须先列进上面的表，否则它的 import 方向没人看管。"""
    strangers = {module_name(path) for path in SOURCES} - SCRIPTS - set(LIBRARIES)
    assert not strangers
    assert {"config", "model", "tokenizer", "train", "inference"} <= {path.stem for path in SOURCES}


@every_source
def test_imports_run_downwards(path):
    """库不 import config 与脚本，脚本不 import 脚本。"""
    ours = imported_modules(path) & (SCRIPTS | set(LIBRARIES) | {module_name(source) for source in SOURCES})
    allowed = set(LIBRARIES) if path.stem in SCRIPTS else LIBRARIES[module_name(path)]
    assert ours <= allowed


@pytest.mark.parametrize("name", sorted(WITHOUT_TORCH))
def test_plain_files_do_not_import_torch(name):
    """配置、分词、数据与记录不碰设备，单独使用时也不必等 torch 载入。"""
    path = REPOSITORY / f"{name.replace('.', '/')}.py"
    assert not path.exists() or "torch" not in imported_modules(path)


@every_source
def test_no_unfinished_marks(path):
    """提交的代码里没有留待以后的记号。"""
    text = path.read_text(encoding="utf-8")
    assert [mark for mark in ("TODO", "FIXME") if mark in text] == []


@every_source
def test_functions_fit_a_screen(path):
    """函数（含文档字符串）不超过 60 行。"""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, functions)]
    lengths = {f"{node.name}（第 {node.lineno} 行）": node.end_lineno - node.lineno + 1 for node in nodes}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}
