# Sourced by the other scripts from the repository's root: a virtual environment .venv with torch.
# TORCH chooses another torch, PYTHON another interpreter (3.10 or newer). pip's own settings hold:
# PIP_INDEX_URL can name an index of CPU builds, where the default one's torch is gigabytes of CUDA.
if [ ! -x .venv/bin/python ]; then
  "${PYTHON:-python3}" -m venv .venv
fi
# pip replaces an installed torch only if the requirement says so; nothing is fetched twice.
if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "${TORCH:-torch==2.13.0}"
fi
