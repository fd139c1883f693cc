"""Compute a step again that the numerics guard left out: python tools/replay.py FILE.

FILE is one of a work folder's numerics/. Prints the batch's files, each loss now and in the run,
and where the first number went wrong.
"""

import argparse
import sys
from collections.abc import Sequence

from clustr_mm.engine import run_tool
from clustr_mm.engine.options import Parser, add_trust
from clustr_mm.weights.files import trust_checkpoints


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file', metavar='FILE')
    parser.add_argument(
        '--device', choices=('cpu', 'cuda'), help='by default a GPU if there is one'
    )
    add_trust(parser)
    options = parser.parse_args(argv)
    trust_checkpoints(options.trust_checkpoint)
    from clustr_mm.engine.devices import choose_device
    from clustr_mm.engine.replay import replay, report

    choose_device(options.device)
    print(report(replay(options.file)))


if __name__ == '__main__':
    sys.exit(run_tool(main))
