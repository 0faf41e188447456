"""CUDA kernels in a build: what can be tested with any build of torch, and without a GPU."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from build_cases import TOY

from dip_fast.ops import building, extension


@pytest.fixture
def cuda_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CUDA build of torch, no GPU, a toolkit whose compiler only answers questions, and sources of all kinds."""
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
    """Return the command of each rule, and the rule and flags of each file, by name."""
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
