"""What the backbone's settings cost, and what they change: the maths behind tools/analysis."""

from clustr_mm.analysis.ablation import Ablation, Row, attention_shifts
from clustr_mm.analysis.groupings import GROUPINGS, RegroupedAttention
from clustr_mm.analysis.measure import Cost, measure, peak_mib
from clustr_mm.analysis.parameters import Parameters, count_parameters, parameter_table
from clustr_mm.analysis.settings import build_settings, knob_settings, parse_setting

__all__ = [
    'GROUPINGS',
    'Ablation',
    'Cost',
    'Parameters',
    'RegroupedAttention',
    'Row',
    'attention_shifts',
    'build_settings',
    'count_parameters',
    'knob_settings',
    'measure',
    'parameter_table',
    'parse_setting',
    'peak_mib',
]
