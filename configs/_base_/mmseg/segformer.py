# mmseg's SegFormer, the model alone. Not `mmseg::`: mmengine looks for that in a distribution named
# mmsegmentation, which onedl-mmsegmentation is not. This finds either.
_base_ = __import__('mmseg').__path__[0] + '/.mim/configs/_base_/models/segformer_mit-b0.py'
