#!/usr/bin/env bash
# Write the locks anew from pyproject.toml, one per Python version: names, versions and hashes, no host and no path.
# Keeps the versions that still fit; `make lock UPGRADE=1` takes the newest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
export UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never
unset VIRTUAL_ENV
cd "$(mktemp -d)"  # so that no configuration beside the checkout is read
for version in 3.11 3.12 3.13; do
  lock=$root/requirements/py$version.lock
  "$root/.venv/bin/uv" pip compile "$root/pyproject.toml" --all-extras --generate-hashes --python-version "$version" \
    --no-header --no-annotate --no-emit-index-url --no-emit-find-links ${UPGRADE:+--upgrade} --quiet --output-file "$lock"
  if grep -n -E '://|^--|@ |^/' "$lock"; then
    echo "lock: $lock names a host, an index or a path (above); it must not be committed." >&2
    exit 1
  fi
  echo "lock: requirements/py$version.lock, $(grep -c '==' "$lock") packages"
done
