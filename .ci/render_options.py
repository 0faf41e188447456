"""Write the tables of options in docs/ from the command line itself.

    python .ci/render_options.py            # rewrites what lies between the markers
    python .ci/render_options.py --check    # fails where it differs

The markers are ``<!-- options:VERB -->`` and ``<!-- /options -->``.
"""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path

import click

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"(<!-- options:(\w+) -->\n).*?(<!-- /options -->)", re.DOTALL)


def group() -> click.Group:
    """Import the command line's group of verbs."""
    from dip_fast.cli.verbs import cli

    return cli


def table(command: click.Command) -> str:
    """Render the options of a verb as a table, with the texts of its ``--help``."""
    context = click.Context(command, info_name=command.name)
    lines = ["| option | effect |", "|---|---|"]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record is not None and "--help" not in parameter.opts:
            option, effect = (" ".join(text.split()) for text in record)
            option = option.replace("[", "{").replace("|", ", ").replace("]", "}")  # a bar would end the cell
            effect = html.escape(effect, quote=False).replace("[", "(").replace("]", ")")  # it would be a link
            lines.append(f"| `{option}` | {effect} |")
    return "\n".join(lines) + "\n"


def render(text: str) -> str:
    """Replace what lies between the markers of a page."""
    commands = group().commands
    return BLOCK.sub(lambda match: f"{match[1]}{table(commands[match[2]])}{match[3]}", text)


def main() -> None:
    """Rewrite the pages, or compare them."""
    stale = []
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text()
        if (rendered := render(text)) != text:
            stale.append(str(page.relative_to(DOCS.parent)))
            if "--check" not in sys.argv[1:]:
                page.write_text(rendered)
    if stale and "--check" in sys.argv[1:]:
        sys.exit(f"options differ from --help in {', '.join(stale)}; run python .ci/render_options.py")


if __name__ == "__main__":
    main()
