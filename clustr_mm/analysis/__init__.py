"""What the backbone's settings cost, and what they change: the maths behind tools/analysis."""

from clustr_mm.analysis.ablation import Ablation, Row, attention_shifts
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
from clustr_mm.analysis.settings import build_settings, knob_settings, parse_setting

__all__ = [
    'GROUPINGS',
    'Ablation',
    'Cost',
    'Count',
    'Macs',
    'Parameters',
    'RegroupedAttention',
    'Row',
    'attention_shifts',
    'build_empty',
    'build_settings',
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
