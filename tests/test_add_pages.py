"""What the pages docs/developers/add-a-*.md show, run: each is a plugin that the command line finds by its entry point.

A block whose first line names a file is that file; a bash block is a list of command lines.
"""

import json
import os
import re
import shlex
import struct
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
from PIL import Image

PAGES = Path(__file__).parents[1] / "docs" / "developers"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"(?:#|//) ([\w./-]+\.\w+)\n")
FEW = ["--iterations", "3", "--threads", "1", "--quiet"]


def install(page, site):
    """Write the files of a page into a folder of packages, with the metadata that installing them would leave."""
    for _, text in BLOCK.findall(page):
        if named := NAMED.match(text):
            path = site / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    (site / "my_plugin" / "__init__.py").touch()
    if not (site / "pyproject.toml").exists():
        return
    project = tomllib.loads((site / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def follow(name, place):
    """Install the plugin of a page, run its command lines with few steps, and join what they print."""
    page = (PAGES / f"{name}.md").read_text()
    site = place / "site"
    install(page, site)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # ninja is there
        "OMP_NUM_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": str(place / "built"),
    }
    printed = []
    for line in "".join(text for kind, text in BLOCK.findall(page) if kind == "bash").splitlines():
        program, *arguments = shlex.split(line, comments=True)
        if program == "pip":
            continue  # install stands for it
        module = ["-m", "dip_fast"] if program == "dip-fast" else []
        assert module or program == "python"
        few = FEW if module and arguments[0] == "run" else []
        done = subprocess.run(
            [sys.executable, *module, *arguments, *few], cwd=place, env=environment, capture_output=True, text=True
        )
        assert not done.returncode, f"{line}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    assert printed, f"{name}.md shows no command line"
    return "".join(printed)


def size(path):
    with Image.open(path) as file:
        return file.size


def test_add_a_task(noisy):
    noisy.rename(noisy.with_name("small.png"))
    follow("add-a-task", noisy.parent)
    assert size(noisy.parent / "runs" / "small" / "result.png") == (2 * 18, 2 * 16)


def test_add_a_network(noisy):
    follow("add-a-network", noisy.parent)
    assert size(noisy.parent / "runs" / "noisy" / "result.png") == (18, 16)
    assert json.loads((noisy.parent / "runs" / "noisy" / "run.json").read_text())["recipe"]["network"] == "toy"


def test_add_a_picture_format(noisy):
    with Image.open(noisy) as file:
        gray = np.asarray(file).astype(">u2") * 257
    rgba = np.dstack([gray, gray, gray, np.full_like(gray, 65535)])
    noisy.with_suffix(".ff").write_bytes(struct.pack(">8sII", b"farbfeld", 18, 16) + rgba.astype(">u2").tobytes())
    noisy.unlink()
    follow("add-a-picture-format", noisy.parent)
    result = noisy.parent / "runs" / "noisy" / "result.ff"
    assert result.read_bytes()[:16] == struct.pack(">8sII", b"farbfeld", 18, 16)
    assert (noisy.parent / "again.ff").read_bytes() == result.read_bytes()


def test_add_a_kernel(place):
    assert "agrees with its reference" in follow("add-a-kernel", place)
