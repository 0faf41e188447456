"""Compiling the extension, ahead of time (setup.py) and just in time (extension.py): one way for both.

A build is a library and, beside it, a record of what it was made from and for.  ``torch.utils.cpp_extension`` says
where torch's headers and libraries are and which compiler to use; the ninja file is our own, as the kernels need
flags of their own for each file (csrc/sources.txt), which neither its ``load`` nor its ``BuildExtension`` can give.

This file knows nothing of the package around it: setup.py runs it from its path.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

# -fopenmp: without it at::parallel_for is compiled as a plain loop, without a word.
# No -march=native (the build may move to another machine) and no -ffast-math (infinities and NaNs must pass).
# -fno-trapping-math: nobody reads the flags of floating-point exceptions, which keep `u > 0 ? u : slope * u` from being
# vectorised.
COMPILE_FLAGS = [
    "-std=c++20",
    "-O3",
    "-fno-trapping-math",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
]
LINK_FLAGS = ["-shared", "-fopenmp", "-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"]
SUFFIXES = {".cpp", ".h", ".txt"}


class BuildError(RuntimeError):
    """The extension could not be compiled; the message holds what the compiler said."""


def source_folder() -> Path:
    """Find the C++ sources: ``_csrc`` in an installed package, ``csrc`` at the root of a checkout."""
    installed = Path(__file__).parents[1] / "_csrc"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "csrc"


def read_sources(folder: Path) -> dict[Path, list[str]]:
    """Read ``sources.txt``: on each line a file, relative to the folder, and the flags that it alone needs."""
    lines = (line.partition("#")[0].split() for line in (folder / "sources.txt").read_text().splitlines())
    return {Path(words[0]): words[1:] for words in lines if words}


def target() -> dict[str, str]:
    """Describe what a build must have been made for to be loaded by this process."""
    import torch

    digest = hashlib.sha256()
    folder = source_folder()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.suffix in SUFFIXES and name.parts[0] != "test":
            digest.update(f"{name.as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return {
        "torch": str(torch.__version__),  # torch promises no stable C++ ABI between versions
        "python": str(sysconfig.get_config_var("SOABI")),
        "flags": " ".join(COMPILE_FLAGS + LINK_FLAGS),
        "sources": digest.hexdigest(),
    }


def record_path(library: Path) -> Path:
    """Name the record that stands beside a library."""
    return library.with_name("_C.json")


def read_record(library: Path) -> dict[str, str]:
    """Read the record of a build; empty where there is no complete build."""
    try:
        return json.loads(record_path(library).read_text()) if library.is_file() else {}
    except (OSError, ValueError):
        return {}


def missing() -> str | None:
    """Say which tool a build lacks here, None if it lacks nothing."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return "torch is not installed"
    if shutil.which(_compiler()[0]) is None:
        return f"there is no C++ compiler ({_compiler()[0]}; CXX names another)"
    if _ninja() is None:
        return "ninja is not installed"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return None if header.is_file() else f"the headers of Python are not installed ({header})"


def build(library: Path, work: Path) -> None:
    """Compile the extension; what an earlier build left in the work folder is used again where it is up to date.

    Parameters
    ----------
    library : Path
        The file to write; replaced in one piece, and its record after it.
    work : Path
        The folder for the object files.

    Raises
    ------
    BuildError
        If a tool is missing or the compiler fails.
    """
    if (lacking := missing()) is not None:
        raise BuildError(lacking)
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    made_for = target()
    (work / "build.ninja").write_text(_ninja_file(source_folder().resolve(), made_for))
    jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []  # the name torch gave it
    command = [str(_ninja()), "-C", str(work), *jobs]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode != 0:
        raise BuildError(f"compiling failed:\n{result.stdout}")

    version = subprocess.run([*_compiler(), "--version"], capture_output=True, text=True, check=False)
    record = made_for | {"compiler": version.stdout.partition("\n")[0]}
    library.parent.mkdir(parents=True, exist_ok=True)
    record_path(library).unlink(missing_ok=True)
    # Not written in place: a process may have the old file mapped.
    scratch = library.with_name(library.name + ".new")
    shutil.copyfile(work / "_C.so", scratch)
    scratch.replace(library)
    record_path(library).write_text(json.dumps(record, indent=1) + "\n")


def _compiler() -> list[str]:
    from torch.utils.cpp_extension import get_cxx_compiler

    return shlex.split(get_cxx_compiler())


def _ninja() -> Path | None:
    """Find ninja: that of the Python package, which is not on PATH in a virtual environment that is not activated."""
    try:
        import ninja

        return Path(ninja.BIN_DIR) / "ninja"
    except ImportError:
        found = shutil.which("ninja")
        return None if found is None else Path(found)


def _ninja_file(folder: Path, made_for: dict[str, str]) -> str:
    from torch.utils.cpp_extension import include_paths, library_paths

    includes = [f"-I{folder}"]
    for path in [*include_paths(), sysconfig.get_path("include")]:
        includes += ["-isystem", path]
    # The version of torch on the command line makes ninja start over when it changes: -MMD leaves out system headers.
    defines = ["-DTORCH_EXTENSION_NAME=_C", "-DTORCH_API_INCLUDE_EXTENSION_H"]
    defines += [f'-DDIP_FAST_TORCH_VERSION="{made_for["torch"]}"']
    libraries = [f"-L{path}" for path in library_paths()]

    lines = [
        f"cxx = {_words(_compiler())}",
        f"flags = {_words(COMPILE_FLAGS + defines + includes)}",
        "rule compile",
        "  command = $cxx -MMD -MF $out.d $flags $own -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = $cxx $in {_words(libraries + LINK_FLAGS)} -o $out",
    ]
    objects = []
    for source, flags in read_sources(folder).items():
        objects.append(_path(source.with_suffix(".o")))
        lines += [f"build {objects[-1]}: compile {_path(folder / source)}", f"  own = {_words(flags)}"]
    lines.append(f"build _C.so: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def _words(words: list[str]) -> str:
    """Quote for the shell, then for ninja."""
    return shlex.join(words).replace("$", "$$")


def _path(path: Path) -> str:
    """Quote a path in a build line of ninja."""
    return re.sub(r"([$ :])", r"$\1", str(path))
