# Mini runs of seven epochs: a warm-up of 100 iterations, then the rate goes straight down to 0.
seven_epochs = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=100, by_epoch=False),
    dict(
        type='PolyLR',
        power=1.0,
        eta_min=0.0,
        begin=0,
        end=7,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
