"""Train a ClusTR model: python tools/train.py CONFIG [options]; --help lists them."""

import sys

from clustr_mm.engine import run_tool, train

if __name__ == '__main__':
    sys.exit(run_tool(train))
