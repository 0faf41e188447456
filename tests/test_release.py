"""A release is what its tag says."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest

import dip_fast

ROOT = Path(__file__).parents[1]
if not (ROOT / ".ci" / "check_release.py").exists():
    pytest.skip("the source distribution does not hold .ci", allow_module_level=True)
problems = runpy.run_path(str(ROOT / ".ci" / "check_release.py"))["problems"]


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "dip_fast").mkdir()
    (tmp_path / "dip_fast" / "__init__.py").write_text('"""A package."""\n__version__ = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.0 (2026-12-01)\n\n- More.\n\n## 1.1.0 (2026-11-01)\n")
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.0\n")
    return tmp_path


def test_tag_agrees_with_what_it_tags(checkout):
    assert problems(checkout, "v1.2.0") == []


@pytest.mark.parametrize(
    ("file", "before", "after", "expected"),
    [
        ("CHANGELOG.md", "1.2.0 (2026-12-01)", "1.2.0 (unreleased)", "CHANGELOG.md begins with '1.2.0 (unreleased)'"),
        ("CHANGELOG.md", "1.2.0 (", "1.3.0 (", "CHANGELOG.md begins with '1.3.0 (2026-12-01)'"),
        ("CITATION.cff", "\nversion: 1.2.0", "\nversion: 1.1.0", "CITATION.cff names version 1.1.0, not 1.2.0"),
        ("dip_fast/__init__.py", "1.2.0", "1.3.0", "the tag is v1.2.0, and the version in dip_fast/__init__.py 1.3.0"),
        ("dip_fast/__init__.py", "1.2.0", "new", "'new' is not a version like 0.1.0"),
    ],
    ids=["unreleased", "changelog", "citation", "tag", "version"],
)
def test_release_that_contradicts_its_tag_is_refused(checkout, file, before, after, expected):
    path = checkout / file
    path.write_text(path.read_text().replace(before, after))
    assert any(expected in problem for problem in problems(checkout, "v1.2.0"))


def test_every_declared_python_is_tested_with_the_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = re.findall(r":: Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    matrix = re.search(r"python: \[(.*)\]", (ROOT / ".github" / "workflows" / "release.yml").read_text())
    assert declared == re.findall(r"\d+\.\d+", matrix[1])


def test_version_of_this_checkout_is_the_only_one():
    """Only the changelog may lack its date, until the day of the release."""
    found = problems(ROOT, f"v{dip_fast.__version__}")
    assert all(
        problem.startswith(f"CHANGELOG.md begins with '{dip_fast.__version__} (unreleased)'") for problem in found
    )
