# mmseg's Mask2Former on ADE20K, data, schedule and hooks included (segformer.py says why not
# `mmseg::`).
_base_ = (
    __import__('mmseg').__path__[0]
    + '/.mim/configs/mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'
)
