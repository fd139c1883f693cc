"""FSDP: each process keeps a share of every weight, its gradient and the optimizer's moments."""

import os
from functools import partial
from typing import Any

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.device import get_device
from mmengine.registry import STRATEGIES
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from clustr_mm.engine.checkpoints import check_training_state
from clustr_mm.engine.devices import replace_sync_batchnorm
from clustr_mm.models.clustr import Stage
from clustr_mm.weights.files import CheckpointError, read_checkpoint, state_dict_of

# A stage is the smallest part that the backbone runs by its forward method alone: a block's
# clusters are found outside of it. Heads are called by their loss method, so they stay with the
# whole model.
_BY_STAGE = partial(transformer_auto_wrap_policy, transformer_layer_cls={Stage})


@STRATEGIES.register_module()
class StrictFSDPStrategy(FSDPStrategy):
    """mmengine's FSDPStrategy for ClusTR: on a GPU or a CPU, with whole and strict checkpoints.

    A checkpoint is one file with the whole model, the same as without FSDP: test.py, one GPU or
    any number of them take it.

    Args:
        model_wrapper: Arguments of ``MMFullyShardedDataParallel``. By default each stage of the
            backbone is a unit, whose weights are gathered when it runs.
        kwargs: As for ``FSDPStrategy``, except that ``state_dict_cfg`` is always 'full'.
    """

    def __init__(self, *, model_wrapper: dict | None = None, **kwargs: Any) -> None:
        wrapper = dict(type='MMFullyShardedDataParallel', auto_wrap_policy=_BY_STAGE)
        super().__init__(
            model_wrapper={**wrapper, **(model_wrapper or {})}, state_dict_cfg='full', **kwargs
        )
        if get_device() == 'cpu':
            # "Offloaded" from the CPU to the CPU is not copied: it is memory that FSDP frees.
            self.state_dict_config.offload_to_cpu = False
            self.optim_state_dict_config.offload_to_cpu = False

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if get_device() == 'cpu':
            model = replace_sync_batchnorm(model, self.logger)
            self.model_wrapper['device_id'] = torch.device('cpu')
        return super()._wrap_model(model)

    def build_optim_wrapper(self, optim_wrapper: Any, model: Any = None) -> Any:
        """Builds the optimizer; its gradient clipping measures the whole gradient.

        torch's own function would clip each process by the norm of its share.

        Args:
            optim_wrapper: The config's ``optim_wrapper``.
            model: The wrapped model.

        Returns:
            BaseOptimWrapper: The optimizer's wrapper.
        """
        wrapper = super().build_optim_wrapper(optim_wrapper, model)
        # Without clip_grad an OptimWrapper has no such attribute.
        if getattr(wrapper, 'clip_func', None) is nn.utils.clip_grad_norm_:
            wrapper.clip_func = self._clip_grad_norm
        return wrapper

    def _clip_grad_norm(
        self, parameters: Any, max_norm: float, norm_type: float = 2.0, **_: Any
    ) -> Tensor:
        return self.model.clip_grad_norm_(max_norm, norm_type)

    def model_state_dict(self) -> dict:
        """Gathers the model's weights.

        Returns:
            dict: All tensors by key in the first process; none in the others.
        """
        # FSDP leaves a mark on each tensor, which torch.save would write as a class of its own.
        return {key: value.detach() for key, value in super().model_state_dict().items()}

    def optim_state_dict(self) -> dict:
        """Gathers the optimizer's state.

        Returns:
            dict: The whole state by parameter name in the first process; empty in the others.
        """
        state = FullyShardedDataParallel.optim_state_dict(self.model, self.optim_wrapper.optimizer)
        # The rate without a parameter's own factors: the schedules work on it, too.
        if self.optim_wrapper.base_param_settings is not None:
            state['base_param_settings'] = self.optim_wrapper.base_param_settings
        return state

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Shares the optimizer's state out.

        By name: torch 2.1 changed the order of the arguments that mmengine gives.

        Args:
            state_dict: What ``optim_state_dict`` returned in the first process.
        """
        state_dict = dict(state_dict)
        base = state_dict.pop('base_param_settings', None)
        share = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict
        )
        if base is not None:
            share['base_param_settings'] = base
        self.optim_wrapper.load_state_dict(share)

    def load_checkpoint(self, filename: str, *, callback: Any = None, **kwargs: Any) -> dict:
        """Loads a checkpoint, strictly, and runs nothing that it contains.

        Args:
            filename: Path of the checkpoint.
            callback: Called with the checkpoint before it is used.
            kwargs: Not used: the tensors go where the model is, and loading is strict.

        Returns:
            dict: The checkpoint without its weights.

        Raises:
            CheckpointError: If it cannot be read, or does not fit the model.
        """
        checkpoint = read_checkpoint(filename)
        if callback is not None:
            callback(checkpoint)
        state_dict = state_dict_of(checkpoint, filename)
        try:
            self.model.load_state_dict(state_dict, strict=True)
        except RuntimeError as error:
            raise CheckpointError(
                f'{filename} does not fit this model: {" ".join(str(error).split())[:300]}; use '
                'the variant that it was saved from'
            ) from error
        self.logger.info(f'Load checkpoint from {os.path.abspath(filename)}')
        return {key: value for key, value in checkpoint.items() if key != 'state_dict'}

    def resume(self, filename: str, *, callback: Any = None, **kwargs: Any) -> dict:
        """Goes on from a checkpoint.

        Args:
            filename: Path of the checkpoint.
            callback: Called with the checkpoint before it is used.
            kwargs: As for ``FSDPStrategy.resume``.

        Returns:
            dict: The checkpoint without what has been used.

        Raises:
            CheckpointError: If it cannot be read, or does not fit the model.
            UserError: If it holds weights only.
        """

        def check(checkpoint: dict) -> None:
            check_training_state(checkpoint, filename)
            # Old versions of mmengine kept a config there, and resuming runs it.
            checkpoint['meta'].pop('config', None)
            if callback is not None:
                callback(checkpoint)

        return super().resume(filename, callback=check, **kwargs)
