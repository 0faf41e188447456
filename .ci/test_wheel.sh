#!/usr/bin/env bash
# Installs the wheel in dist/ into an empty environment, and uses it where nothing else is on PATH, no compiler above all:
# `make test-wheel`.  PYTHON names the Python, and TORCH the version of torch, of the environment.  With ENVIRONMENT, the
# folder of one that has all that the wheel needs, nothing but the wheel is installed, into that.  DIST is the folder with the
# wheel; one with CUDA kernels, in dist/cuda, wants PyPI's build of torch, TORCH="=2.13.0" (a version without a local part).
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONNOUSERSITE=1
unset PYTHONPATH
wheels=("${DIST:-dist}"/dip_fast-*.whl)
test -f "${wheels[0]}" || { echo "${DIST:-dist}/ holds no wheel: make wheel" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if test -n "${ENVIRONMENT:-}"; then
  "$ENVIRONMENT/bin/python" -m pip install --quiet --no-deps --force-reinstall "${wheels[0]}"
else
  ENVIRONMENT=$work/environment
  "${PYTHON:-python3}" -m venv "$ENVIRONMENT"
  "$ENVIRONMENT/bin/python" -m pip install --quiet --constraint requirements/dev.txt "torch==${TORCH:-2.13.0}" "${wheels[0]}"
  "$ENVIRONMENT/bin/python" -m pip check
fi
ENVIRONMENT=$(cd "$ENVIRONMENT" && pwd)
if PATH="$ENVIRONMENT/bin" command -v c++ g++ cc gcc clang nvcc; then
  echo "there is a compiler in the environment" >&2
  exit 1
fi
PATH="$ENVIRONMENT/bin" XDG_CACHE_HOME="$work/cache" "$ENVIRONMENT/bin/python" .ci/use_wheel.py "$work"
