# Norms of the backbone for Mask2Former's optimizer: no decay, and like the rest of the backbone a
# tenth of the rate. A name that says just `backbone` would bring the decay back; the longest wins.
backbone_norms = {
    f'.norm{n}.{kind}': dict(lr_mult=0.1, decay_mult=0.0)
    for n in ('', 1, 2)
    for kind in ('weight', 'bias')
}
