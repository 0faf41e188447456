"""Compiles the extension, in one way ahead of time (setup.py) and just in time (extension.py).

A build is a library and, beside it, a record of what it was made from and for.  ``torch.utils.cpp_extension`` knows
where torch's headers and libraries are and which compiler to use.  The ninja file is our own, as each file of kernels
needs flags of its own (csrc/sources.txt), which neither its ``load`` nor its ``BuildExtension`` supports.

If torch is a CUDA build and a CUDA toolkit is installed, the files under csrc/cuda are compiled too; otherwise the
record holds the reason why they are not.

This file imports nothing of the package around it, as setup.py runs it from its path.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

# -fopenmp: without it at::parallel_for is compiled as a plain loop, without a warning.
# No -march=native (the build may move to another machine) and no -ffast-math (infinities and NaNs must pass).
# -fno-trapping-math: nothing here reads the flags of floating-point exceptions, and for their sake the compiler would
# not vectorise `u > 0 ? u : slope * u`.
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
# No -fopenmp: the library uses the OpenMP that torch has loaded, whatever its file is called (conda's is another); a
# second one would have threads of its own.  No -ltorch_python: a build serves every version of Python.
LINK_FLAGS = ["-shared", "-lc10", "-ltorch_cpu", "-ltorch"]
# No --use_fast_math, as above.  -lineinfo: profilers and compute-sanitizer name lines; the code stays the same.
CUDA_FLAGS = ["-std=c++20", "-O3", "-lineinfo", "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
CUDA_LINK_FLAGS = ["-lc10_cuda", "-ltorch_cuda", "-lcudart"]
OLDEST_GPU = (8, 0)  # the first compute capability whose tensor cores take TF32 and bfloat16
USUAL_GPUS = [(8, 0), (9, 0), (12, 0)]  # the targets where there is no GPU
SUFFIXES = {".cpp", ".h", ".txt", ".cu", ".cuh"}


class BuildError(RuntimeError):
    """The extension could not be compiled; the message holds the output of the compiler."""


class Cuda(NamedTuple):
    """The CUDA toolkit that compiles the kernels, and the GPUs that it compiles for."""

    home: Path
    version: str
    codes: list[str]  # named as nvcc does: sm_90 is machine code, compute_90 is PTX, which the driver compiles


def source_folder() -> Path:
    """Find the C++ sources: ``_csrc`` in an installed package, ``csrc`` at the root of a checkout."""
    installed = Path(__file__).parents[1] / "_csrc"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "csrc"


def read_sources(folder: Path) -> dict[Path, list[str]]:
    """Read ``sources.txt``: on each line a file, relative to the folder, and the flags that it alone needs."""
    lines = (line.partition("#")[0].split() for line in (folder / "sources.txt").read_text().splitlines())
    return {Path(words[0]): words[1:] for words in lines if words}


def is_cuda(source: Path) -> bool:
    """Return whether a file, relative to the folder of the sources, belongs to the CUDA kernels."""
    return source.parts[0] == "cuda"


def target() -> dict[str, str]:
    """Describe the build that would be made here.

    Returns
    -------
    dict
        The entries torch, flags, sources (a digest), and cuda: the version of the toolkit and its targets
        (``13.0 sm_90 compute_90``), or ``none:`` and the reason; with CUDA kernels also "cuda sources", a digest.
    """
    import torch

    made_for = {
        "torch": str(torch.__version__),  # torch promises no stable C++ ABI between versions
        "flags": " ".join(COMPILE_FLAGS + LINK_FLAGS + CUDA_FLAGS + CUDA_LINK_FLAGS),
        "sources": _digest(cuda=False),
    }
    cuda = find_cuda()
    if isinstance(cuda, str):
        return made_for | {"cuda": f"none: {cuda}"}
    return made_for | {"cuda": " ".join([cuda.version, *cuda.codes]), "cuda sources": _digest(cuda=True)}


def differences(record: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """List the entries of a record that keep a build from being used in place of the wanted one.

    Its CUDA kernels need not be those that would be compiled here: they must be compiled from these sources and run on
    the GPUs here.  A build without CUDA kernels can be used only where none could be compiled.
    """
    names = [name for name in ("flags", "sources") if record.get(name) != wanted[name]]
    if public(record.get("torch", "")) != public(wanted["torch"]):
        names.insert(0, "torch")
    if lacks_cuda(record) is not None:
        return names if lacks_cuda(wanted) is not None else [*names, "cuda"]
    if record.get("cuda sources") != _digest(cuda=True):
        names.append("cuda sources")
    codes = record["cuda"].split()[1:]
    if not all(any(_runs(code, gpu) for code in codes) for gpu in _gpus() if gpu >= OLDEST_GPU):
        names.append("cuda")
    return names


def public(version: str) -> str:
    """Return a version of torch without its local part: 2.13.0+cpu and 2.13.0+cu130 differ in the GPU's part alone."""
    return version.partition("+")[0]


def lacks_cuda(record: dict[str, str]) -> str | None:
    """Return the reason why a build has no CUDA kernels, None if it has them."""
    version, _, reason = record.get("cuda", "none: it is older than they are").partition(": ")
    return reason if version == "none" else None


def _digest(*, cuda: bool) -> str:
    """Digest the sources of the CUDA kernels or all others, as a change in one part leaves the other as it is."""
    digest = hashlib.sha256()
    folder = source_folder()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.suffix in SUFFIXES and name.parts[0] != "test" and is_cuda(name) == cuda:
            digest.update(f"{name.as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def find_cuda() -> Cuda | str:
    """Find the toolkit for the CUDA kernels and choose their targets, or return the reason why there are none."""
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
        return f"{home / 'bin' / 'nvcc'} does not print its version (set CUDA_HOME)"
    # Two versions of libcudart in one process would keep separate states.
    if release.group(1) != torch.version.cuda.partition(".")[0]:
        return f"torch is built for CUDA {torch.version.cuda}, but {home} is of another version (set CUDA_HOME)"
    codes = _codes([int(number) for number in re.findall(r"compute_(\d+)\b", _ask_nvcc(home, "--list-gpu-arch"))])
    return codes if isinstance(codes, str) else Cuda(home, "".join(release.groups()), codes)


def find_toolkit() -> Path | None:
    """Find the folder of the CUDA toolkit: CUDA_HOME or CUDA_PATH, else that of nvcc on PATH, else the usual one."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc")
    if named:
        homes = [Path(named)]
    else:
        # The nvcc on PATH may be a script that starts another one, without headers beside it.
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
    """Choose the targets: TORCH_CUDA_ARCH_LIST, else the GPUs here; or return the reason why there are none.

    ``known`` lists the compute capabilities that the toolkit supports, 90 for 9.0.
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
    # The PTX is for GPUs that are newer than those here or than the toolkit.
    newest = max((number for number in known if number <= gpus[-1]), default=gpus[-1])
    return [*(f"sm_{number}" for number in gpus if number in known), f"compute_{newest}"]


def _runs(code: str, gpu: tuple[int, int]) -> bool:
    """Return whether a GPU runs what was compiled."""
    kind, _, number = code.partition("_")
    made_for = divmod(int(number.rstrip("af")), 10)
    if number.endswith("a"):  # it runs on this one alone
        return gpu == made_for
    if kind == "compute" and not number.endswith("f"):
        return gpu >= made_for
    return gpu >= made_for and gpu[0] == made_for[0]  # machine code also runs on later GPUs of its family


def shipped_name(torch_version: str) -> str:
    """Return the file name of a build that comes with the package; a wheel can hold one for each version of torch."""
    return f"_C.torch-{public(torch_version)}.so"


def record_path(library: Path) -> Path:
    """Return the path of the record beside a library."""
    return library.with_suffix(".json")


def read_record(library: Path) -> dict[str, str]:
    """Read the record of a build; it is empty if the build is missing or incomplete."""
    try:
        return json.loads(record_path(library).read_text()) if library.is_file() else {}
    except (OSError, ValueError):
        return {}


def missing() -> str | None:
    """Return which tool is missing here for a build, None if none is."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return "torch is not installed"
    if shutil.which(compiler()[0]) is None:
        return f"there is no C++ compiler ({compiler()[0]}; CXX names another)"
    return "ninja is not installed" if _ninja() is None else None


def build(library: Path, work: Path) -> None:
    """Compile the extension; object files of an earlier build are used again if they are up to date.

    If compiling fails with the CUDA kernels, the extension is compiled without them, and the record holds the reason.

    Parameters
    ----------
    library : Path
        The file to write.  It is replaced atomically, and its record is written after it.
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
        # The compiler of the C++ files may be too new for nvcc, for example.
        lines = str(error).splitlines()
        complaint = next((line for line in lines if re.search("error|fatal", line)), "the compiler gives no reason")
        cuda = f"compiling failed: {complaint}"
        made_for["cuda"] = f"none: {cuda}"
        _compile(work, _ninja_file(source_folder().resolve(), made_for["torch"], cuda))

    version = subprocess.run([*compiler(), "--version"], capture_output=True, text=True, check=False)
    record = made_for | {"compiler": version.stdout.partition("\n")[0]}
    library.parent.mkdir(parents=True, exist_ok=True)
    record_path(library).unlink(missing_ok=True)
    # The file is not written in place, as a process may have the old one mapped.
    scratch = library.with_name(library.name + ".new")
    shutil.copyfile(work / "_C.so", scratch)
    scratch.replace(library)
    record_path(library).write_text(json.dumps(record, indent=1) + "\n")


def _compile(work: Path, ninja_file: str) -> None:
    (work / "build.ninja").write_text(ninja_file)
    jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []  # as in torch's own builds
    command = [str(_ninja()), "-C", str(work), *jobs]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode != 0:
        raise BuildError(f"compiling failed:\n{result.stdout}")


def compiler() -> list[str]:
    """Return the command of the C++ compiler, CXX or the usual one, as words."""
    from torch.utils.cpp_extension import get_cxx_compiler

    return shlex.split(get_cxx_compiler())


def _ninja() -> Path | None:
    """Find ninja: the Python package's, which need not be on PATH in a virtual environment, or another one."""
    try:
        import ninja

        return Path(ninja.BIN_DIR) / "ninja"
    except ImportError:
        found = shutil.which("ninja")
        return None if found is None else Path(found)


def include_flags(folder: Path, cuda_home: Path | None) -> list[str]:
    """List the flags that name the folders of headers, those of a CUDA toolkit included if its folder is given."""
    from torch.utils.cpp_extension import include_paths

    headers = include_paths()
    if cuda_home is not None:
        headers.append(str(_cuda_headers(cuda_home)))
    # The compiler searches /usr/include in any case, and in the wrong order if it is named.
    return [f"-I{folder}", *(word for path in headers if path != "/usr/include" for word in ("-isystem", path))]


def cuda_command(home: Path, codes: list[str]) -> list[str]:
    """Return the beginning of the command line of nvcc, with the C++ files' compiler as the host compiler."""
    host = [word for word in compiler() if not word.startswith("-")][-1]  # CXX may be "ccache g++"
    generate = [f"-gencode=arch=compute_{code.partition('_')[2]},code={code}" for code in codes]
    return [str(home / "bin" / "nvcc"), "-ccbin", host, *CUDA_FLAGS, *generate]


def _ninja_file(folder: Path, torch_version: str, cuda: Cuda | str) -> str:
    from torch.utils.cpp_extension import library_paths

    # -MMD leaves out system headers, so the version of torch on the command line makes ninja compile all again.
    defines = [f'-DDIP_FAST_TORCH_VERSION="{torch_version}"']
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
        objects.append(_path(source.with_suffix(f"{source.suffix}.o")))  # fields.cpp and fields.cu differ
        lines += [f"build {objects[-1]}: compile{source.suffix} {_path(folder / source)}", f"  own = {_words(own)}"]
    lines.append(f"build _C.so: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def _compile_rule(suffix: str, compiler: str) -> list[str]:
    command = f"  command = {compiler} $own -MMD -MF $out.d -c $in -o $out"
    return [f"rule compile{suffix}", command, "  depfile = $out.d", "  deps = gcc"]


def _words(words: list[str]) -> str:
    """Quote words for the shell, then for ninja."""
    return shlex.join(words).replace("$", "$$")


def _path(path: Path) -> str:
    """Quote a path in a build line of ninja."""
    return re.sub(r"([$ :])", r"$\1", str(path))
