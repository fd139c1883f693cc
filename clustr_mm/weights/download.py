"""Files at http(s) addresses, fetched once and kept."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from urllib.parse import urlsplit

import torch
from mmengine.dist import barrier, is_main_process


def download(address: str) -> Path:
    """Fetches a file into torch.hub's folder, unless it is there.

    Of several processes the first one fetches, and the others wait for it.

    Args:
        address: Beginning with http:// or https://.

    Returns:
        Path of the file; files of one name from different addresses are kept apart.

    Raises:
        ValueError: If the address is of another kind.
        OSError: If it cannot be reached, or the file not written.
    """
    parts = urlsplit(address)
    if parts.scheme not in ('http', 'https'):
        raise ValueError(
            f'{parts.scheme}:// is none of http:// and https://; download the file and give its '
            'path'
        )
    place = hashlib.sha256(address.encode()).hexdigest()[:16]
    path = Path(torch.hub.get_dir()) / 'clustr_mm' / place / (Path(parts.path).name or 'file')
    if is_main_process() and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under a temporary name until it is there.
        torch.hub.download_url_to_file(address, str(path), progress=sys.stderr.isatty())
    barrier()
    if not path.is_file():  # another machine's folder
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(path), progress=False)
    return path
