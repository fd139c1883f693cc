"""The mini data set, and the checks of data sets and their files.

Importing this package imports no decoder: the mini data set's generator needs OpenCV, and is
imported as `clustr_mm.datasets.mini`; the thorough look is `clustr_mm.datasets.audit`.
"""

from clustr_mm.datasets.check import DataNotFoundError, check_paths
from clustr_mm.datasets.faults import failed_sample, sample_fault
from clustr_mm.datasets.labels import label_report

__all__ = ['DataNotFoundError', 'check_paths', 'failed_sample', 'label_report', 'sample_fault']
