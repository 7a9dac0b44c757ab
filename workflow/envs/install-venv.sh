#!/usr/bin/env bash
# Debian and Ubuntu ship Python without venv: installs it where that is allowed, else says how.
set -euo pipefail
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && apt-get install -y -qq python3-venv
else
    echo "python3 lacks the module venv; install it first: sudo apt-get install python3-venv" >&2
    exit 1
fi
