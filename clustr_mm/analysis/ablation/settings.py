"""Settings of the backbone in words, ``recluster_every=0+cluster_window=56``, and as backbones.

Every setting is said in terms of the exact global form, the paper's: clusters in every block, over
the whole image, all of them attended to from everywhere.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from clustr_mm.analysis.ablation.groupings import GROUPINGS, regroup
from clustr_mm.analysis.peers import EXACT, parse_setting
from clustr_mm.models import ClusTR
from clustr_mm.models.clustr import ARCHS
from clustr_mm.weights.files import load_pretrained

DENSE = 'grouping=dense'
# Values of the three knobs, the paper's first (ClusTR's docstring says what they do).
KNOBS: dict[str, tuple[Any, ...]] = {
    'recluster_every': (1, 0),
    'cluster_window': (None, 56),
    'fine_scope': ('global', 'window'),
}
# What a config's backbone keeps under every setting. Of the rest, the knobs are the settings', and
# the others matter to training or to a neck.
_KEPT = ('arch', 'in_channels', 'scales', 'k', 'qkv_bias', 'backend')
# Keys that are no arguments of ClusTR: the stages' reductions, which are a part of its arch, and
# one of the other groupings.
_ALSO = ('reductions', 'grouping')
# The paper's open question: what each part of the clustering matters, one change at a time.
PART_SETTINGS = (
    EXACT,
    'k=2', 'k=3', 'k=9', 'k=15',
    'reductions=(16,8,4,1)', 'reductions=(4,2,2,1)', 'scales=(1,2)', 'scales=(1,8)',
    'scales=(1,)', 'scales=(1,4,16)',
    'recluster_every=2', 'recluster_every=0',
    'cluster_window=28', 'cluster_window=28+fine_scope=window',
    'grouping=kmeans', 'grouping=random', 'grouping=grid', DENSE,
)  # fmt: skip


def knob_settings() -> list[str]:
    """The exact form and every other combination of the three knobs, as settings."""
    names = []
    for values in itertools.product(*KNOBS.values()):
        knobs = dict(zip(KNOBS, values, strict=True))
        if knobs['fine_scope'] == 'window' and knobs['cluster_window'] is None:
            continue  # no such setting
        changed = [f'{key}={value}' for key, value in knobs.items() if value != KNOBS[key][0]]
        names.append('+'.join(changed) or EXACT)
    return names


def build_settings(
    backbone: Mapping[str, Any],
    settings: Iterable[str],
    checkpoint: str | None = None,
    seed: int = 0,
    trust: bool = False,
) -> dict[str, ClusTR]:
    """Builds a backbone for every setting, all of them with the same weights.

    Args:
        backbone: A config's ``model.backbone``. Its knobs do not count: a setting says how it
            differs from the exact form.
        settings: The settings. A key is an argument of ``ClusTR``; ``reductions``, one for each
            stage, from which the cluster counts follow; or ``grouping``, one of ``GROUPINGS``.
        checkpoint: Weights with keys that begin with ``backbone.``; None for random ones. Only
            then may a setting have scales beyond the exact form's: their weights are random too.
        seed: Seed of the random weights.
        trust: See ``read_checkpoint``.

    Returns:
        Backbones in evaluation mode that return the maps of all stages, by setting; first
        ``'exact'``, asked for or not. They share its parameters.

    Raises:
        ValueError: If a setting is none of ClusTR's, or needs parameters that the weights lack.
    """
    kept = {key: value for key, value in backbone.items() if key in _KEPT}
    settings = list(settings)
    arguments = {name: backbone_arguments(kept, name) for name in settings}
    torch.manual_seed(seed)
    exact = ClusTR(**kept)
    if checkpoint is not None:
        load_pretrained(exact, dict(checkpoint=checkpoint, prefix='backbone.'), trust)
    models = {EXACT: exact.eval()}
    for name in settings:
        if name in models:
            continue
        options, grouping = arguments[name]
        torch.manual_seed(seed)  # of parameters that the exact form lacks
        try:
            model = ClusTR(**options)
        except (TypeError, ValueError) as error:  # a value of another type, or out of range
            raise ValueError(f'setting {name!r}: {error}') from error
        _share_parameters(exact, model, name, may_have_more=checkpoint is None)
        if grouping is not None:
            regroup(model, grouping)
        models[name] = model.eval()
    return models


def backbone_arguments(
    backbone: Mapping[str, Any], setting: str
) -> tuple[dict[str, Any], str | None]:
    """What a setting makes of a backbone's arguments.

    Args:
        backbone: Arguments of ``ClusTR``.
        setting: The setting.

    Returns:
        The arguments, and the name of the grouping, None for density peaks.

    Raises:
        ValueError: If the setting cannot be read or is none of ClusTR's.
    """
    options = parse_setting(setting)
    known = [*inspect.signature(ClusTR).parameters, *_ALSO]
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f'; did you mean {near[0]!r}?' if near else ''
            raise ValueError(f'setting {setting!r}: ClusTR has no option {key!r}{hint}')
    grouping = options.pop('grouping', None)
    if grouping is not None and grouping not in GROUPINGS:
        raise ValueError(f'setting {setting!r}: grouping is {grouping!r}; use {sorted(GROUPINGS)}')
    if grouping is not None and options.get('cluster_window') is not None:
        raise ValueError(
            f'setting {setting!r}: a grouping knows no windows; leave cluster_window out'
        )
    reductions = options.pop('reductions', None)
    merged = {**backbone, **options}
    if reductions is not None:
        arch = merged.get('arch', 'small')
        facts = dict(ARCHS[arch] if isinstance(arch, str) else arch)
        old = facts['reductions']
        if [r == 1 for r in old] != [r == 1 for r in _as_tuple(reductions)]:
            raise ValueError(
                f'setting {setting!r}: reductions is {reductions}; use {len(old)} numbers, '
                f'and 1 (dense attention) in the places where {tuple(old)} has it'
            )
        merged['arch'] = dict(facts, reductions=reductions)
    return merged, grouping


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _share_parameters(source: ClusTR, model: ClusTR, name: str, may_have_more: bool) -> None:
    """Makes a backbone use another's parameters; it may have fewer, as with fewer scales."""
    own, given = model.state_dict(), source.state_dict()
    shared = {
        key: given[key]
        for key, value in own.items()
        if getattr(given.get(key), 'shape', None) == value.shape
    }
    lacking = [key for key in own if key not in shared]
    if any(key in given for key in lacking) or (lacking and not may_have_more):
        raise ValueError(
            f'setting {name!r} needs {len(lacking)} parameters that the exact form lacks '
            f'({lacking[0]}, ...), so the two cannot be compared; set it in the config'
        )
    model.load_state_dict(shared, strict=False, assign=True)
