"""The published network's numbers (../shared/golden), through the published keys.

Where the folder is not beside the checkout (a clone elsewhere), CLUSTR_GOLDEN names it; without it
the numbers are not checked.
"""

import json
import math
import os
import zlib
from pathlib import Path

import pytest
import torch

from clustr_mm import ClusTR
from clustr_mm.weights.published import convert_published

np = pytest.importorskip('numpy', reason='the golden numbers are numpy files')
GOLDEN = Path(os.environ.get('CLUSTR_GOLDEN', Path(__file__).parents[3] / 'shared' / 'golden'))
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f'{GOLDEN} is not here')


def parameter(name: str, shape: list[int]) -> torch.Tensor:
    """The parameter that the golden numbers were made with, from its name (golden/README.md)."""
    n = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) >= 2:
        n = n / math.sqrt(math.prod(shape[1:]))
    elif 'norm' in name and name.endswith('weight'):
        n = 1 + 0.1 * n
    else:
        n = 0.02 * n
    return torch.from_numpy(np.asarray(n))


@pytest.mark.parametrize('backend', ['reference', 'tiled'])
def test_golden_numbers(backend):
    keys = json.loads((GOLDEN / 'ClusTR_b1_keys.json').read_text())
    golden = np.load(GOLDEN / 'ClusTR_b1_4x128x160.npz')
    meta = json.loads(str(golden['meta']))
    arch, state = convert_published({name: parameter(name, s) for name, s in keys.items()})
    assert arch == 'tiny'

    net = ClusTR(arch=arch, backend=backend).double().eval()
    prefix = 'backbone.'
    net.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})
    size = (meta['batch'], 3, meta['height'], meta['width'])
    x = torch.from_numpy(np.random.default_rng(meta['seed']).standard_normal(size))
    with torch.no_grad():
        maps = net(x)
        logits = maps[3].mean((2, 3)) @ state['head.fc.weight'].T + state['head.fc.bias']
    for i, map_ in enumerate(maps):
        tokens = map_.flatten(2).transpose(1, 2).contiguous().numpy()
        assert tokens.shape == tuple(golden[f'feat{i}_shape'])
        values = tokens.reshape(-1)[golden[f'feat{i}_idx']]
        assert np.abs(values - golden[f'feat{i}_val']).max() < 1e-9
        assert abs(tokens.mean() - golden[f'feat{i}_mean']) < 1e-9
        assert abs(tokens.std(ddof=1) - golden[f'feat{i}_std']) < 1e-9
    assert np.abs(logits.numpy() - golden['logits']).max() < 1e-9
