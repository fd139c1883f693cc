"""Draws what the rows of a study found in its test images: truth, each row, clusters.

    python tools/analysis/side_by_side.py STUDY [--rows clustr pvtv2_b0] [--seed 0] [--images 10]
        [--data-root DIR] [--work-dir work_dirs/compare] [--out DIR]

The rows are those that compare.py has trained into --work-dir; the images are the first ones by the
order of their file names. Each becomes a picture: the truth and what each model found, as the
library's own visualizer draws them, and the coarse clusters of ClusTR's first stage, where a row
has them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from PIL import Image
from torch import nn

from clustr_mm.analysis.parameters import build_model
from clustr_mm.analysis.study import Run, config_of, load_study
from clustr_mm.analysis.trials import Trials
from clustr_mm.datasets.pixels import rgb_or_bands
from clustr_mm.engine.config import library_of
from clustr_mm.engine.errors import UserError, near, run_tool
from clustr_mm.engine.options import Parser
from clustr_mm.models import ClusTR
from clustr_mm.visualization import draw_clusters, read_photo
from clustr_mm.visualization.clusters import bare_axes, rendered
from clustr_mm.weights.files import load_strictly, read_checkpoint, state_dict_of


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('study', help="compare.py's")
    parser.add_argument('--rows', nargs='+', default=['clustr', 'pvtv2_b0'], metavar='ROW')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--images', type=int, default=10, metavar='N')
    parser.add_argument('--data-root', metavar='DIR', help="the data set, in place of the config's")
    parser.add_argument('--work-dir', default='work_dirs/compare', metavar='DIR')
    parser.add_argument('--out', default='work_dirs/side_by_side', metavar='DIR')
    return parser.parse_args(argv)


def load_model(cfg: Config, run: Run, trials: Trials) -> nn.Module:
    """Builds a run's model with the weights that it ended with."""
    last = trials.work_dir / run.name / 'last_checkpoint'
    if not last.is_file():
        raise UserError(f'{last} does not exist; let compare.py train the row {run.row} first')
    if cfg.model.get('data_preprocessor') is None:
        cfg.model.data_preprocessor = cfg.data_preprocessor
    model, checkpoint = build_model(cfg), last.read_text().strip()
    load_strictly(model, state_dict_of(read_checkpoint(checkpoint), checkpoint), '', checkpoint)
    return model.eval()


class Painter:
    """Draws samples with the visualizer of a config.

    Args:
        cfg: The config.
        metainfo: The data set's.
    """

    def __init__(self, cfg: Config, metainfo: dict[str, Any]) -> None:
        self.visualizer = VISUALIZERS.build({**cfg.visualizer, 'vis_backends': None})
        if library_of(cfg) == 'mmpose':
            self.visualizer.set_dataset_meta(metainfo)
        else:
            self.visualizer.dataset_meta = metainfo

    def paint(self, image: np.ndarray, sample: Any, truth: bool) -> np.ndarray:
        """Draws a sample's truth, or else its prediction, over its image (H, W, 3), RGB."""
        how = dict(draw_gt=truth, draw_pred=not truth)
        with tempfile.TemporaryDirectory() as folder:
            file = f'{folder}/drawn.png'
            if hasattr(self.visualizer, 'visualize_cls'):
                self.visualizer.visualize_cls(image, sample, resize=320, out_file=file, **how)
            else:
                self.visualizer.add_datasample('drawn', image, sample, out_file=file, **how)
            return np.asarray(Image.open(file).convert('RGB'))


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    if options.images < 1:
        raise UserError(f'--images is {options.images}; use at least 1')
    warnings.filterwarnings('ignore')
    study = load_study(options.study)
    trials = Trials(study, 'docs/records', options.work_dir, options.data_root)
    models = {}
    for row in options.rows:
        if row not in study.rows:
            raise UserError(f'--rows {row}: not in the study{near(row, study.rows)}')
        run = next((run for run in study.runs(row, None) if run.seed == options.seed), None)
        if run is None:
            raise UserError(
                f'--seed {options.seed}: row {row} has {", ".join(map(str, study.seeds_of(row)))}'
            )
        cfg = config_of(study, run, options.data_root)
        models[row] = load_model(cfg, run, trials)
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    paths = [Path(dataset.get_data_info(index)['img_path']) for index in range(len(dataset))]
    first = sorted(range(len(paths)), key=lambda index: (paths[index].name, paths[index]))
    painter = Painter(cfg, dataset.metainfo)
    out = Path(options.out, study.name)
    out.mkdir(parents=True, exist_ok=True)
    for number, index in enumerate(first[: options.images], 1):
        batch = pseudo_collate([dataset[index]])
        cells: dict[str, np.ndarray] = {}
        for row, model in models.items():
            with torch.no_grad():
                (sample,) = model.test_step(batch)
            image = read_photo(sample.img_path, None)
            cells.setdefault('truth', painter.paint(image, sample, truth=True))
            cells[row] = painter.paint(image, sample, truth=False)
        for row, model in models.items():
            if isinstance(model.backbone, ClusTR):
                with torch.no_grad():
                    inputs = model.data_preprocessor(batch, False)['inputs']
                    labels = model.backbone.cluster_maps(inputs)[0][-1][0][0].numpy()
                # Over what the network saw: a person's box, or an image with padding.
                seen = batch['inputs'][0].numpy().transpose(1, 2, 0)
                lack = [
                    (0, size - own) for size, own in zip(inputs.shape[2:], seen.shape, strict=False)
                ]
                seen = rgb_or_bands(np.pad(seen, (*lack, (0, 0))))
                cells[f'{labels.max() + 1} clusters of {row}'] = draw_clusters(seen, labels)
        figure = Figure(figsize=(3.6 * len(cells), 3.6), layout='constrained')
        for axes, (title, picture) in zip(
            figure.subplots(1, len(cells)), cells.items(), strict=True
        ):
            bare_axes(axes, picture, title)
        figure.suptitle(paths[index].name)
        # Numbered: people of one image, and images of several folders, share a name.
        path = out / f'{number}_{paths[index].stem}.png'
        Image.fromarray(rendered(figure)).save(path)
        print(path, flush=True)


if __name__ == '__main__':
    sys.exit(run_tool(main))
