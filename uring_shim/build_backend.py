"""The project's build backend (PEP 517, PEP 660): setuptools' own, with the cffi module added.

pyproject.toml has no key for cffi modules; it has everything else. Without a setup.py, only the class that implements
setuptools' hooks can add a keyword of setup().
"""

import sys

from setuptools.build_meta import _BuildMetaBackend

import build_ffi


class Backend(_BuildMetaBackend):
    """setuptools' backend with build_ffi in the place of a setup.py."""

    def run_setup(self, setup_script: str = "setup.py") -> None:
        """Every hook ends up here, with the command line to run in sys.argv."""
        build_ffi.setup(sys.argv[1:])


_backend = Backend()

get_requires_for_build_sdist = _backend.get_requires_for_build_sdist
get_requires_for_build_wheel = _backend.get_requires_for_build_wheel
get_requires_for_build_editable = _backend.get_requires_for_build_editable
prepare_metadata_for_build_wheel = _backend.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = _backend.prepare_metadata_for_build_editable
build_sdist = _backend.build_sdist
build_wheel = _backend.build_wheel
build_editable = _backend.build_editable
