"""Strip a training checkpoint to weights that others can load without running code.

    python tools/publish_checkpoint.py work_dirs/RUN/best_mIoU_iter_1350.pth --name upernet_clustr_t

writes upernet_clustr_t-HASH.safetensors into the working folder: test.py and --init-from take it.
--part backbone keeps what --init-from reads. The file's metadata (config, arch, score, versions) is
shown by

    python tools/publish_checkpoint.py --show FILE
"""

import argparse
import sys
from collections.abc import Sequence

from clustr_mm.engine import run_tool
from clustr_mm.engine.options import Parser, add_trust
from clustr_mm.weights.files import read_checkpoint
from clustr_mm.weights.publish import PARTS, publish


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', metavar='CKPT', help='.pth or .safetensors')
    parser.add_argument('--out-dir', default='.', metavar='DIR', help='where to write')
    parser.add_argument('--name', help="the file's name before the hash; by default CKPT's")
    parser.add_argument('--part', choices=PARTS, default='model', help='which weights')
    parser.add_argument(
        '--score', help="what it achieves, say 'mIoU 49.6', if the file is to say it"
    )
    parser.add_argument('--show', action='store_true', help="only print CKPT's metadata")
    add_trust(parser)
    options = parser.parse_args(argv)
    trust = options.trust_checkpoint
    if options.show:
        meta = read_checkpoint(options.checkpoint, trust=trust).get('meta', {})
        print('\n'.join(f'{key}: {value}' for key, value in sorted(meta.items())))
        return
    path = publish(
        options.checkpoint, options.out_dir, options.name, options.part, options.score, trust
    )
    print(f'{path}: {options.part} weights, {path.stat().st_size / 2**20:.1f} MiB')


if __name__ == '__main__':
    sys.exit(run_tool(main))
