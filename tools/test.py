"""Test a ClusTR model: python tools/test.py CONFIG CHECKPOINT [options]; --help lists them."""

import sys

from clustr_mm.engine import run_tool, test

if __name__ == '__main__':
    sys.exit(run_tool(test))
