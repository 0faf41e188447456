"""Build of the package; the metadata stands in pyproject.toml."""

import os
import runpy
import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info

ROOT = Path(__file__).parent
# By its path: importing dip_fast.ops would load the extension, or build it.
building = runpy.run_path(str(ROOT / "dip_fast" / "ops" / "building.py"))


class BuildPython(build_py):
    def run(self):
        # setuptools leaves in build/ what a former version of the package had, and packs it.
        shutil.rmtree(Path(self.build_lib) / "dip_fast", ignore_errors=True)
        super().run()


class BuildExtension(build_ext):
    """Builds the library of operators, which depends on the version of torch and not on Python's."""

    def get_ext_filename(self, fullname):
        import torch

        return str(Path(*fullname.split(".")).with_name(building["shipped_name"](torch.__version__)))

    def build_extension(self, ext):
        building["build"](Path(self.get_ext_fullpath(ext.name)), Path(self.build_temp))

    def copy_extensions_to_source(self):  # of an editable install
        super().copy_extensions_to_source()
        for ext in self.extensions:
            library = Path(self.build_lib) / self.get_ext_filename(ext.name)
            shutil.copy(building["record_path"](library), ROOT / "dip_fast")


class Metadata(egg_info):
    def finalize_options(self):
        # A wheel with CUDA kernels is version 0.1.0+cu130, as torch's are (.ci/build_wheel.py).
        if local := os.environ.get("DIP_FAST_LOCAL_VERSION"):
            self.tag_build = f"+{local}"
        super().finalize_options()


class Wheel(bdist_wheel):
    def get_tag(self):
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


missing = building["missing"]()
if missing is not None:
    print(
        f"dip-fast: installing without compiled operators, {missing}; they are compiled on first use", file=sys.stderr
    )

sources = {}
for path in building["read_sources"](ROOT / "csrc"):
    sources[".".join(["dip_fast._csrc", *path.parent.parts])] = [f"*{suffix}" for suffix in building["SUFFIXES"]]

setup(
    packages=[*find_packages(include=["dip_fast*"]), *sources],
    package_dir={"dip_fast._csrc": "csrc"},  # the sources travel along, for the build on first use
    package_data={**sources, "dip_fast": ["py.typed", "data/*"]},
    include_package_data=False,  # else csrc/test, which only the source distribution needs, would come too
    ext_modules=[] if missing is not None else [Extension("dip_fast._C", sources=[])],
    cmdclass={"bdist_wheel": Wheel, "build_py": BuildPython, "build_ext": BuildExtension, "egg_info": Metadata},
)
