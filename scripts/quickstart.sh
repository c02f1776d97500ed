#!/bin/sh
# Builds and installs ltkernels into .venv, then trains: plain cross-entropy beside BKD on the
# long-tailed glyphs that ship in the package. Arguments go to `python -m ltkernels.train`.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh
.venv/bin/python -m pip install --quiet --disable-pip-version-check '.[plots,progress]'
# The script, not `python -m`: in the repository's root that would import the sources.
exec .venv/bin/ltkernels-train "$@"
