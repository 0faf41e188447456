"""The extension is built once, loaded only where it fits, and missed politely."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import dip_fast
from dip_fast.ops import building, extension

PACKAGE = Path(dip_fast.__file__).parent
# The machinery does not care what it builds: a module that takes a second to compile, and on demand longer.
TOY = """
#include <Python.h>
#ifndef _OPENMP
#error "-fopenmp is missing"
#endif
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&definition); }
"""
REPORT = """
import json
from concurrent.futures import ThreadPoolExecutor
from dip_fast.ops import extension
with ThreadPoolExecutor(4) as pool:
    modules = set(pool.map(lambda _: extension.load(), range(8)))
info = extension.info()
assert modules == {info.module}
print(json.dumps({"origin": info.origin, "library": str(info.library), "reason": info.reason}))
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A package with the real machinery around a toy extension, alone in its folder, with a cache of its own."""
    write_toy(tmp_path)
    return tmp_path


def write_toy(root: Path) -> None:
    package = root / "site" / "dip_fast"
    (package / "ops").mkdir(parents=True)
    (package / "_csrc").mkdir()
    (package / "__init__.py").touch()
    (package / "ops" / "__init__.py").touch()
    for name in ("errors.py", "ops/building.py", "ops/extension.py"):
        shutil.copy(PACKAGE / name, package / name)
    (package / "_csrc" / "toy.cpp").write_text(TOY)
    (package / "_csrc" / "sources.txt").write_text("# a comment\ntoy.cpp -DOWN_FLAG  # and another\n")


def environment(root: Path, **changes: str) -> dict[str, str]:
    dropped = ("DIP_FAST_BUILD", "DIP_FAST_CPU", "CXX", "PYTHONWARNINGS")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {"PYTHONPATH": str(root / "site"), "XDG_CACHE_HOME": str(root / "cache"), "MAX_JOBS": "1"} | changes


def start(root: Path, code: str = REPORT, **changes: str) -> subprocess.Popen[str]:
    # Not in the root of a checkout, whose dip_fast would come first.
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    return subprocess.Popen(
        command, cwd=root, env=environment(root, **changes), stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[dict[str, str], str]:
    """Give what the process reported, and what it said on standard error."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(output), errors


def cached(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "cache" / "dip-fast").iterdir())


def slow_compiler(root: Path, seconds: int) -> tuple[str, Path]:
    """Write a compiler that says when it starts, by a file, and waits; without its switch it does not wait."""
    switch = root / "slow"
    switch.touch()
    compiler = root / "slow-c++"
    compiler.write_text(f"""#!/bin/sh
case "$*" in *" -c "*)
  touch "{root}/compiling"
  for second in $(seq {seconds}); do test -e "{switch}" && sleep 1; done
esac
exec {shutil.which("c++")} "$@"
""")
    compiler.chmod(0o755)
    return str(compiler), switch


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="session")
def build_of_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("built")
    write_toy(root)
    return Path(finish(start(root))[0]["library"])


def ship(build: Path, root: Path, **changes: str) -> Path:
    """Put a build beside the package as a wheel does, with a record that is changed."""
    library = root / "site" / "dip_fast" / extension.shipped_library().name
    shutil.copy(build, library)
    building.record_path(library).write_text(json.dumps(building.read_record(build) | changes))
    return library


def test_built_on_first_use_and_then_found(toy: Path) -> None:
    first, errors = finish(start(toy))
    assert first["origin"] == "cached"
    assert f"compiling the operators for torch {torch.__version__}" in errors
    again, errors = finish(start(toy))
    assert (again, errors) == (first, "")
    never, errors = finish(start(toy, DIP_FAST_BUILD="never"))
    assert (never, errors) == (first, "")
    key = Path(first["library"]).parent.name
    assert cached(toy) == [key, f"{key}.lock"]


def test_changed_sources_are_built_again(toy: Path, build_of_toy: Path) -> None:
    shutil.copytree(build_of_toy.parents[2], toy / "cache")
    unchanged, _ = finish(start(toy, DIP_FAST_BUILD="never"))
    with (toy / "site/dip_fast/_csrc/toy.cpp").open("a") as file:
        file.write("// changed\n")
    changed, _ = finish(start(toy))
    assert (unchanged["origin"], changed["origin"]) == ("cached", "cached")
    assert changed["library"] != unchanged["library"]


def test_processes_that_start_together_build_once(toy: Path) -> None:
    compiler, _ = slow_compiler(toy, seconds=5)
    processes = [start(toy, CXX=compiler) for _ in range(3)]
    reports = [finish(process) for process in processes]
    assert len({report["library"] for report, _ in reports}) == 1
    assert sum("compiling the operators for torch" in errors for _, errors in reports) == 1
    assert len(cached(toy)) == 2


def test_killed_build_leaves_nothing_in_the_way(toy: Path) -> None:
    compiler, switch = slow_compiler(toy, seconds=60)
    process = start(toy, CXX=compiler)
    wait_for((toy / "compiling").exists)
    os.killpg(process.pid, signal.SIGKILL)  # its own session: python, ninja and the compiler
    process.communicate()
    assert any(name.endswith(".tmp") for name in cached(toy))
    switch.unlink()
    report, _ = finish(start(toy, CXX=compiler))
    assert report["origin"] == "cached"
    assert len(cached(toy)) == 2


def test_process_that_waits_takes_over_from_one_that_is_killed(toy: Path) -> None:
    compiler, switch = slow_compiler(toy, seconds=60)
    first = start(toy, CXX=compiler)
    wait_for((toy / "compiling").exists)
    second = start(toy, CXX=compiler)
    assert second.stderr is not None
    assert "waiting for another process" in second.stderr.readline()
    switch.unlink()
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    report, _ = finish(second)
    assert report["origin"] == "cached"


def test_no_compiler(toy: Path) -> None:
    report, errors = finish(start(toy, CXX="no-such-compiler"))
    assert report["origin"] == "none"
    wanted = "no build came with this package, and making one here failed: there is no C++ compiler (no-such-compiler;"
    assert wanted in report["reason"]
    assert errors.count("RuntimeWarning: dip-fast runs its operators through plain PyTorch") == 1
    report, _ = finish(start(toy, PATH=""))
    assert "there is no C++ compiler (c++;" in report["reason"]


def test_error_of_the_compiler_is_shown(toy: Path) -> None:
    (toy / "site/dip_fast/_csrc/toy.cpp").write_text('#error "the moon is full"\n')
    report, errors = finish(start(toy))
    assert report["origin"] == "none"
    assert "the moon is full" in report["reason"]
    assert "the moon is full" in errors
    assert [name for name in cached(toy) if not name.endswith(".lock")] == []


def test_never_builds_when_told_so(toy: Path) -> None:
    report, _ = finish(start(toy, DIP_FAST_BUILD="never"))
    assert report["reason"] == "no build came with this package, and DIP_FAST_BUILD=never forbids making one"
    assert not (toy / "cache").exists()


def test_unknown_policy_is_an_error(toy: Path) -> None:
    process = start(toy, DIP_FAST_BUILD="perhaps")
    _, errors = process.communicate()
    assert "UsageError: DIP_FAST_BUILD must be auto or never, got 'perhaps'" in errors


def test_cache_that_cannot_be_written(toy: Path) -> None:
    (toy / "cache").write_text("a file")
    report, _ = finish(start(toy))
    assert (report["origin"], "making one here failed" in report["reason"]) == ("none", True)


def test_shipped_build_is_loaded(toy: Path, build_of_toy: Path) -> None:
    library = ship(build_of_toy, toy)
    report, errors = finish(start(toy))
    assert (report["origin"], report["library"], errors) == ("shipped", str(library), "")
    assert not (toy / "cache").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"torch": "2.12.0"}, f"made for another torch, 2.12.0 and not {torch.__version__}"),
        ({"python": "cpython-39"}, "made for another python, cpython-39 and not"),
        ({"sources": "0"}, "made for another sources"),
    ],
    ids=["torch", "python", "sources"],
)
def test_shipped_build_for_something_else_is_not_loaded(
    toy: Path, build_of_toy: Path, changes: dict[str, str], reason: str
) -> None:
    ship(build_of_toy, toy, **changes)
    report, _ = finish(start(toy, DIP_FAST_BUILD="never"))
    assert report["origin"] == "none"
    assert reason in report["reason"]


def test_shipped_build_for_another_torch_is_replaced(toy: Path, build_of_toy: Path) -> None:
    ship(build_of_toy, toy, torch="2.12.0")
    report, _ = finish(start(toy))
    assert report["origin"] == "cached"


def test_shipped_build_that_is_damaged_is_not_loaded(toy: Path, build_of_toy: Path) -> None:
    ship(build_of_toy, toy).write_bytes(b"not a library")
    report, _ = finish(start(toy))
    assert report["origin"] == "cached"


def test_only_one_build_is_loaded(toy: Path) -> None:
    code = """
import importlib, torch
library = torch.library.Library("dip_fast", "DEF")
library.define("upsample_conv2d(Tensor input) -> Tensor")
from dip_fast.ops import extension
try:
    extension.load()
except ImportError as error:
    print('"' + str(error) + '"')
"""
    message, _ = finish(start(toy, code))
    assert message == "another library in this process has registered the operators of dip_fast already"


def test_flags_of_each_file(tmp_path: Path) -> None:
    (tmp_path / "sources.txt").write_text("# all\na.cpp\n\nb/c.cpp -mavx2  -mfma # own\n")
    assert building.read_sources(tmp_path) == {Path("a.cpp"): [], Path("b/c.cpp"): ["-mavx2", "-mfma"]}
    for flags in [building.COMPILE_FLAGS, *building.read_sources(building.source_folder()).values()]:
        assert not {"-march=native", "-ffast-math", "-Ofast"}.intersection(flags)


def test_every_source_is_listed() -> None:
    folder = building.source_folder()
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.suffix in (".cpp", ".cu")}
    files = {path for path in files if path.parts[0] != "test"} - {Path("inference_only.cpp")}
    assert files == set(building.read_sources(folder))


# ---- CUDA: what can be said of it without a CUDA build of torch ------------------------------------------------------


@pytest.fixture
def cuda_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CUDA build of torch, a toolkit whose compiler only answers questions, no GPU, and sources of all kinds."""
    home = tmp_path / "cuda"
    for name in ("bin", "include", "lib64"):
        (home / name).mkdir(parents=True)
    (home / "include" / "cuda_runtime.h").touch()
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text("""#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release 13.1, V13.1.5" ;;
  --list-gpu-arch) for arch in 75 80 86 89 90 100; do echo compute_$arch; done ;;
  *) echo "nvcc fatal: the moon is full"; exit 1 ;;
esac
""")
    nvcc.chmod(0o755)
    sources = tmp_path / "csrc"
    (sources / "cuda").mkdir(parents=True)
    (sources / "toy.cpp").write_text(TOY)
    (sources / "cuda" / "bind.cpp").touch()
    (sources / "cuda" / "kernel.cu").touch()
    (sources / "sources.txt").write_text("toy.cpp -DOWN\ncuda/bind.cpp\ncuda/kernel.cu --fmad=false\n")
    monkeypatch.setattr(building, "source_folder", lambda: sources)
    monkeypatch.setattr(building, "_gpus", list)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setenv("CXX", "ccache g++ -m64")
    for name in ("CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)
    return home


def ninja_file() -> dict[str, str]:
    """Give the command of each rule, and the rule and flags of each file."""
    text = building._ninja_file(building.source_folder(), "2.13.0", building.find_cuda())
    found, name = {}, ""
    for line in text.splitlines():
        words = line.split()
        if words[0] in ("rule", "build"):
            name = words[1].rstrip(":")
            found[name] = words[2] if words[0] == "build" else ""
        elif words[0] in ("command", "own"):
            found[name] += line.partition(" =")[2]
    return found


def test_cuda_files_are_compiled_by_nvcc(cuda_torch: Path) -> None:
    ninja = ninja_file()
    assert ninja["cuda/kernel.cu.o"] == "compile.cu --fmad=false"
    assert ninja["cuda/bind.cpp.o"] == "compile.cpp "
    assert ninja["toy.cpp.o"] == "compile.cpp -DOWN"
    kernels = shlex.split(ninja["compile.cu"])
    assert kernels[:3] == [str(cuda_torch / "bin" / "nvcc"), "-ccbin", "g++"]
    assert {"-std=c++20", "-O3", "-fPIC,-fvisibility=hidden,-Wall,-Wextra", '-DDIP_FAST_CUDA="13.1"'} < set(kernels)
    assert not [word for word in kernels if "fast" in word.lower() and "DIP_FAST" not in word]
    host = shlex.split(ninja["compile.cpp"])
    assert host[:3] == ["ccache", "g++", "-m64"]
    assert '-DDIP_FAST_CUDA="13.1"' in host
    assert host[host.index(str(cuda_torch / "include")) - 1] == "-isystem"
    link = shlex.split(ninja["link"])
    assert {"-lc10_cuda", "-ltorch_cuda", "-lcudart", "-ltorch_cpu", f"-L{cuda_torch / 'lib64'}"} < set(link)


def test_build_without_cuda_leaves_its_files_alone(cuda_torch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_cuda = building.target()
    monkeypatch.setattr(torch.version, "cuda", None)
    text = building._ninja_file(building.source_folder(), "2.13.0", building.find_cuda())
    assert "toy.cpp.o" in text
    assert "cuda" not in text.lower().replace(str(building.source_folder()).lower(), "")
    before = building.target()
    assert before["cuda"] == "none: torch is built without CUDA"
    assert before["sources"] == with_cuda["sources"]
    (building.source_folder() / "cuda" / "kernel.cu").write_text("// changed\n")
    assert building.target() == before
    (building.source_folder() / "toy.cpp").write_text("// changed\n")
    assert building.target() != before


@pytest.mark.parametrize(
    ("listed", "gpus", "codes"),
    [
        ("8.0;9.0a;12.0+PTX", [], "sm_80 sm_90a sm_120 compute_120"),
        ("7.5 8.6 10.0f", [], "sm_86 sm_100f"),
        ("", [], "sm_80 sm_90 compute_100"),
        ("", [(7, 5), (8, 6), (9, 0)], "sm_86 sm_90 compute_90"),
        ("", [(12, 0)], "compute_100"),
    ],
    ids=["listed", "older ones left out", "no GPU", "the GPUs here", "newer than the toolkit"],
)
def test_architectures(
    cuda_torch: Path, monkeypatch: pytest.MonkeyPatch, listed: str, gpus: list[tuple[int, int]], codes: str
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    monkeypatch.setattr(building, "_gpus", lambda: gpus)
    assert building.target()["cuda"] == f"13.1 {codes}"
    flags = [f"-gencode=arch=compute_{code.partition('_')[2]},code={code}" for code in codes.split()]
    assert [word for word in shlex.split(ninja_file()["compile.cu"]) if "gencode" in word] == flags


def test_why_there_are_no_cuda_kernels(cuda_torch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reason() -> str | None:
        return building.lacks_cuda(building.target())

    assert reason() is None
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    assert reason() == "TORCH_CUDA_ARCH_LIST must read like 8.0;9.0a;12.0+PTX, got Hopper"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.0 7.5+PTX")
    assert reason() == "TORCH_CUDA_ARCH_LIST has nothing from 8.0 on"
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    monkeypatch.setattr(building, "_gpus", lambda: [(7, 5)])
    assert reason() == "no GPU here has compute capability 8.0 or more"
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert reason() == f"torch is built for CUDA 12.8, but {cuda_torch} is of another version (set CUDA_HOME)"
    (cuda_torch / "include" / "cuda_runtime.h").unlink()
    assert reason() == "nvcc and its headers are not found (set CUDA_HOME)"
    (building.source_folder() / "sources.txt").write_text("toy.cpp\n")
    assert reason() == "there are no CUDA sources"


def test_which_build_serves_which_gpus(cuda_torch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = building.target() | {"cuda": "13.0 sm_80 sm_90a compute_90"}
    for gpus, served in {(): True, ((8, 6), (9, 0)): True, ((12, 0),): True, ((7, 5),): True}.items():
        monkeypatch.setattr(building, "_gpus", lambda gpus=gpus: list(gpus))
        assert building.differences(shipped, building.target()) == ([] if served else ["cuda"])
    shipped["cuda"] = "13.0 sm_86 sm_90a"
    for gpu, served in {(8, 0): False, (8, 9): True, (9, 0): True, (10, 0): False}.items():
        monkeypatch.setattr(building, "_gpus", lambda gpu=gpu: [gpu])
        assert building.differences(shipped, building.target()) == ([] if served else ["cuda"]), gpu
    monkeypatch.setattr(building, "_gpus", list)
    without = {**shipped, "cuda": "none: some reason"}
    assert building.differences(without, building.target()) == ["cuda"]
    monkeypatch.setenv("CUDA_HOME", "/nowhere")  # nothing better than either could be compiled
    assert building.differences(without, building.target()) == []
    assert building.differences(shipped, building.target()) == []
    (building.source_folder() / "cuda" / "kernel.cu").write_text("// changed\n")
    assert building.differences(without, building.target()) == []
    assert building.differences(shipped, building.target()) == ["cuda sources"]


def test_cached_build_for_more_gpus_serves(cuda_torch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library = extension.cache_folder() / "another" / "_C.so"
    library.parent.mkdir(parents=True)
    library.touch()
    record = building.target() | {"cuda": "13.0 sm_80 sm_86"}
    building.record_path(library).write_text(json.dumps(record))
    monkeypatch.setattr(building, "_gpus", lambda: [(8, 6)])
    assert extension._cached(building.target()) == library
    monkeypatch.setattr(building, "_gpus", lambda: [(9, 0)])
    assert extension._cached(building.target()) is None


def test_build_goes_on_without_cuda_where_nvcc_fails(
    cuda_torch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX")
    library = tmp_path / "built" / "_C.so"
    building.build(library, tmp_path / "work")
    assert library.is_file()
    assert building.lacks_cuda(building.read_record(library)) == "compiling failed: nvcc fatal: the moon is full"


def test_nvcc_takes_the_flags(cuda_torch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.delenv("CXX")
    home = building.find_toolkit()
    if home is None:
        pytest.skip("there is no CUDA toolkit (nvcc)")
    version = building._ask_nvcc(home, "--version").partition("release ")[2].split(",")[0]
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0+PTX")
    monkeypatch.setattr(building, "CUDA_LINK_FLAGS", ["-lcudart"])  # the torch here has no CUDA libraries
    folder = building.source_folder()
    (folder / "cuda" / "kernel.cuh").write_text("__global__ void kernel(float* x);\nvoid start(float* x);\n")
    (folder / "cuda" / "kernel.cu").write_text("""
#include "cuda/kernel.cuh"
#ifndef DIP_FAST_CUDA
#error "the version of CUDA is missing"
#endif
__global__ void kernel(float* x) { x[threadIdx.x] += 1; }
void start(float* x) { kernel<<<1, 32>>>(x); }
""")
    (folder / "cuda" / "bind.cpp").write_text(
        "#include <cuda_runtime.h>\ncudaError_t last() { return cudaGetLastError(); }\n"
    )
    library = tmp_path / "built" / "_C.so"
    building.build(library, tmp_path / "work")
    assert building.read_record(library)["cuda"] == f"{version} sm_80 compute_80"
    assert b".nv_fatbin" in library.read_bytes()
    dependencies = subprocess.run(
        [building._ninja(), "-C", tmp_path / "work", "-t", "deps"], capture_output=True, text=True
    )
    assert str(folder / "cuda" / "kernel.cuh") in dependencies.stdout  # compiled again when it changes


CHECKED = {
    "good.cu": "__global__ void good(float* x) { x[threadIdx.x] += 1; }",
    "unused.cu": "__global__ void unused(float* x) { int n; x[0] = 1; }",
    "array.cu": """
template <class T>
__global__ void array(T* x, int n) {
  T a[400];
#pragma unroll 1
  for (int i = 0; i < 400; ++i) a[i] = x[i * n];
  x[0] = a[n];
}
template __global__ void array<float>(float*, int);
""",
    "host.cu": "#include <cuda_runtime.h>\nint host(const unsigned a, const int b) { return a < b; }",
    "bind.cpp": "#include <c10/cuda/CUDAStream.h>\nvoid* bind() { return c10::cuda::getCurrentCUDAStream(); }",
    "misspelt.cpp": "#include <c10/cuda/CUDAStream.h>\nvoid* bind() { return c10::cuda::getCurentCUDAStream(); }",
}


def test_check_cuda_finds_what_is_wrong(tmp_path: Path) -> None:
    if building.find_toolkit() is None:
        pytest.skip("there is no CUDA toolkit (nvcc)")
    script = Path(__file__).parents[1] / ".ci" / "check_cuda.py"
    if not script.exists():
        pytest.skip("the source distribution does not hold .ci/check_cuda.py")
    for folder in (".ci", "dip_fast/ops", "csrc/cuda"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(script, tmp_path / ".ci")
    shutil.copy(str(building.__file__), tmp_path / "dip_fast" / "ops")
    for name, text in CHECKED.items():
        (tmp_path / "csrc" / "cuda" / name).write_text(text + "\n")
    (tmp_path / "csrc" / "sources.txt").write_text("".join(f"cuda/{name}\n" for name in CHECKED))

    def check(*names: str, **changes: str) -> tuple[int, str]:
        command = [sys.executable, str(tmp_path / ".ci" / "check_cuda.py"), *names]
        result = subprocess.run(command, capture_output=True, text=True, env=os.environ | changes, check=False)
        return result.returncode, result.stdout + result.stderr

    code, output = check("good.cu", "bind.cpp")
    assert code == 0, output
    assert re.findall(r"^sm_\w+", output, re.MULTILINE) == ["sm_80", "sm_90a", "sm_120"]
    assert "cuda/bind.cpp: parses" in output
    code, output = check("array.cu", "unused.cu", "host.cu", "misspelt.cpp")
    assert code == 1
    assert len(re.findall(r" 1600 B stack +0 B spilled  array.cu: array<float>  FAILS: local memory", output)) == 3
    assert "cuda/unused.cu sm_120: the compiler complains" in output
    assert 'variable "n" was declared but never referenced' in output
    assert "cuda/host.cu sm_80: the compiler complains" in output
    assert "Werror=sign-compare" in output
    assert "getCurentCUDAStream" in output
    assert check(CUDA_HOME="/nowhere") == (1, "check-cuda: nvcc and its headers are not found (set CUDA_HOME)\n")


# ---- the build in use ------------------------------------------------------------------------------------------------


def test_build_in_use_is_parallel_and_made_for_this_torch() -> None:
    info = extension.info()
    assert info.module is not None, info.reason
    assert info.library is not None
    assert info.record["torch"] == torch.__version__
    assert info.module.build_information()["torch"] == torch.__version__
    assert info.module.build_information()["parallel"]
    assert info.module.build_information()["cuda"] == (building.lacks_cuda(info.record) is None)
    assert b"GOMP_parallel" in info.library.read_bytes()  # at::parallel_for was compiled as more than a loop
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert len({line.split()[-1] for line in maps if "libgomp" in line}) == 1  # one pool of threads, torch's


def test_package_works_without_a_build(tmp_path: Path) -> None:
    """Import, compute and differentiate, with neither a build nor a compiler."""
    unbuilt = tmp_path / "site" / "dip_fast"
    shutil.copytree(PACKAGE, unbuilt, ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    if not (unbuilt / "_csrc").exists():  # a checkout, not an installed package
        shutil.copytree(building.source_folder(), unbuilt / "_csrc")
    code = """
import json, torch, dip_fast
layer = dip_fast.UpsampleConv2d(2, 3, mode="bilinear", padding_mode="reflect")
y = layer(torch.ones(1, 2, 4, 4, requires_grad=True))
y.sum().backward()
from dip_fast.ops import extension
print(json.dumps([list(y.shape), layer.weight.grad is not None, extension.info().origin]))
"""
    result, errors = finish(start(tmp_path, code, CXX="no-such-compiler"))
    assert result == [[1, 3, 8, 8], True, "none"]
    assert errors.count("RuntimeWarning") == 1


@pytest.mark.slow
def test_real_sources_build_on_first_use(tmp_path: Path) -> None:
    unbuilt = tmp_path / "site" / "dip_fast"
    shutil.copytree(PACKAGE, unbuilt, ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    if not (unbuilt / "_csrc").exists():
        shutil.copytree(building.source_folder(), unbuilt / "_csrc")
    process = start(tmp_path, "import json, dip_fast.ops.extension as e; print(json.dumps(e.info().origin))")
    output, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    assert json.loads(output) == "cached"
    assert "warning:" not in errors
