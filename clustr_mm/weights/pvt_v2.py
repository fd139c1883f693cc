"""PVTv2's public ImageNet weights as a start for ClusTR.

A ClusTR with PVTv2's body (Wang et al., arXiv 2106.13797) takes all of its weights but the keys and
values of stages 1 to 3, and those nearly: calibrate.py. The MLPs are GELU(DWConv(u)) there and
GELU(u + DWConv(u)) here: 1 less in the middle of each depthwise kernel makes them the same.

Names are brought to ours first, from those of the original, timm, mmdet and transformers; PVTv2
then is our network with ``WindowAttention`` in place of the attention to clusters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from clustr_mm.models.cluster_attention import ClusterAttention
from clustr_mm.models.clustr import ARCHS, Block, ClusTR, Stage
from clustr_mm.weights.calibrate import WindowAttention, calibrate
from clustr_mm.weights.files import CheckpointError, load_strictly
from clustr_mm.weights.photographs import check_judged, judge

LICENCE = 'Apache-2.0, as the public PVTv2 weights (https://github.com/whai362/PVT)'
Arch = str | Mapping[str, Sequence[int]]
Calibration = Literal['sigma', 'full']

# Applied to each key in turn; together they cover all four dialects.
_RENAMES = [
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r'^(?:pvt_v2\.)?encoder\.layers\.', 'stages.'),  # transformers
        (r'\.patch_embedding\.', '.patch_embed.'),
        (r'\.layer_norm(?:_(\d))?\.', r'.norm\1.'),
        (r'\.attention\.', '.attn.'),
        (r'\.query\.', '.q.'),
        (r'\.spatial_reduction\.', '.sr.'),
        (r'\.dense(\d)\.', r'.fc\1.'),
        (r'^classifier\.', 'head.'),
        (r'^layers\.(\d)\.0\.', r'stages.\1.patch_embed.'),  # mmdet
        (r'^layers\.(\d)\.1\.', r'stages.\1.blocks.'),
        (r'^layers\.(\d)\.2\.', r'stages.\1.norm.'),
        (r'\.projection\.', '.proj.'),
        (r'\.attn\.attn\.in_proj_', '.attn.in_proj.'),
        (r'\.attn\.attn\.out_proj\.', '.attn.proj.'),
        (r'\.ffn\.layers\.0\.', '.mlp.fc1.'),
        (r'\.ffn\.layers\.1\.', '.mlp.dwconv.'),
        (r'\.ffn\.layers\.4\.', '.mlp.fc2.'),
        (r'^head\.fc\.', 'head.'),  # mmpretrain
        (r'^patch_embed\.', 'stages.0.patch_embed.'),  # timm
        (r'\.downsample\.', '.patch_embed.'),
        (r'\.dwconv\.dwconv\.', '.dwconv.'),  # the original, and transformers
    )
]
_ORIGINAL = re.compile(r'^(patch_embed|block|norm)([1-4])\.')
_BLOCK = re.compile(r'stages\.(\d)\.blocks\.(\d+)\.(.*)')


@dataclass(frozen=True)
class Conversion:
    """A ClusTR from PVTv2.

    Attributes:
        arch: Its variant.
        state_dict: ``backbone.*``, and ``head.fc.*`` where the source has a head.
        exact: Parameters of the backbone that do what they did in the source.
        approximated: Keys and values, which nearly do.
        new: Parameters without a source: weights of tokens, all 0, and blocks that change nothing.
        how: How keys and values were made, in words.
        left_out: Keys of the source that belong to neither backbone nor head.
    """

    arch: Arch
    state_dict: dict[str, Tensor]
    exact: int
    approximated: int
    new: int
    how: str
    left_out: tuple[str, ...] = ()


def from_pvt_v2(
    state_dict: Mapping[str, Tensor],
    arch: Arch | None = None,
    images: Iterable[Tensor] = (),
    calibration: Calibration = 'sigma',
    images_are: str = 'photographs',
    track: Callable[[Iterable, int], Iterable] = lambda blocks, number: blocks,
) -> Conversion:
    """Turns PVTv2's weights into a ClusTR's.

    Args:
        state_dict: Weights of ``pvt_v2_b0`` to ``pvt_v2_b4`` by the names of the original, timm,
            mmdet or transformers, bare or a whole model's under ``backbone.``.
        arch: The variant to make: None for the source's own; ``'base'`` from b3, with one block
            more, which changes nothing until it learns; or a dict, for a body of one's own.
        images: At least 8 photographs, in batches (B, channels, height, width) of any sizes from
            32 x 32, normalised as the network will see them. About 32 make the divisor of the
            folded LayerNorm right; without any it comes out 11 to 65 % too small, which
            ``photographs.draw_scenes`` mends nearly. Pictures of noise are left out, which a
            warning says.
        calibration: What to use them for: ``'sigma'``, that divisor, or ``'full'``, keys and values
            by least squares as well (32 to 256 photographs).
        images_are: What ``how`` calls the images.
        track: Gets an iterable of blocks and their number and gives the blocks one by one, to show
            how far it is: ``lambda blocks, number: tqdm(blocks, total=number)``.

    Returns:
        The weights, of the source's dtype, but of float32 for half precision: the MLP's inner
        residual doubles its rounding error.

    Raises:
        CheckpointError: If the weights are not those of a PVTv2 that fits, and why.
        ValueError: If too few of the images are photographs, or their channels are others.
    """
    pictures = [image for batch in images for image in batch]
    if pictures:
        judged = [judge(image) for image in pictures]
        check_judged(judged, 'the calibration')
        pictures = [image for image, (good, _) in zip(pictures, judged, strict=True) if good]
    elif calibration == 'full':
        raise ValueError('calibration is full without images; give 32 to 256 photographs')
    weights, left_out = _our_names(state_dict)
    source = _body(weights)
    target = _target(source, arch)
    facts = ARCHS[target] if isinstance(target, str) else target
    head = {f'head.fc.{key[5:]}': weights.pop(key) for key in list(weights) if key[:5] == 'head.'}
    weights, copies = _with_identity_blocks(weights, source['depths'], facts['depths'])

    teacher = _window_network(target, weights)
    stem = weights['stages.0.patch_embed.proj.weight']
    for picture in pictures:
        if len(picture) != stem.shape[1]:
            raise ValueError(
                f'images of {len(picture)} channels, and the source takes {stem.shape[1]}; give '
                'from_pvt_v2 such images, or none'
            )
    student = ClusTR(target, stem.shape[1], drop_path_rate=0).to(stem.dtype).eval()
    own = student.state_dict()
    student.load_state_dict(
        {key: weights.get(key, torch.zeros_like(value)) for key, value in own.items()}
    )
    pictures = [each.to(stem.dtype) for each in pictures]
    blocks = calibrate(student, teacher, pictures, calibration == 'full')
    with_clusters = [n for n, r in zip(facts['depths'], facts['reductions'], strict=True) if r > 1]
    for _ in track(blocks, sum(with_clusters)):
        pass
    sizes = {key: value.numel() for key, value in own.items()}
    new = sum(n for key, n in sizes.items() if '.token_weight.' in key or key.startswith(copies))
    approximated = sum(
        n for key, n in sizes.items() if '.kvs.' in key and not key.startswith(copies)
    )
    made = {f'backbone.{key}': value for key, value in student.state_dict().items()}
    return Conversion(
        target,
        made | head,
        sum(sizes.values()) - approximated - new,
        approximated,
        new,
        _how(f'{len(pictures)} {images_are}' if pictures else '', calibration),
        left_out,
    )


def pvt_v2(
    state_dict: Mapping[str, Tensor], arch: Arch | None = None
) -> tuple[ClusTR, nn.Linear | None]:
    """Builds PVTv2 itself, as a teacher: a ClusTR with attention to windows in place of clusters.

    Args:
        state_dict: As for ``from_pvt_v2``.
        arch: The source's own variant, where it is not one of b0 to b4.

    Returns:
        The network, in evaluation mode, which returns the maps of all four stages; and the head,
        if the source has one.

    Raises:
        CheckpointError: If the weights are not those of a PVTv2 that fits, and why.
    """
    weights, _ = _our_names(state_dict)
    target = _target(_body(weights), arch)
    of_head = {key[5:]: weights.pop(key) for key in list(weights) if key.startswith('head.')}
    network = _window_network(target, weights)
    if not of_head:
        return network, None
    head = nn.Linear(network.channels[-1], len(of_head['weight'])).to(of_head['weight'].dtype)
    load_strictly(head, of_head, source="the source's head")
    return network, head


def _how(pictures: str, calibration: Calibration) -> str:
    if not pictures:
        return 'keys and values of stages 1 to 3 folded, sigma from the norms'
    made = f'keys and values of stages 1 to 3 folded, sigma from {pictures}'
    if calibration == 'full':
        made += ', then fitted to the teacher on them by least squares'
    return made


def _our_names(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """PVTv2's weights by our names, the kernels of the MLPs made ours; and the keys left out."""
    own = [key for key in state_dict if re.search(r'\.attn\.(kvs\.|kv[12]\.|token_weight)', key)]
    if own:
        published = any(re.search(r'\.attn\.kv[12]\.', key) for key in own)
        raise CheckpointError(
            f'these weights are a ClusTR already ({own[0]}); '
            + ('leave out --from pvt_v2' if published else 'use them as they are')
        )
    if not any('.attn.sr.' in key or '.spatial_reduction.' in key for key in state_dict):
        raise CheckpointError(
            f'these weights are no PVTv2 (a key: {next(iter(state_dict), None)}); give those of '
            'pvt_v2_b0 to pvt_v2_b4, from the original, timm, mmdet or transformers'
        )
    left_out: list[str] = []
    if any(key.startswith('backbone.') for key in state_dict):  # a whole model of OpenMMLab
        parts = ('backbone.', 'head.fc.')
        left_out = [key for key in state_dict if not key.startswith(parts)]
        # mmpretrain's TIMMBackbone holds timm's network as its timm_model.
        state_dict = {
            key.removeprefix('backbone.').removeprefix('timm_model.'): value
            for key, value in state_dict.items()
            if key.startswith(parts)
        }
    renamed: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        name = _ORIGINAL.sub(_from_original, key)
        for pattern, ours in _RENAMES:
            name = pattern.sub(ours, name)
        if re.search(r'\.fc\d\.weight$', name):
            value = value.flatten(1)  # a convolution of 1 x 1 in mmdet
        if '.dwconv.weight' in name:
            middle = torch.zeros_like(value, dtype=torch.float64)
            middle[..., value.shape[-2] // 2, value.shape[-1] // 2] = 1
            value = (value.double() - middle).to(torch.promote_types(value.dtype, torch.float32))
        renamed[name] = value
    dtype = torch.float32
    for value in renamed.values():
        dtype = torch.promote_types(dtype, value.dtype)
    return {key: value.to(dtype) for key, value in _with_kv(renamed).items()}, tuple(left_out)


def _from_original(match: re.Match[str]) -> str:
    """The original counts stages from 1."""
    part = 'blocks' if match[1] == 'block' else match[1]
    return f'stages.{int(match[2]) - 1}.{part}.'


def _with_kv(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, and keys and values in one, where mmdet has all three and transformers each."""
    joined: dict[str, Tensor] = {}
    for key, value in weights.items():
        if '.attn.in_proj.' in key:
            q, kv = value.split([len(value) // 3, len(value) - len(value) // 3])
            joined[key.replace('in_proj', 'q')] = q
            joined[key.replace('in_proj', 'kv')] = kv
        elif '.attn.key.' in key:
            values = weights.get(key.replace('.key.', '.value.'))
            if values is None:
                raise CheckpointError(f'these weights have {key} without values; give them whole')
            joined[key.replace('.key.', '.kv.')] = torch.cat([value, values])
        elif '.attn.value.' not in key:
            joined[key] = value
    return joined


def _body(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """What the weights say of the body: all of an arch but the heads."""
    body: dict[str, list[int]] = {
        key: [] for key in ('embed_dims', 'depths', 'mlp_ratios', 'reductions')
    }
    for stage in range(4):
        blocks = [int(m[2]) for m in map(_BLOCK.match, weights) if m and int(m[1]) == stage]
        first = f'stages.{stage}.blocks.0'
        missing = [
            key
            for key in (f'stages.{stage}.patch_embed.proj.weight', f'{first}.mlp.fc1.weight')
            if key not in weights
        ]
        if missing:
            raise CheckpointError(
                f'these weights are not a whole PVTv2: {missing[0]} is missing by any of its '
                'names; give a whole file'
            )
        dim = len(weights[f'stages.{stage}.patch_embed.proj.weight'])
        reduce = weights.get(f'{first}.attn.sr.weight')
        if reduce is not None and (stage == 3 or reduce.shape[-1] == 1):
            raise CheckpointError(
                "these weights are of a '_li' variant, which pools its keys and has one more "
                'activation; give those of pvt_v2_b0 to pvt_v2_b4'
            )
        body['embed_dims'].append(dim)
        body['depths'].append(max(blocks) + 1)
        body['mlp_ratios'].append(len(weights[f'{first}.mlp.fc1.weight']) // dim)
        body['reductions'].append(1 if reduce is None else reduce.shape[-1])
    return {key: tuple(values) for key, values in body.items()}


def _target(source: Mapping[str, tuple[int, ...]], arch: Arch | None) -> Arch:
    """The variant to make of a body.

    Raises:
        CheckpointError: If there is none, or another is asked for.
    """
    if isinstance(arch, Mapping):
        wrong = [key for key, values in source.items() if tuple(arch.get(key, ())) != values]
        if wrong:
            raise CheckpointError(
                f'the source has {wrong[0]} {source[wrong[0]]}, not '
                f'{tuple(arch.get(wrong[0], ()))}; give its own'
            )
        return arch
    fitting = [
        name
        for name in ARCHS
        if name.startswith('pvt_v2') and all(ARCHS[name][k] == v for k, v in source.items())
    ]
    if not fitting:
        why = f'its dims are {source["embed_dims"]}, its depths {source["depths"]}'
        if source['mlp_ratios'] != ARCHS['pvt_v2_b0']['mlp_ratios']:
            why = f"its MLP ratios are {source['mlp_ratios']}, as b5's and MiT's, not (8, 8, 4, 4)"
        raise CheckpointError(
            f'the source is none of pvt_v2_b0 to pvt_v2_b4: {why}; give one of these, or its own '
            'body as a dict'
        )
    (found,) = fitting
    if arch in (None, found):
        return found
    if arch in ('tiny', 'small'):
        raise CheckpointError(
            f'arch {arch} fits PVTv2 by a third only: its stage 3 is 256 wide, not 320; use {found}'
        )
    if arch == 'base' and found == 'pvt_v2_b3':
        return arch
    raise CheckpointError(
        f'arch {arch} does not fit the source, which is {found}; use {found}'
        + (', or base from pvt_v2_b3' if arch == 'base' else '')
    )


def _with_identity_blocks(
    weights: dict[str, Tensor], depths: Sequence[int], wanted: Sequence[int]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Ends stages that are short of blocks with copies of their last whose branches give 0.

    Returns:
        All weights, and the beginnings of the copies' keys.
    """
    made, copies = dict(weights), []
    for stage, (depth, depth_wanted) in enumerate(zip(depths, wanted, strict=True)):
        last = f'stages.{stage}.blocks.{depth - 1}.'
        for block in range(depth, depth_wanted):
            copies.append(f'stages.{stage}.blocks.{block}.')
            for key in [key for key in weights if key.startswith(last)]:
                name = key.removeprefix(last)
                ends = name.startswith(('attn.proj.', 'mlp.fc2.'))
                made[copies[-1] + name] = weights[key] * 0 if ends else weights[key]
    return made, tuple(copies)


def _window_network(arch: Arch, weights: Mapping[str, Tensor]) -> ClusTR:
    """PVTv2's network, from weights by our names.

    Raises:
        CheckpointError: If there are too few or too many.
    """
    stem = weights['stages.0.patch_embed.proj.weight']
    network = ClusTR(arch, stem.shape[1], drop_path_rate=0)
    for stage in network.stages:
        for block in cast('list[Block]', cast(Stage, stage).blocks):
            if isinstance(block.attn, ClusterAttention):
                attention: Any = WindowAttention(
                    block.attn.q.in_features, block.attn.num_heads, block.attn.reduction
                )
                block.attn = attention
    if unexpected := load_strictly(network.to(stem.dtype), weights, source='the source'):
        raise CheckpointError(
            f'the source has {len(unexpected)} weights that PVTv2 has not, such as '
            f'{unexpected[0]}; give those of pvt_v2_b0 to pvt_v2_b4'
        )
    return network.eval()
