"""Counts the parameters of full models, as a page of the documentation.

    python tools/analysis/count_params.py                  # every config; docs/models.md holds it
    python tools/analysis/count_params.py CONFIG...        # those given

Models are built without memory for their weights, so the largest takes no longer than the smallest.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from clustr_mm.analysis.parameters import count_parameters
from clustr_mm.engine.config import load_config
from clustr_mm.engine.errors import run_tool
from clustr_mm.engine.options import Parser

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ('mmdet', 'mmseg', 'mmpose', 'mmpretrain')
PAGE = """\
<!-- python tools/analysis/count_params.py{configs} -->
# Parameters of the models

Made by `python tools/analysis/count_params.py{configs}`, which builds every model and counts. In
millions. A segmentation model's auxiliary head, which only training uses, counts among its heads.

{table}"""


def leaf_configs() -> list[Path]:
    """Every config that is a model on a data set."""
    return [path for name in LIBRARIES for path in sorted((ROOT / 'configs' / name).glob('*.py'))]


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='*', metavar='CONFIG', help='configs to count')
    options = parser.parse_args(argv)
    warnings.filterwarnings('ignore')
    paths = options.configs or [os.path.relpath(path, ROOT) for path in leaf_configs()]
    lines = ['| config | parameters (M) | backbone | neck | heads |', '|---|--:|--:|--:|--:|']
    for path in paths:
        cfg = load_config(path if options.configs else str(ROOT / path))
        n = count_parameters(cfg)
        millions = (f'{count / 1e6:.2f}' for count in (n.total, n.backbone, n.neck, n.heads))
        lines.append(f'| `{path}` | {" | ".join(millions)} |')
    configs = ''.join(f' {path}' for path in options.configs)
    print(PAGE.format(configs=configs, table='\n'.join(lines)))


if __name__ == '__main__':
    sys.exit(run_tool(main))
