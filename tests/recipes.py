"""What the tests of the configs share."""

from mmengine.optim import build_optim_wrapper
from torch import nn


def assert_decay_spares(cfg, model, norms=True, biases=False):
    """Builds the config's optimizer: it decays all parameters but those of norms, or all biases."""
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    decay = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    full = cfg.optim_wrapper.optimizer.weight_decay
    for module in model.modules():
        norm = isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm)
        for name, parameter in module.named_parameters(recurse=False):
            spared = (norms and norm) or (biases and name == 'bias')
            assert decay[id(parameter)] == (0 if spared else full), (type(module), name)
