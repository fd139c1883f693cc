"""The mini data set, and the checks of data sets and their files.

Importing this package registers `CheckedLoad` and no more: the scene generator needs OpenCV, which
the backbone does not, and is imported where it is used.
"""

from clustr_mm.datasets.check import DataNotFoundError, check_data_root, check_paths
from clustr_mm.datasets.faults import failed_sample, sample_fault
from clustr_mm.datasets.images import image_fault
from clustr_mm.datasets.transforms import CheckedLoad, DataFileError, guard_dataset, guard_pipeline

__all__ = [
    'CheckedLoad',
    'DataFileError',
    'DataNotFoundError',
    'check_data_root',
    'check_paths',
    'failed_sample',
    'guard_dataset',
    'guard_pipeline',
    'image_fault',
    'sample_fault',
]
