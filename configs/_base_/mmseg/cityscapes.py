# mmseg's Cityscapes: 2,975 images of 2048x1024 to train on and 500 to validate on, 19 classes,
# crops of 1024x512 (segformer.py says why not `mmseg::`).
_base_ = __import__('mmseg').__path__[0] + '/.mim/configs/_base_/datasets/cityscapes.py'
