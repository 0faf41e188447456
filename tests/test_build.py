"""The extension is built once and loaded only where it fits; without it the package works, with a warning."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from build_cases import TOY

import dip_fast
from dip_fast.errors import UsageError
from dip_fast.ops import building, extension

PACKAGE = Path(dip_fast.__file__).parent
REPORT = """
import json
from concurrent.futures import ThreadPoolExecutor
from dip_fast.ops import extension
with ThreadPoolExecutor(4) as pool:
    loaded = set(pool.map(lambda _: extension.load(), range(8)))
info = extension.info()
assert loaded == {info.interface}
print(json.dumps({"origin": info.origin, "library": str(info.library), "reason": info.reason, "line": str(info)}))
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A package of the real modules and a toy extension, in an empty folder, with a cache of its own."""
    write_toy(tmp_path)
    return tmp_path


def write_toy(root: Path) -> None:
    package = root / "site" / "dip_fast"
    (package / "ops").mkdir(parents=True)
    (package / "_csrc").mkdir()
    (package / "__init__.py").touch()
    (package / "ops" / "__init__.py").touch()
    for name in ("errors.py", "ops/building.py", "ops/extension.py", "ops/interface.py"):
        shutil.copy(PACKAGE / name, package / name)
    (package / "_csrc" / "toy.cpp").write_text(TOY)
    (package / "_csrc" / "sources.txt").write_text("# a comment\ntoy.cpp -DOWN_FLAG  # and another\n")


def environment(root: Path, **changes: str) -> dict[str, str]:
    dropped = ("DIP_FAST_BUILD", "DIP_FAST_CPU", "CXX", "PYTHONWARNINGS")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {"PYTHONPATH": str(root / "site"), "XDG_CACHE_HOME": str(root / "cache"), "MAX_JOBS": "1"} | changes


def start(root: Path, code: str = REPORT, **changes: str) -> subprocess.Popen[str]:
    # The folder is not the root of a checkout, whose dip_fast would be imported first.
    pipe = subprocess.PIPE
    command = [sys.executable, "-P", "-c", code]
    return subprocess.Popen(
        command, cwd=root, env=environment(root, **changes), stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[dict[str, str], str]:
    """Wait for a process, and return its report and its standard error."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(output), errors


def cached(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "cache" / "dip-fast").iterdir())


def slow_compiler(root: Path, seconds: int) -> tuple[str, Path]:
    """Write a compiler that creates a file when it starts, and waits as long as its switch, another file, exists."""
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
    """Put a build beside the package as a wheel does, with changes in its record."""
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


def test_nothing_is_built_under_the_policy_never(toy: Path) -> None:
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
    assert report["line"] == f"operators that came with the package, for torch {torch.__version__}, kernels toy"
    assert not (toy / "cache").exists()


def test_libraries_for_other_versions_of_torch_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel holds a library for each version of torch that it was tested with, whichever part for GPUs torch has."""
    monkeypatch.setattr(extension, "__file__", str(tmp_path / "ops" / "extension.py"))
    wanted = building.target()
    assert str(extension._load_shipped(wanted)) == "operators in plain PyTorch: no build came with this package"
    for version in ("2.12.0", "3.0.1"):
        library = tmp_path / building.shipped_name(f"{version}+cu130")
        library.write_bytes(b"not a library")
        building.record_path(library).write_text(json.dumps(wanted | {"torch": f"{version}+cu130"}))
    reason = f"the builds that came with this package are for torch 2.12.0, 3.0.1, not {torch.__version__}"
    assert extension._load_shipped(wanted).reason == reason
    version = building.public(torch.__version__)
    library = tmp_path / f"_C.torch-{version}.so"
    shutil.copy(tmp_path / "_C.torch-2.12.0.so", library)
    building.record_path(library).write_text(json.dumps(wanted | {"torch": f"{version}+cu130"}))
    assert extension._load_shipped(wanted).reason.startswith(f"{library} cannot be loaded: ")  # it was chosen


def test_cpu_alone_where_no_cuda_kernels_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a CUDA toolkit, but no compiler, the wheel's build for the CPU was refused, and none was used."""
    monkeypatch.setattr(extension, "__file__", str(tmp_path / "ops" / "extension.py"))
    monkeypatch.setattr(extension, "Interface", lambda library: object())
    monkeypatch.setattr(extension, "cache_folder", lambda: tmp_path / "cache")
    wanted = building.target() | {"cuda": "13.0 sm_90"}
    monkeypatch.setattr(building, "target", lambda: wanted)
    monkeypatch.setattr(building, "missing", lambda: "there is no C++ compiler")
    monkeypatch.setattr(torch._C, "_dispatch_get_all_op_names", list)
    monkeypatch.delenv("DIP_FAST_BUILD", raising=False)
    library = tmp_path / building.shipped_name(torch.__version__)
    library.touch()
    record = wanted | {"cuda": "none: torch is built without CUDA"}
    building.record_path(library).write_text(json.dumps(record))
    found = extension._load()
    assert (found.origin, found.library) == ("shipped", library)
    assert building.lacks_cuda(found.record) == "making one here failed: there is no C++ compiler"
    building.record_path(library).write_text(json.dumps(record | {"sources": "0"}))
    assert extension._load().reason.endswith("another sources, and making one here failed: there is no C++ compiler")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"torch": "2.12.0"}, "made for another torch"),
        ({"flags": "-O0"}, "made for another flags"),
        ({"sources": "0"}, "made for another sources"),
    ],
    ids=["torch", "flags", "sources"],
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


def test_kernels_that_this_cpu_lacks_are_wrong_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def __init__(self, library: Path) -> None:
            raise ValueError("DIP_FAST_CPU must be portable, avx2, avx512 or avx512_bf16, got sse9")

    monkeypatch.setattr(extension, "Interface", Refusing)
    with pytest.raises(UsageError, match="DIP_FAST_CPU must be portable, avx2, avx512 or avx512_bf16, got sse9"):
        extension._open(tmp_path / "_C.so", "cached", {})


def test_build_needs_no_python_and_no_openmp_of_its_own() -> None:
    """One file serves every Python, and uses the threads of the OpenMP that torch has loaded, whatever it is called."""
    library = extension.info().library
    assert library is not None
    text = library.read_bytes()
    for name in (b"libtorch_python", b"libpython", b"libgomp.so", b"PyInit", b"pybind11"):
        assert name not in text, name


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


# ---- the build in use ------------------------------------------------------------------------------------------------


def test_build_in_use_is_parallel_and_made_for_this_torch() -> None:
    info = extension.info()
    assert info.interface is not None, info.reason
    assert info.library is not None
    assert info.record["torch"] == torch.__version__
    assert info.interface.build_information()["torch"] == torch.__version__
    assert info.interface.build_information()["parallel"]
    assert info.interface.build_information()["cuda"] == (building.lacks_cuda(info.record) is None)
    assert b"GOMP_parallel" in info.library.read_bytes()  # at::parallel_for was compiled as more than a loop
    maps = Path("/proc/self/maps").read_text().splitlines()
    pools = {line.split()[-1] for line in maps if "libgomp" in line}
    # One pool of threads, torch's; another test of this process may have loaded rawpy, which has its own.
    assert len([path for path in pools if "rawpy.libs" not in path]) == 1


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
