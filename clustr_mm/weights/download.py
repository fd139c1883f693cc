"""Files that an address names, as files of this machine."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import torch


@contextmanager
def local_file(source: str) -> Iterator[Path]:
    """Yields a path under which a source can be read; remote ones are fetched.

    A file from http(s) is kept, unless what reads it raises a ValueError: a download cut short
    would be found again the next time.

    Args:
        source: A path; an address that begins with http:// or https://; or one of a scheme that
            mmengine's file backends know, such as s3:// or petrel://, where mmengine is installed.

    Yields:
        The path, which for a path may be of nothing.

    Raises:
        OSError: If the source cannot be fetched.
    """
    if '://' not in source:
        yield Path(os.path.expanduser(source))
    elif source.startswith(('http://', 'https://')):
        try:
            path = download(source)
        except (ValueError, HTTPException) as error:  # an address that is none, for example
            raise OSError(f'{type(error).__name__}: {error}') from error
        try:
            yield path
        except ValueError:
            path.unlink(missing_ok=True)
            raise
    else:
        with ExitStack() as stack:
            try:
                from mmengine.fileio import get_local_path

                path = Path(stack.enter_context(get_local_path(source)))
            except Exception as error:  # there is no end to what a client of a storage raises
                scheme = source.partition('://')[0]
                raise OSError(
                    f"mmengine's file backend for {scheme}:// fails with {type(error).__name__}: "
                    f'{error}; download the file and give its path'
                ) from error
            yield path


def download(address: str) -> Path:
    """Fetches a file by http(s) into torch.hub's folder, unless it is there.

    Of several processes on a file system one fetches, and the others wait for it.

    Returns:
        Its path; files of one name from different addresses are kept apart.

    Raises:
        OSError: If the address cannot be reached, or the file not written.
    """
    place = hashlib.sha256(address.encode()).hexdigest()[:16]
    folder = Path(torch.hub.get_dir()) / 'clustr_mm' / place
    path = folder / (Path(urlsplit(address).path).name or 'file')
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / '.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            # Under a temporary name until it is there.
            torch.hub.download_url_to_file(address, str(path), progress=sys.stderr.isatty())
    return path
