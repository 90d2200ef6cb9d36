#!/usr/bin/env bash
# 在当前虚拟环境里安装开发依赖，检查格式与类型，运行测试。参数交给 pytest：
# bash tests/run.sh -k 韵；连慢的也跑：bash tests/run.sh -m "not llama"
set -euo pipefail
cd "$(dirname "$0")/.."
python -m pip install -q -r requirements-dev.txt -c constraints.txt
ruff format --check .
ruff check .
mypy
python -m pytest -n 2 -m "not slow and not llama" "$@"
