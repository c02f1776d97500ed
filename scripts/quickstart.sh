#!/bin/sh
# Builds and installs ltkernels into .venv, then trains: plain cross-entropy beside BKD on the
# long-tailed glyphs that ship in the package. Arguments go to `python -m ltkernels.train`.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh
.venv/bin/python -m pip install --quiet --disable-pip-version-check '.[plots,progress]'
# In the repository's root Python would import the sources instead of what was installed.
mkdir -p runs
cd runs
exec ../.venv/bin/python -m ltkernels.train "$@"
