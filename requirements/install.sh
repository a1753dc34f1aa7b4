#!/usr/bin/env bash
# Make .venv from the lock of this Python, or leave it alone when it is already that. `make setup` runs this.
#
# Every package is checked against the hash in the lock, whichever registry or mirror it comes from.
# PYTHON=/path/to/python3 chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Without .pyc files every process compiles 4,000 modules again (20 s instead of 7 s to start).
unset PYTHONDONTWRITEBYTECODE PYTHONPATH PYTHONHOME VIRTUAL_ENV

say() { printf '%s\n' "setup: $*" >&2; }
die() { say "$@"; exit 1; }

suits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }

pick_python() {
  if [ -n "${PYTHON:-}" ]; then
    suits "$PYTHON" || die "PYTHON=$PYTHON is not a Python from 3.11 to 3.13."
    printf '%s' "$PYTHON"
    return
  fi
  for candidate in python3 python3.13 python3.12 python3.11; do
    if suits "$candidate"; then
      printf '%s' "$candidate"
      return
    fi
  done
  die "Wardcast needs Python 3.11, 3.12 or 3.13; python3 here is $(python3 -V 2>&1 || true)." \
    "On Debian 12 or later: apt-get install python3 python3-venv. Or name one: make setup PYTHON=/path/to/python3.12"
}

python=$(pick_python)
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
lock=requirements/py$version.lock

# One setup at a time, should two make targets start together.
if command -v flock >/dev/null; then
  exec 9>"${TMPDIR:-/tmp}/wardcast-setup-$(id -u).lock"
  flock 9
fi

# What the environment was made from. The folder is part of it: scripts in a moved .venv point to the old place.
tell='import sys; print("python", sys.base_prefix, *sys.version_info[:3])'
base="$("$python" -c "$tell") in $PWD"
stamp="$base; $(cat "$lock" pyproject.toml requirements/install.sh | sha256sum | cut -c1-64)"
made_from=$(cat .venv/wardcast-stamp 2>/dev/null || true)
present="$(.venv/bin/python -c "import pip; $tell" 2>/dev/null || true) in $PWD"
if [ "$made_from" = "$stamp" ] && [ "$present" = "$base" ] && [ -x .venv/bin/wardcast ]; then
  exit 0
fi

# An environment of this Python in this place is brought up to date; any other is made anew.
if [ "$present" != "$base" ] || [ "${made_from:+${made_from%%;*}}" != "${made_from:+$base}" ]; then
  "$python" -c 'import venv, ensurepip' 2>/dev/null || die \
    "$python cannot make environments: its venv or ensurepip is missing." \
    "On Debian: apt-get install python$version-venv (or python3-venv), then run this again."
  say "making .venv with Python $version: $(grep -c '==' "$lock") locked packages, 1.9 GB with byte code; a minute or more"
  "$python" -m venv --clear .venv
else
  say "bringing .venv up to date with $lock"
fi
rm -f .venv/wardcast-stamp

started=$SECONDS
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The installer comes from the same lock, by its hash.
awk '/^[^ ]/ { wanted = /^uv==/ } wanted' "$lock" >"$scratch/uv.txt"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r "$scratch/uv.txt"

# A mirror that pip was told about is meant for uv as well.
mirror=${PIP_INDEX_URL:-$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || true)}
if [ -n "$mirror" ] && [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
  export UV_DEFAULT_INDEX=$mirror
fi
export UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=${UV_NO_PROGRESS:-$([ -t 2 ] && echo 0 || echo 1)}
export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-180}
if ! .venv/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes "$lock"; then
  say "uv did not get through; trying pip, which is slower"
  .venv/bin/python -m pip install --disable-pip-version-check --no-deps --require-hashes -r "$lock"
fi

# The project itself, in place: an edit in the checkout is an edit in the environment.
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --offline --editable .
printf '%s' "$stamp" >.venv/wardcast-stamp
say "ready in $((SECONDS - started)) s: .venv/bin/wardcast"
