"""What the site of docs/ needs beyond mkdocs.

Pages link to files outside docs/ (examples, sources) as they do on GitHub; the site takes copies of these along.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)#\s]+)")
COPIES = "checkout"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links to files outside docs/ lead to their copies."""
    folder = posixpath.dirname(page.file.src_uri)

    def copied(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, match[2]))
        if ":" in match[2] or target.startswith("docs/") or target.endswith(".md") or not (ROOT / target).is_file():
            return match[0]
        uri = f"{COPIES}/{target}"
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=os.fspath(ROOT / target)))
        return f"{match[1]}{posixpath.relpath(uri, folder or '.')}"

    return LINK.sub(copied, markdown)
