#!/usr/bin/env bash
# 在当前虚拟环境里安装开发依赖、检查格式、运行全部测试。
set -euo pipefail
cd "$(dirname "$0")/.."
python -m pip install -q -r requirements-dev.txt
ruff format --check .
ruff check .
python -m pytest
