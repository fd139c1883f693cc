"""What the backbone's settings cost, and what they change: the maths behind tools/analysis."""

from clustr_mm.analysis.ablation import Ablation, Comparison, Row, compare_blocks
from clustr_mm.analysis.flops import Count, Macs, count_macs, flop_formulas
from clustr_mm.analysis.groupings import GROUPINGS, RegroupedAttention
from clustr_mm.analysis.measure import Cost, measure, peak_mib
from clustr_mm.analysis.parameters import (
    Parameters,
    build_empty,
    count_parameters,
    parameter_table,
    parameters_of,
)
from clustr_mm.analysis.settings import (
    PART_SETTINGS,
    backbone_arguments,
    build_settings,
    knob_settings,
    parse_setting,
)
from clustr_mm.analysis.statistics import ClusterStatistics, cluster_statistics

__all__ = [
    'GROUPINGS',
    'PART_SETTINGS',
    'Ablation',
    'ClusterStatistics',
    'Comparison',
    'Cost',
    'Count',
    'Macs',
    'Parameters',
    'RegroupedAttention',
    'Row',
    'backbone_arguments',
    'build_empty',
    'build_settings',
    'cluster_statistics',
    'compare_blocks',
    'count_macs',
    'count_parameters',
    'flop_formulas',
    'knob_settings',
    'measure',
    'parameter_table',
    'parameters_of',
    'parse_setting',
    'peak_mib',
]
