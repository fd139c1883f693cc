"""Puts the configs and tools into the wheel; pyproject.toml says everything else."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigsAndTools(build_py):
    """Copies configs/, tools/ and model-index.yml to clustr_mm/.mim/, as OpenMMLab's packages do.

    The copies are made in the build folder alone. An editable install reads the originals.
    """

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        # A build folder that an earlier build left would add its deleted modules to the wheel.
        package = Path(self.build_lib, 'clustr_mm')
        shutil.rmtree(package, ignore_errors=True)
        super().run()
        for folder in ('configs', 'tools'):
            shutil.copytree(
                folder, package / '.mim' / folder, ignore=shutil.ignore_patterns('__pycache__')
            )
        shutil.copy('model-index.yml', package / '.mim')  # where `mim search` looks


setup(cmdclass={'build_py': BuildWithConfigsAndTools})
