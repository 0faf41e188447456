"""Checks that the checkout is what a tag says: ``python .ci/check_release.py v0.1.0``.

The version stands in ``dip_fast/__init__.py``, as the package is also used from a checkout, where no metadata is
installed.  The tag, the changelog and the citation have to agree with it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def problems(root: Path, tag: str) -> list[str]:
    """List what keeps a tag from being a release; each problem is one line."""
    found = []
    version = _match(r'^__version__ = "(.+)"$', root / "dip_fast" / "__init__.py")
    if re.fullmatch(r"\d+\.\d+\.\d+(rc\d+)?", version) is None:
        found.append(f"dip_fast/__init__.py: {version!r} is not a version like 0.1.0 or 0.1.0rc1")
    if tag != f"v{version}":
        found.append(f"the tag is {tag}, and the version in dip_fast/__init__.py {version}: the tag must be v{version}")
    heading = _match(r"^## (.+)$", root / "CHANGELOG.md")
    if re.fullmatch(re.escape(version) + r" \(\d{4}-\d\d-\d\d\)", heading) is None:
        found.append(
            f"CHANGELOG.md begins with {heading!r}: it must be {version} and the day, like {version} (2026-12-01)"
        )
    cited = _match(r"^version: (.+)$", root / "CITATION.cff")
    if cited != version:
        found.append(f"CITATION.cff names version {cited}, not {version}")
    return found


def _match(pattern: str, file: Path) -> str:
    found = re.search(pattern, file.read_text(), re.MULTILINE)
    return "" if found is None else found[1]


def main() -> None:
    """End the program with what is wrong, if anything is."""
    (tag,) = sys.argv[1:]
    found = problems(ROOT, tag)
    changed = subprocess.run(["git", "-C", str(ROOT), "status", "--porcelain"], capture_output=True, text=True).stdout
    if changed:
        found.append("files differ from the commit: commit them, or remove them")
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
