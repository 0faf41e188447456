"""Compiling the extension, ahead of time (setup.py) and just in time (extension.py): one way for both.

A build is a library and, beside it, a record of what it was made from and for.  ``torch.utils.cpp_extension`` says
where torch's headers and libraries are and which compiler to use; the ninja file is our own, as the kernels need
flags of their own for each file (csrc/sources.txt), which neither its ``load`` nor its ``BuildExtension`` can give.

Where torch is a CUDA build and a CUDA toolkit is there, the files under csrc/cuda are compiled too; elsewhere the
record says why they are not.

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
from typing import NamedTuple

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
# No --use_fast_math, as above.  -lineinfo: profilers and compute-sanitizer name lines; the code stays the same.
CUDA_FLAGS = ["-std=c++20", "-O3", "-lineinfo", "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
CUDA_LINK_FLAGS = ["-lc10_cuda", "-ltorch_cuda", "-lcudart"]
OLDEST_GPU = (8, 0)  # the first compute capability whose tensor cores take TF32 and bfloat16
USUAL_GPUS = [(8, 0), (9, 0), (12, 0)]  # compiled for where there is no GPU
SUFFIXES = {".cpp", ".h", ".txt", ".cu", ".cuh"}


class BuildError(RuntimeError):
    """The extension could not be compiled; the message holds what the compiler said."""


class Cuda(NamedTuple):
    """What compiles the CUDA kernels, and for which GPUs."""

    home: Path
    version: str
    codes: list[str]  # as nvcc names them: sm_90 is machine code, compute_90 is PTX, which the driver compiles


def source_folder() -> Path:
    """Find the C++ sources: ``_csrc`` in an installed package, ``csrc`` at the root of a checkout."""
    installed = Path(__file__).parents[1] / "_csrc"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "csrc"


def read_sources(folder: Path) -> dict[Path, list[str]]:
    """Read ``sources.txt``: on each line a file, relative to the folder, and the flags that it alone needs."""
    lines = (line.partition("#")[0].split() for line in (folder / "sources.txt").read_text().splitlines())
    return {Path(words[0]): words[1:] for words in lines if words}


def is_cuda(source: Path) -> bool:
    """Tell whether a file, relative to the folder of the sources, belongs to the CUDA kernels."""
    return source.parts[0] == "cuda"


def target() -> dict[str, str]:
    """Describe the build that would be made here.

    Returns
    -------
    dict
        torch, python, flags, sources (a digest), and cuda: the version of the toolkit and what it compiles for
        (``13.0 sm_90 compute_90``), or ``none:`` and the reason; with CUDA kernels also "cuda sources", a digest.
    """
    import torch

    made_for = {
        "torch": str(torch.__version__),  # torch promises no stable C++ ABI between versions
        "python": str(sysconfig.get_config_var("SOABI")),
        "flags": " ".join(COMPILE_FLAGS + LINK_FLAGS + CUDA_FLAGS + CUDA_LINK_FLAGS),
        "sources": _digest(cuda=False),
    }
    cuda = find_cuda()
    if isinstance(cuda, str):
        return made_for | {"cuda": f"none: {cuda}"}
    return made_for | {"cuda": " ".join([cuda.version, *cuda.codes]), "cuda sources": _digest(cuda=True)}


def differences(record: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """Name the entries of a record for which a build cannot serve as the wanted one.

    CUDA kernels need not be those that would be compiled here: they serve if they are of these sources and run on the
    GPUs here.  A build without them serves only where none could be compiled.
    """
    names = [name for name in ("torch", "python", "flags", "sources") if record.get(name) != wanted[name]]
    if lacks_cuda(record) is not None:
        return names if lacks_cuda(wanted) is not None else [*names, "cuda"]
    if record.get("cuda sources") != _digest(cuda=True):
        names.append("cuda sources")
    codes = record["cuda"].split()[1:]
    if not all(any(_runs(code, gpu) for code in codes) for gpu in _gpus() if gpu >= OLDEST_GPU):
        names.append("cuda")
    return names


def lacks_cuda(record: dict[str, str]) -> str | None:
    """Say why a build has no CUDA kernels, None if it has them."""
    version, _, reason = record.get("cuda", "none: it is older than they are").partition(": ")
    return reason if version == "none" else None


def _digest(*, cuda: bool) -> str:
    """Digest the sources of the CUDA kernels, or all others: a change of these must not compile those again."""
    digest = hashlib.sha256()
    folder = source_folder()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.suffix in SUFFIXES and name.parts[0] != "test" and is_cuda(name) == cuda:
            digest.update(f"{name.as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def find_cuda() -> Cuda | str:
    """Find what would compile the CUDA kernels, or say why nothing would."""
    import torch

    if torch.version.cuda is None:
        return "torch is built without CUDA"
    if not any(is_cuda(source) for source in read_sources(source_folder())):
        return "there are no CUDA sources"
    home = find_toolkit()
    if home is None:
        return "nvcc and its headers are not found (set CUDA_HOME)"
    release = re.search(r"release (\d+)(\.\d+)", _ask_nvcc(home, "--version"))
    if release is None:
        return f"{home / 'bin' / 'nvcc'} does not tell its version (set CUDA_HOME)"
    # Two versions of libcudart in one process would not know of each other.
    if release.group(1) != torch.version.cuda.partition(".")[0]:
        return f"torch is built for CUDA {torch.version.cuda}, but {home} is of another version (set CUDA_HOME)"
    codes = _codes([int(number) for number in re.findall(r"compute_(\d+)\b", _ask_nvcc(home, "--list-gpu-arch"))])
    return codes if isinstance(codes, str) else Cuda(home, "".join(release.groups()), codes)


def find_toolkit() -> Path | None:
    """Find the folder of the CUDA toolkit: CUDA_HOME or CUDA_PATH, else where nvcc on PATH is, else the usual one."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc")
    if named:
        homes = [Path(named)]
    else:
        # The nvcc on PATH may be a script that starts another one: then no headers are beside it.
        homes = [Path(nvcc).resolve().parents[1]] if nvcc else []
        homes.append(Path("/usr/local/cuda"))
    return next((home for home in homes if (home / "bin" / "nvcc").is_file() and _cuda_headers(home)), None)


def _cuda_headers(home: Path) -> Path | None:
    folders = [home / "include", *home.glob("targets/*/include")]  # conda has the latter only
    return next((folder for folder in folders if (folder / "cuda_runtime.h").is_file()), None)


def _ask_nvcc(home: Path, question: str) -> str:
    try:
        command = [str(home / "bin" / "nvcc"), question]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def _gpus() -> list[tuple[int, int]]:
    """List the compute capabilities of the GPUs here."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return sorted({torch.cuda.get_device_capability(index) for index in range(count)})


def _codes(known: list[int]) -> list[str] | str:
    """Choose what to compile for: TORCH_CUDA_ARCH_LIST, else the GPUs here; or say why there is nothing to choose.

    ``known`` is what the toolkit knows, 90 for compute capability 9.0.
    """
    named = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").replace(",", " ").split()
    if named:
        codes = []
        for word in named:
            match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", word)
            if match is None:
                return f"TORCH_CUDA_ARCH_LIST must read like 8.0;9.0a;12.0+PTX, got {word}"
            if (int(match[1]), int(match[2])) >= OLDEST_GPU:  # lists made for torch itself begin earlier
                number = match[1] + match[2] + match[3]
                codes += [f"sm_{number}", f"compute_{number}"] if match[4] else [f"sm_{number}"]
        return codes or "TORCH_CUDA_ARCH_LIST has nothing from 8.0 on"
    gpus = [10 * major + minor for major, minor in _gpus() or USUAL_GPUS if (major, minor) >= OLDEST_GPU]
    if not gpus:
        return "no GPU here has compute capability 8.0 or more"
    # The PTX is for GPUs that are newer than the toolkit, or than those here.
    newest = max((number for number in known if number <= gpus[-1]), default=gpus[-1])
    return [*(f"sm_{number}" for number in gpus if number in known), f"compute_{newest}"]


def _runs(code: str, gpu: tuple[int, int]) -> bool:
    """Tell whether a GPU runs what was compiled."""
    kind, _, number = code.partition("_")
    made_for = divmod(int(number.rstrip("af")), 10)
    if number.endswith("a"):  # for this one alone
        return gpu == made_for
    if kind == "compute" and not number.endswith("f"):
        return gpu >= made_for
    return gpu >= made_for and gpu[0] == made_for[0]  # machine code serves later ones of a family


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
    if shutil.which(compiler()[0]) is None:
        return f"there is no C++ compiler ({compiler()[0]}; CXX names another)"
    if _ninja() is None:
        return "ninja is not installed"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return None if header.is_file() else f"the headers of Python are not installed ({header})"


def build(library: Path, work: Path) -> None:
    """Compile the extension; what an earlier build left in the work folder is used again where it is up to date.

    If that fails with the CUDA kernels, it is compiled without them, and the record says why.

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
    made_for, cuda = target(), find_cuda()
    try:
        _compile(work, _ninja_file(source_folder().resolve(), made_for["torch"], cuda))
    except BuildError as error:
        if isinstance(cuda, str):
            raise
        # The compiler of the C++ files may be too new for nvcc, say.
        complaint = next((line for line in str(error).splitlines() if re.search("error|fatal", line)), "no word why")
        cuda = f"compiling failed: {complaint}"
        made_for["cuda"] = f"none: {cuda}"
        _compile(work, _ninja_file(source_folder().resolve(), made_for["torch"], cuda))

    version = subprocess.run([*compiler(), "--version"], capture_output=True, text=True, check=False)
    record = made_for | {"compiler": version.stdout.partition("\n")[0]}
    library.parent.mkdir(parents=True, exist_ok=True)
    record_path(library).unlink(missing_ok=True)
    # Not written in place: a process may have the old file mapped.
    scratch = library.with_name(library.name + ".new")
    shutil.copyfile(work / "_C.so", scratch)
    scratch.replace(library)
    record_path(library).write_text(json.dumps(record, indent=1) + "\n")


def _compile(work: Path, ninja_file: str) -> None:
    (work / "build.ninja").write_text(ninja_file)
    jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []  # the name torch gave it
    command = [str(_ninja()), "-C", str(work), *jobs]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode != 0:
        raise BuildError(f"compiling failed:\n{result.stdout}")


def compiler() -> list[str]:
    """Split the name of the C++ compiler, of CXX or the usual one, into words."""
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


def include_flags(folder: Path, cuda_home: Path | None) -> list[str]:
    """List where C++ files find their headers, with those of a CUDA toolkit if it is given."""
    from torch.utils.cpp_extension import include_paths

    headers = [*include_paths(), sysconfig.get_path("include")]
    if cuda_home is not None:
        headers.append(str(_cuda_headers(cuda_home)))
    # The compiler looks into /usr/include in any case, and not in the order it needs to where it is named.
    return [f"-I{folder}", *(word for path in headers if path != "/usr/include" for word in ("-isystem", path))]


def cuda_command(home: Path, codes: list[str]) -> list[str]:
    """Begin the command line of nvcc: the host compiler is that of the C++ files."""
    host = [word for word in compiler() if not word.startswith("-")][-1]  # CXX may be "ccache g++"
    generate = [f"-gencode=arch=compute_{code.partition('_')[2]},code={code}" for code in codes]
    return [str(home / "bin" / "nvcc"), "-ccbin", host, *CUDA_FLAGS, *generate]


def _ninja_file(folder: Path, torch_version: str, cuda: Cuda | str) -> str:
    from torch.utils.cpp_extension import library_paths

    # The version of torch on the command line makes ninja start over when it changes: -MMD leaves out system headers.
    defines = ["-DTORCH_EXTENSION_NAME=_C", "-DTORCH_API_INCLUDE_EXTENSION_H"]
    defines += [f'-DDIP_FAST_TORCH_VERSION="{torch_version}"']
    libraries = [f"-L{path}" for path in library_paths()]
    sources = read_sources(folder)
    if isinstance(cuda, str):
        cuda_home, link_flags, rules = None, LINK_FLAGS, []
        sources = {source: flags for source, flags in sources.items() if not is_cuda(source)}
    else:
        cuda_home, link_flags = cuda.home, LINK_FLAGS + CUDA_LINK_FLAGS
        defines += [f'-DDIP_FAST_CUDA="{cuda.version}"']  # likewise
        folders = [cuda.home / "lib64", cuda.home / "lib", *cuda.home.glob("targets/*/lib")]
        libraries += [f"-L{path}" for path in folders if path.is_dir()]
        nvcc = [*cuda_command(cuda.home, cuda.codes), defines[-1], f"-I{folder}"]
        rules = _compile_rule(".cu", _words(nvcc))
    flags = COMPILE_FLAGS + defines + include_flags(folder, cuda_home)
    rules += _compile_rule(".cpp", _words(compiler() + flags))

    lines = [*rules, "rule link", f"  command = {_words(compiler())} $in {_words(libraries + link_flags)} -o $out"]
    objects = []
    for source, own in sources.items():
        objects.append(_path(source.with_suffix(f"{source.suffix}.o")))  # of fields.cpp and of fields.cu
        lines += [f"build {objects[-1]}: compile{source.suffix} {_path(folder / source)}", f"  own = {_words(own)}"]
    lines.append(f"build _C.so: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def _compile_rule(suffix: str, compiler: str) -> list[str]:
    command = f"  command = {compiler} $own -MMD -MF $out.d -c $in -o $out"
    return [f"rule compile{suffix}", command, "  depfile = $out.d", "  deps = gcc"]


def _words(words: list[str]) -> str:
    """Quote for the shell, then for ninja."""
    return shlex.join(words).replace("$", "$$")


def _path(path: Path) -> str:
    """Quote a path in a build line of ninja."""
    return re.sub(r"([$ :])", r"$\1", str(path))
