"""What the check on a GPU reads, and how large it is: in full, and tiny for a CPU."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from clustr_mm.analysis.growth import TOKENS, TOKENS_AT_800_1333


@dataclass(frozen=True)
class Reading:
    """A figure.

    Attributes:
        part: The part that read it.
        subject: Of what.
        quantity: What, with its unit.
        value: The figure; None where there is none.
        note: Why there is none, or what there is to know.
    """

    part: str
    subject: str
    quantity: str
    value: float | None
    note: str = ''

    def row(self) -> dict[str, object]:
        """The figure as a line of a table."""
        return asdict(self)


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        tokens: Of the clustering by itself: 800 x 1333 at stage 1.
        channels: Of these tokens.
        few: (B, N, C) of the tokens that are clustered in one launch: 224 x 224 at stage 3.
        checked: (B, N, C) of the tokens whose labels are compared with the definition's.
        mlp: (B, H, W, C) of the tokens inside the MLP.
        attention: (B, N, M, M, heads) of the attention to two scales, heads of 64 channels.
        kernels: How many a profile lists.
        repeats: Runs whose results must be equal.
        ceiling: Side of the matrices that tell what the device does at most.
        model: The ClusTR.
        baseline: What it is compared with.
        peers: Further backbones.
        batch: Images of 224 x 224.
        side: 224.
        alone: Batch, height and width of the training steps of backbones by themselves.
        upernet: Batch, height and width.
        mask_rcnn: Batch, height and width.
        overrides: Of Mask R-CNN's config.
        rounds: Of interleaved timing.
        dtype: Half precision.
        compile_mode: See ``backbone_step``.
        growth: Numbers of tokens.
        tiles: Rows, columns and warps to try.
    """

    tokens: int = TOKENS_AT_800_1333
    channels: int = 64
    few: tuple[int, int, int] = (64, 196, 256)
    checked: tuple[tuple[int, int, int], ...] = (
        (1, 3136, 64),
        (3, 777, 63),
        (8, 784, 128),
        (16, 196, 256),
        (1, 1041, 320),
    )
    mlp: tuple[tuple[int, int, int, int], ...] = (
        (64, 56, 56, 512),
        (64, 14, 14, 1024),
        (2, 200, 334, 512),
        (3, 13, 7, 100),
    )
    attention: tuple[tuple[int, int, int, int, int], ...] = (
        (64, 3136, 49, 196, 1),
        (64, 784, 49, 196, 2),
        (64, 196, 49, 196, 4),
        (8, 1024, 256, 1024, 4),
    )
    kernels: int = 20
    repeats: int = 20
    ceiling: int = 8192
    model: str = 'clustr_s'
    baseline: str = 'pvtv2_b2'
    peers: tuple[str, ...] = ('swin_t',)
    batch: int = 64
    side: int = 224
    alone: tuple[tuple[int, int, int], ...] = ((8, 512, 512), (2, 800, 1344))
    upernet: tuple[int, int, int] = (8, 512, 512)
    mask_rcnn: tuple[int, int, int] = (2, 800, 1333)
    overrides: tuple[tuple[str, int], ...] = ()
    rounds: int = 5
    dtype: torch.dtype = torch.float16
    compile_mode: str = 'reduce-overhead'  # CUDA graphs: the host launches no kernels
    growth: tuple[int, ...] = TOKENS
    tiles: tuple[tuple[int, int, int], ...] = (
        (128, 64, 8),
        (128, 32, 8),
        (128, 128, 8),
        (64, 64, 4),
        (64, 32, 4),
    )


FULL = Sizes()
TINY = Sizes(
    tokens=60,
    channels=16,
    few=(2, 33, 7),
    checked=((2, 33, 7),),
    mlp=((2, 5, 7, 20),),
    attention=((2, 20, 3, 12, 1),),
    kernels=3,
    repeats=1,
    ceiling=64,
    model='clustr_t',
    baseline='resnet50',
    peers=(),
    batch=2,
    side=32,
    alone=((1, 64, 32),),
    upernet=(2, 64, 64),
    mask_rcnn=(1, 64, 64),
    overrides=(
        ('model.train_cfg.rcnn.sampler.num', 4),
        ('model.train_cfg.rpn_proposal.max_per_img', 8),
    ),
    rounds=1,
    dtype=torch.bfloat16,
    compile_mode='aot_eager',
    growth=(200, 400),
    tiles=((64, 32, 4),),
)
