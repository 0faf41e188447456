"""Compile the CUDA kernels for each generation of GPUs and check the compiler's report.

The check fails on any warning, and on a kernel that spills registers or puts arrays into local memory, which is slow
memory outside the chip.  The syntax of the bindings is checked too, against the headers of whatever torch is installed,
a CPU build included.

    python .ci/check_cuda.py [FILE ...]    # all files of csrc/sources.txt, or only these
"""

import argparse
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
building = runpy.run_path(str(ROOT / "dip_fast" / "ops" / "building.py"))
CODES = ["sm_80", "sm_90a", "sm_120"]
# Kernels that may use local memory: a part of the name, and the reason.
EXCUSED: dict[str, str] = {}


@dataclass
class Kernel:
    """What ptxas reports about a kernel or device function."""

    name: str
    stack: int = 0
    spills: int = 0
    registers: int = 0
    shared: int = 0


def parse(report: str) -> list[Kernel]:
    """Read the report of ptxas -v."""
    kernels: dict[str, Kernel] = {}
    name = ""
    for line in report.splitlines():
        if match := re.search(r"(?:Function properties for|Compiling entry function) '?(\w+)", line):
            name = match[1]
            kernels.setdefault(name, Kernel(name))
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernels[name].stack = int(match[1])
            kernels[name].spills = int(match[2]) + int(match[3])
        elif match := re.search(r"Used (\d+) registers", line):
            kernels[name].registers = int(match[1])
            if match := re.search(r"(\d+) bytes smem", line):
                kernels[name].shared = int(match[1])
    return list(kernels.values())


def readable(names: list[str]) -> list[str]:
    """Demangle names and drop their namespaces and arguments, which carry no information here."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None:
        return names

    def shortened(name: str) -> str:
        # nvcc names an unnamed namespace after the file and a digest; c++filt only knows the name that g++ gives it.
        match = re.search(r"(\d+)_GLOBAL__N_", name)
        return name if match is None else f"{name[: match.start()]}12_GLOBAL__N_1{name[match.end(1) + int(match[1]) :]}"

    given = "\n".join(map(shortened, names))
    result = subprocess.run([tool], input=given, capture_output=True, text=True, check=True).stdout
    result = re.sub(r"\(anonymous namespace\)::|dip_fast::cuda::|^void ", "", result, flags=re.MULTILINE)
    return [line.rpartition("(")[0] or line for line in result.splitlines()]


def run(command: list[str]) -> tuple[bool, str]:
    """Run a compiler: whether it succeeded without a warning, and its output."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return result.returncode == 0 and re.search(r"\bwarning\b", result.stdout) is None, result.stdout


def check_kernels(home: Path, source: Path, flags: list[str], code: str, first: str, scratch: Path) -> tuple[bool, str]:
    """Compile a file for one generation: whether it passes, and a line for each kernel."""
    folder = building["source_folder"]()
    command = [*building["cuda_command"](home, [code]), f"-I{folder}", *flags]
    command += ["-Werror", "all-warnings", "-Xcompiler", "-Werror", "-Xptxas", "-v"]
    # The host code is the same for all generations: it is compiled with the first only.
    command += ["-c"] if code == first else ["-cubin"]
    good, report = run([*command, str(folder / source), "-o", str(scratch / f"{source.name}.{code}")])
    lines = []
    if not good:
        lines.append(f"{source} {code}: the compiler complains\n{report.rstrip()}")
    kernels = parse(report)
    for kernel, name in zip(kernels, readable([kernel.name for kernel in kernels]), strict=True):
        excuse = next((why for part, why in EXCUSED.items() if part in name), None)
        local = kernel.stack > 0 or kernel.spills > 0
        verdict = "" if not local else f"  excused: {excuse}" if excuse else "  FAILS: local memory"
        good &= not local or excuse is not None
        lines.append(
            f"{code:7} {kernel.registers:3} registers {kernel.shared:6} B shared {kernel.stack:4} B stack "
            f"{kernel.spills:4} B spilled  {source.name}: {name}{verdict}"
        )
    return good, "\n".join(lines)


def check_binding(home: Path, source: Path, flags: list[str]) -> tuple[bool, str]:
    """Check the syntax of a binding, without generating code."""
    folder = building["source_folder"]()
    command = [*building["compiler"](), *building["COMPILE_FLAGS"], *building["include_flags"](folder, home), *flags]
    # The header that a CUDA build of torch configures is not in a CPU build.
    command += [
        "-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE",
        "-DDIP_FAST_CUDA",
        "-Werror",
        "-fsyntax-only",
        str(folder / source),
    ]
    good, report = run(command)
    return good, f"{source}: {'parses' if good else 'the compiler complains'}\n{report}".rstrip()


def main() -> int:
    """Check all files, several at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    parser.add_argument("--codes", nargs="+", default=CODES, metavar="sm_90a", help="GPUs to compile for")
    parser.add_argument("-j", "--jobs", type=int, default=jobs)
    arguments = parser.parse_args()
    home = building["find_toolkit"]()
    if home is None:
        sys.exit("check-cuda: nvcc and its headers are not found (set CUDA_HOME)")
    listed = building["read_sources"](building["source_folder"]())
    listed = {source: flags for source, flags in listed.items() if building["is_cuda"](source)}
    wanted = {Path("cuda") / file.name for file in arguments.files} or set(listed)
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(arguments.jobs) as pool:
        checks = [
            pool.submit(check_kernels, home, source, listed.get(source, []), code, arguments.codes[0], Path(scratch))
            for source in sorted(wanted)
            if source.suffix == ".cu"
            for code in arguments.codes
        ]
        checks += [
            pool.submit(check_binding, home, source, listed.get(source, []))
            for source in sorted(wanted)
            if source.suffix == ".cpp"
        ]
        good = []
        for check in checks:
            good.append(check.result()[0])
            print(check.result()[1], flush=True)
    print(f"check-cuda: {good.count(True)} compilations are good, {good.count(False)} are not")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
