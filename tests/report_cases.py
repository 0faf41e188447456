"""What the tests of reports share: a page, taken apart."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

HOSTILE = """<img src=x onerror=alert(1)>'"$(touch x).png"""
VOID = ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "path", "line", "source", "wbr")


class Page(HTMLParser):
    """Tags with their attributes, the text, and the content of each tag that a test asks for."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.inside = [], [], []
        self.texts = {}
        self.feed(text)
        self.close()
        assert not self.inside, f"{self.inside} are not closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes), list(self.inside)))
        if tag not in VOID:
            self.inside.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes), list(self.inside)))

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        if self.inside:
            self.texts.setdefault(self.inside[-1], []).append(data)
        self.words.append(data)

    @property
    def text(self):
        return "".join(self.words)

    def all(self, tag):
        return [attributes for name, attributes, _ in self.tags if name == tag]


def page(folder, name="report.html"):
    return Page((Path(folder) / name).read_text())


def assert_asks_for_nothing(parsed, links=()):
    """No address leads out of the page, no attribute holds a script, and the policy names what the page holds."""
    for tag, attributes, _ in parsed.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcset", "action")]
        for name in ("src", "href"):
            address = attributes.get(name, "data:")
            assert address.startswith("data:") or address in links, f"{tag} {name}={address[:60]}"
    assert {"iframe", "object", "embed", "form", "base"}.isdisjoint(tag for tag, *_ in parsed.tags)
    (policy,) = [entry["content"] for entry in parsed.all("meta") if "http-equiv" in entry]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        (content,) = parsed.texts[tag]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
        assert not re.search(r"url\(|@import|fetch|http", content)
