#!/usr/bin/env bash
# Installs what the tests in a browser need into .venv and, for root on Debian, into the system, where it can be had; it
# never fails, and gives up after three minutes at most.  Those tests are skipped, with the reason, where something is missing.
set -uo pipefail
cd "$(dirname "$0")/.."
export DEBIAN_FRONTEND=noninteractive
apt=(apt-get -qq -o DPkg::Lock::Timeout=20 -o Acquire::Retries=1 -o Acquire::http::Timeout=15)
packages=(--yes --no-install-recommends chromium fonts-dejavu-core)

timeout 60 .venv/bin/pip install --quiet --timeout 15 --retries 1 --requirement requirements/browser.txt \
  || echo "playwright cannot be installed: the tests in a browser are skipped"
if command -v chromium chromium-browser google-chrome > /dev/null; then exit 0; fi
# What is cut short is the download, at worst: unpacking has its own time.
if command -v apt-get > /dev/null && test "$(id -u)" = 0 \
  && timeout 20 "${apt[@]}" update < /dev/null \
  && timeout 60 "${apt[@]}" install --download-only "${packages[@]}" < /dev/null > /dev/null \
  && timeout 60 "${apt[@]}" install "${packages[@]}" < /dev/null > /dev/null; then exit 0; fi
echo "Chromium cannot be installed here: the tests in a browser are skipped"
exit 0
