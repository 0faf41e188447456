"""The notebooks of docs/notebooks/ run from their first cell to their last, at a size of seconds."""

import json
import re
from pathlib import Path

import pytest
from matplotlib import pyplot

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SMALL = {"SIZE": 64, "VIEWS": 6, "ITERATIONS": 3}


def cells(notebook):
    """List the code of the cells, with small values in place of the parameters."""
    found = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in found), "clear the outputs"
    for cell in found:
        code = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", []):
            code = re.sub(r"^([A-Z]+) = \d+", lambda match: f"{match[1]} = {SMALL[match[1]]}", code, flags=re.MULTILINE)
        yield code


@pytest.mark.usefixtures("place", "small")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook, capsys):
    names = {}
    for number, code in enumerate(cells(notebook)):
        exec(compile(code, f"{notebook.name}, cell {number}", "exec"), names)
    pyplot.close("all")
    assert re.search(r"\d dB, fitted [-\d.]+ dB", capsys.readouterr().out)


def test_notebooks_are_linked_from_the_docs():
    text = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    assert NOTEBOOKS
    for notebook in NOTEBOOKS:
        assert f"(notebooks/{notebook.name})" in text, f"no page links {notebook.name}"
