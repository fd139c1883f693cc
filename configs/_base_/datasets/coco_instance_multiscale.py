# COCO 2017 with short sides of 480 to 800 pixels, and crops.
_base_ = './coco_instance.py'
scales = [(side, 1333) for side in range(480, 801, 32)]
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='RandomFlip', prob=0.5),
            # Half of the images are scaled; the others are scaled, cropped and scaled again.
            dict(
                type='RandomChoice',
                transforms=[
                    [dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)],
                    [
                        dict(
                            type='RandomChoiceResize',
                            scales=[(400, 1333), (500, 1333), (600, 1333)],
                            keep_ratio=True,
                        ),
                        dict(
                            type='RandomCrop',
                            crop_type='absolute_range',
                            crop_size=(384, 600),
                            allow_negative_crop=True,
                        ),
                        dict(type='RandomChoiceResize', scales=scales, keep_ratio=True),
                    ],
                ],
            ),
            dict(type='PackDetInputs'),
        ]
    )
)
