"""The rooms of the package: who may import whom, and how large a file and a function may be."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dip_fast"
# A room and the rooms that it may import from, besides itself and the base.  Only what stands above it is listed, so
# that no import can run upward and no circle can close.
BASE = ("errors", "names", "registry", "lazily", "values", "presets", "figures", "large")
ROOMS: dict[str, tuple[str, ...]] = {
    "pictures": (),
    "ops": (),
    "programs": ("ops",),
    "networks": ("ops", "programs"),
    "device": ("ops", "networks"),
    "fitting": ("ops", "networks", "device"),
    "guides": (),
    "tasks": ("pictures", "networks", "fitting", "guides"),
    "models": ("pictures", "ops", "programs", "networks", "device", "fitting"),
    "runs": ("pictures", "networks", "device", "fitting", "tasks", "models"),
    "ui": ("pictures", "tasks", "models", "runs"),
    "bench": ("ops", "networks", "device", "fitting", "runs"),
}
MAX_FLAT, MAX_FILE, MAX_FUNCTION = 14, 400, 60


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Names below ``dip_fast`` that a file imports anywhere, in functions too: ``fitting.loop``, ``errors``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and re.fullmatch(r"dip_fast(\.\w+)+:\w+", str(node.value)):
            names = [str(node.value).replace(":", ".")]  # what a registry imports on first use
        found |= {name.removeprefix("dip_fast.") for name in names if name.startswith("dip_fast.")}
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_is_in_the_order():
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms == {*ROOMS, "cli"}
    seen: set[str] = set()
    for name, allowed in ROOMS.items():
        assert set(allowed) <= seen, f"{name} may import from a room above it"
        seen.add(name)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downward(path):
    own = room(path)
    if own in ("__init__", "__main__", "api", "inverse", "interop", "info", "cli"):  # above all rooms
        return
    allowed = {*BASE, own, *ROOMS.get(own, ()), "__version__"}
    for name in imports(path):
        assert name.split(".")[0] in allowed, f"{own} may not import {name}"


def test_base_stands_below_all_rooms():
    for name in BASE:
        assert {entry.split(".")[0] for entry in imports(PACKAGE / f"{name}.py")} <= set(BASE)


def test_few_files_lie_flat():
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_FLAT


@pytest.mark.parametrize("folder", ["dip_fast", "csrc", "benchmarks", "tests", ".ci"])
def test_no_file_is_longer_than_a_sitting(folder):
    endings = {".py", ".cpp", ".h", ".cu", ".cuh"}
    lengths = {
        path: len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*") if path.suffix in endings
    }
    assert lengths
    assert {path: length for path, length in lengths.items() if length > MAX_FILE} == {}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_fit_a_screen(path):
    """Statements are counted, not the docstring; a longer function says why in a comment, ``# Long: ...``."""
    text = path.read_text()
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            length = node.end_lineno - first.lineno + 1
            reason = any("# Long:" in line for line in lines[node.lineno - 1 : first.lineno])
            assert length <= MAX_FUNCTION or reason, f"{node.name} has {length} lines"
