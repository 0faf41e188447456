"""README and docs/: links, images, command lines and tables of options are those of this checkout."""

import pkgutil
import re
import runpy
import shlex
import textwrap
import tomllib
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from batch_cases import Inline
from PIL import Image

import dip_fast
from dip_fast import PRESETS, UpsampleConv2d
from dip_fast.runs.batch import control

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "examples").glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"")
COMMAND = re.compile(r"(?:dip-fast|python -m dip_fast) \w")
RENDERING = runpy.run_path(str(ROOT / ".ci" / "render_options.py"))
# By builds, and by readers of the pages that say how something is added.
TO_BE_MADE = {
    "dip_fast/_C.torch-2.13.0.so",
    "dip_fast/networks/toy.py",
    "dip_fast/pictures/farbfeld.py",
    "dip_fast/tasks/halve.py",
}
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def without_code(text):
    """Drop code blocks and spans: what looks like a link in them is none."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page):
    """Collect the anchors of a page's headings, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 100, f"README.md has {len(lines)} lines"


@every_page
def test_links_lead_somewhere(page):
    for match in LINK.finditer(without_code(page.read_text())):
        link = match[1] or match[2]
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{page.relative_to(ROOT)}: {link} does not exist"
        if anchor:
            assert anchor in anchors(target), f"{page.relative_to(ROOT)}: {link} has no such heading"


@every_page
def test_what_is_named_exists(page):
    text = page.read_text()
    for path in re.findall(r"`((?:dip_fast|csrc|tests|benchmarks|examples|requirements|\.ci)/[\w./-]+)`", text):
        if path not in TO_BE_MADE:
            assert (ROOT / path).exists(), f"{page.relative_to(ROOT)}: there is no {path}"
    for name in re.findall(r"`(dip_fast\.[\w.]+)`", text):
        if name != "dip_fast.plugins":  # the group of entry points
            pkgutil.resolve_name(name)


@every_page
def test_what_the_site_documents_is_there(page):
    for name in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE):
        pkgutil.resolve_name(name)


def commands(text):
    """Find the command lines of a page's code, without what a shell does with them."""
    fenced = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
    lines = "".join(fenced.findall(text)).splitlines() + re.findall(r"^ {4,}(.*)$", text, re.MULTILINE)
    lines += re.findall(r"`([^`\n]+)`", fenced.sub("", text))
    for command in (part.strip() for line in lines for part in line.split("&&")):
        words = shlex.split(re.split(r"\s(?:[<>|#]|\.\.\.)", f"{command} ")[0]) if COMMAND.match(command) else []
        if len(words) > 1:
            yield words[1:] if words[0] == "dip-fast" else words[3:]


@every_page
def test_command_lines_parse(page):
    """The verb and its options are there; those of plugins are not, whose pages test_add_pages.py runs."""
    if page.name.startswith("add-a-"):
        return
    group = RENDERING["group"]()
    for words in commands(page.read_text()):
        verb = group.get_command(click.Context(group), words[0])
        assert verb is not None or words[0].isupper(), f"{page.relative_to(ROOT)}: there is no verb {words[0]}"
        try:
            if verb is not None:
                verb.make_context(words[0], words[1:])
        except (click.MissingParameter, click.exceptions.Exit):
            continue  # a text that leaves the picture out, or --help
        except click.ClickException as error:
            pytest.fail(f"{page.relative_to(ROOT)}: dip-fast {shlex.join(words)}: {error.format_message()}")


EXAMPLES = ["README", *(f"docs/{page}" for page in ("quickstart", "python", "physics", "presets", "batch"))]
EXAMPLES += [f"docs/tasks/{name}" for name in ("denoise", "inpaint", "superres", "deblur", "jpeg", "guided")]


@pytest.mark.usefixtures("place", "small")
@pytest.mark.parametrize("page", EXAMPLES)
def test_python_examples_run(page, monkeypatch):
    """Python as it stands on the page, with the arrays that it speaks of, a small network and three steps."""
    monkeypatch.setattr(PRESETS, "_entries", dict(PRESETS._entries))  # a page registers its own
    for name in ("fast", "default", "quick"):
        recipe = PRESETS[name].recipe
        recipe = replace(recipe, options=replace(recipe.options, iterations=3))
        monkeypatch.setitem(PRESETS._entries, name, replace(PRESETS[name], recipe=recipe))
    text = (ROOT / f"{page}.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"^    import dip_fast\n(?:(?:    .*)?\n)+", text, re.MULTILINE)
    assert blocks, f"{page} shows no Python"
    noisy = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    Image.fromarray(noisy).save("photo.png")
    Image.fromarray(noisy).save("photo.jpg")
    Path("photos").mkdir()
    Image.fromarray(noisy).save("photos/a.png")
    monkeypatch.setattr(control, "local_pool", Inline)  # another process would not have the small network
    names: dict = {
        "noisy": noisy,
        "holed": noisy,
        "small": noisy,
        **dict.fromkeys(("blurred", "filtered", "dark", "flash", "depth"), noisy),
        "photo": noisy.repeat(4, axis=0).repeat(4, axis=1),
        "known": noisy[..., 0] > 9,
        "dip_fast": dip_fast,
        "model": UpsampleConv2d(2, 2),
    }
    names |= {"x": torch.ones(1, 2, 4, 4), "weight": torch.ones(3, 2, 3, 3), "bias": torch.ones(3)}
    names["model"] = UpsampleConv2d(2, 2)
    for block in blocks:
        exec(compile(textwrap.dedent(block), page, "exec"), names)
    for name in names.keys() & {"restored", "filled"}:
        assert names[name].shape == noisy.shape  # type: ignore[attr-defined]
        assert names[name].dtype == noisy.dtype  # type: ignore[attr-defined]


def test_tables_of_options_are_those_of_help():
    page = (ROOT / "docs" / "cli.md").read_text()
    assert page == RENDERING["render"](page), "run python .ci/render_options.py"


def test_command_line_page_names_every_verb():
    verbs = re.findall(r"^\| `([a-z]+)` \|", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE)
    assert sorted(RENDERING["group"]().commands) == sorted(verbs)


@every_page
def test_figures_are_marked(page):
    text = page.read_text()
    opened = re.findall(r"^<!-- figures:([a-z-]+) -->$", text, re.MULTILINE)
    assert len(opened) == len(re.findall(r"^<!-- /figures -->$", text, re.MULTILINE))
    assert len(opened) == len(set(opened)), "a name stands twice"


def test_readme_has_no_figures_outside_the_generated_blocks():
    text = re.sub(r"<!-- figures.*?<!-- /figures -->", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    found = re.findall(r"\d[\d.,]* ?(?:x\b(?!\d)|dB|ms|s\b|MB|GB)", text)
    assert not found, f"{found} come from no file"


def test_pins_cover_the_extras():
    """Each dependency, those of the extras included, is pinned, in its range."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted_by = {"dev.txt": [*project["dependencies"], *extras["dev"]], "docs.txt": extras["docs"]}
    wanted_by["release.txt"] = extras["release"]
    for file, wanted in wanted_by.items():
        lines = (ROOT / "requirements" / file).read_text().splitlines()
        pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
        pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
        for requirement in map(Requirement, wanted):
            assert requirement.name in pins, f"{file} does not pin {requirement.name}"
            assert pins[requirement.name] in requirement.specifier, f"{file}: {requirement}"
    dev, docs = (
        dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements" / file).read_text(), re.MULTILINE))
        for file in ("dev.txt", "docs.txt")
    )
    assert dev["ruff"] == docs["ruff"]


def test_forms_ask_for_info():
    forms = [*(ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")]
    assert len(forms) > 1
    for form in forms:
        assert form.name == "config.yml" or "dip-fast info" in form.read_text(), form.name


def test_types_are_shipped():
    assert (Path(dip_fast.__file__).parent / "py.typed").is_file()
