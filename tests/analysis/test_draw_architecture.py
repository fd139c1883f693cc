"""The picture of the network says what the network is."""

import runpy
from pathlib import Path

TOOL = runpy.run_path(str(Path(__file__).parents[2] / 'tools/analysis/draw_architecture.py'))


def test_the_stages_facts_are_the_papers():
    facts = TOOL['stage_facts']('small')
    assert [each.size for each in facts] == [(128, 128), (64, 64), (32, 32), (16, 16)]
    assert [each.clusters for each in facts] == [(256, 1024)] * 3 + [()]
    assert [(each.blocks, each.channels, each.heads) for each in facts] == [
        (3, 64, 1), (5, 128, 2), (13, 256, 4), (2, 512, 8),
    ]  # fmt: skip


def test_it_draws_any_arch(tmp_path):
    TOOL['main'](['--arch', 'pvt_v2_b0', '--out', str(tmp_path / 'network.svg')])
    assert '<svg' in (tmp_path / 'network.svg').read_text()
