"""The server of the page: who may ask, for what, and what it does with what is sent."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from run_cases import ONE, read, record, texture, write

from dip_fast.errors import UsageError

pytest.importorskip("starlette", reason="starlette is missing")
pytest.importorskip("httpx2", reason="httpx2 is missing")
from starlette.testclient import TestClient
from ui_cases import HOSTILE, PAGE, TOKEN

from dip_fast.ui import guard, jobs, orders
from dip_fast.ui.desk import Desk
from dip_fast.ui.server import SCRIPTS, application

pytestmark = pytest.mark.usefixtures("place")


@pytest.fixture
def started(monkeypatch):
    """Commands that would have been started."""
    commands = []
    monkeypatch.setattr(jobs.Jobs, "_launch", lambda self, name, command, facts: commands.append(command))
    return commands


def test_page_has_its_policy_and_nothing_of_elsewhere(client):
    answer = client.get("")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert answer.headers["referrer-policy"] == "no-referrer"
    for name in ("", "ui.css", *SCRIPTS):
        answer = client.get(name)
        assert answer.status_code == 200
        assert "http" not in answer.text.replace("http-equiv", "")


@pytest.mark.parametrize(
    "path", ["", "/", "/secrets/", "/secret", "/Secret/", "//secret/runs", "/x/secret/runs", "/é/"]
)
def test_nobody_without_the_token_is_answered(client, path):
    assert client.send(client.build_request("GET", f"http://127.0.0.1:8000{path}")).status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:8001", "127.0.0.1:8000.evil.example", ""])
def test_other_hosts_are_refused(client, host):
    assert client.get("runs", headers={"host": host}).status_code == 403


def test_other_origins_are_refused(client, started):
    for origin in ("http://evil.example", "null"):
        assert client.post("runs", json={}, headers={"origin": origin}).status_code == 403
    assert started == []


@pytest.mark.parametrize(
    "path",
    ["../secret.txt", "../private.png", "/etc/passwd", "deep/../../private.png", "link.png", "\0", "", ".", "none.png"],
)
def test_pictures_outside_the_folder_are_not_there(client, desk, path):
    (desk.root / "link.png").symlink_to(desk.root.parent / "private.png")
    for address in (f"here/{path}", f"dropped/{path}", path):
        for asked in (client.get("picture", params={"of": address}), client.get("mask", params={"of": address})):
            assert asked.status_code == 422
            assert "secret" not in asked.text


@pytest.mark.parametrize("folder", ["..", "../..", "/etc", "deep/../..", "\0"])
def test_folders_outside_the_folder_are_not_listed(client, folder):
    assert client.get("files", params={"folder": folder}).status_code == 422


@pytest.mark.parametrize("name", ["..", ".ui", "%2e%2e", "a%2f..%2f..", "link", "-", "none"])
def test_runs_outside_the_folder_of_runs_are_not_there(client, desk, name):
    (desk.root / "run.json").write_text("{}")
    (desk.runs / "link").symlink_to(desk.root)
    for path in (f"runs/{name}", f"runs/{name}/file/report", f"runs/{name}/look/result"):
        assert client.get(path).status_code in (404, 422)
    assert client.post(f"runs/{name}/stop").status_code in (404, 405, 422)


def test_picture_alone_shows_no_other(desk):
    write(str(desk.root / "other.png"), texture(16, 18))
    alone = Desk(desk.root, desk.runs, "noisy.png")
    assert alone.files("")["pictures"] == ["noisy.png"]
    alone.picture("here/noisy.png")
    with pytest.raises(UsageError):
        alone.picture("here/other.png")


def test_names_are_listed_as_they_are(client, desk):
    (desk.root / HOSTILE).write_bytes((desk.root / "noisy.png").read_bytes())
    (desk.root / ".hidden.png").write_bytes(b"")
    (desk.root / os.fsdecode(b"\xff.png")).write_bytes(b"")
    found = client.get("files").json()
    assert found == {"folder": "", "folders": ["deep"], "pictures": sorted([HOSTILE, "noisy.png"])}
    assert client.get("picture", params={"of": f"here/{HOSTILE}"}).status_code == 200


def test_name_of_the_folder_is_text(tmp_path):
    (tmp_path / "<b>&").mkdir()
    page = TestClient(
        application(Desk(tmp_path / "<b>&", tmp_path / "runs"), TOKEN, ("h",)), base_url=f"http://h/{TOKEN}/"
    )
    assert "<b>" not in page.get("").text


@pytest.mark.parametrize("name", [HOSTILE, "../../up.png", "C:\\x\\y.png", "a" * 300 + ".png", "", "\0.png", ".png"])
def test_dropped_picture_is_kept_under_a_plain_name(client, desk, name):
    answer = client.post("dropped", params={"name": name}, content=(desk.root / "noisy.png").read_bytes())
    assert answer.status_code == 200
    place, _, kept = answer.json()["picture"].partition("/")
    assert place == "dropped"
    assert [path.name for path in (desk.own / "dropped").iterdir()] == [kept]
    assert set("<>'\"$\\/\0").isdisjoint(kept)
    assert client.get("picture", params={"of": answer.json()["picture"]}).status_code == 200


def test_what_is_no_picture_is_not_kept(client, desk):
    answer = client.post("dropped", params={"name": "x.png"}, content=b"<script>alert(1)</script>")
    assert answer.status_code == 422
    assert list((desk.own / "dropped").iterdir()) == []


def test_upload_is_bounded_with_and_without_its_length(client, desk, monkeypatch):
    monkeypatch.setattr(guard, "MAX_UPLOAD", 1000)

    def pieces():
        for _ in range(10):
            yield b"x" * 500

    for content in (b"x" * 1001, pieces()):
        assert client.post("dropped", params={"name": "x.png"}, content=content).status_code == 413
    assert client.post("runs", content=b"x" * (guard.MAX_ORDER + 1)).status_code == 413
    assert list((desk.own / "dropped").iterdir()) == []


@pytest.mark.parametrize("pace", ["SECONDS_A_PIECE", "SECONDS_IN_ALL"])
def test_slow_upload_ends(desk, monkeypatch, pace):
    monkeypatch.setattr(guard, pace, 0.05)
    sent = []

    async def receive():
        await asyncio.sleep(0.02 if pace == "SECONDS_IN_ALL" else 9)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": f"/{TOKEN}/dropped", "query_string": b"name=x.png"}
    scope |= {"headers": [(b"host", b"h")], "http_version": "1.1", "scheme": "http", "server": ("h", 80)}
    asyncio.run(application(desk, TOKEN, ("h",))(scope, receive, send))
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(
    "order",
    [
        {"task": "denoise", "picture": "here/../private.png"},
        {"task": "--overwrite"},
        {"task": "denoise", "preset": "--out=/tmp"},
        {"task": "denoise", "preset": ["default"]},
        {"task": "denoise", "iterations": "3 --out /tmp"},
        {"task": "denoise", "iterations": -1},
        {"task": "denoise", "iterations": True},
        {"task": "denoise", "options": {"out": "/tmp"}},
        {"task": "denoise", "options": {"noise": 3}},
        {"task": "denoise", "options": {"noise": "--out=/tmp"}},
        {"task": "denoise", "options": []},
        {"task": "deblur", "options": {"kernel": "/etc/passwd"}},
        {"task": "deblur", "options": {}},
        {"task": "inpaint"},
        {"task": "guided"},
        {"task": "guided", "guide": "here/../private.png"},
        {"task": "guided", "guide": "/etc/passwd"},
        {"task": "denoise", "seed": "3 --out /tmp"},
        {"task": "denoise", "seed": -1},
        {"task": "denoise", "seed": True},
        {"task": "denoise", "preview": "--out=/tmp"},
        {"task": "denoise", "preview": "4,4,16,16"},
        {"task": "denoise", "preview": 3},
        {"task": "denoise", "max_size": "18 --out /tmp"},
        {"task": "denoise", "max_size": 3},
        [],
    ],
    ids=str,
)
def test_orders_of_what_is_not_offered_are_refused(client, started, order):
    order = {"picture": "here/noisy.png"} | order if isinstance(order, dict) else order
    assert client.post("runs", json=order).status_code == 422
    assert started == []


def test_too_many_steps_are_refused_with_the_most(client, started):
    order = {"picture": "here/noisy.png", "task": "denoise", "iterations": 10**12}
    assert "from 1 to 1000000000" in client.post("runs", json=order).json()["error"]


def test_order_becomes_one_command(client, desk, started):
    order = {"picture": "here/noisy.png", "task": "denoise", "preset": "quick", "iterations": 40}
    for name in ("noisy", "noisy-2"):
        answer = client.post("runs", json=order | {"options": {"noise": "25"}})
        assert answer.json() == {"name": name}
    assert started[0][3:] == [
        "run", str(desk.root / "noisy.png"), "--out", str(desk.runs / "noisy"), "--task=denoise", "--preset=quick",
        "--iterations=40", "--snapshot-every=2", "--noise=25", "--json-events",
    ]  # fmt: skip


def test_what_few_change_becomes_options(client, desk, started):
    write(str(desk.root / "white.png"), texture(16, 18))
    order = {"picture": "here/noisy.png", "task": "guided", "guide": "here/white.png", "options": {"scale": 1}}
    order |= {"seed": 5, "preview": "center", "max_size": 18, "keep_metadata": True}
    assert client.post("runs", json=order).status_code == 200
    assert started[0][-8:] == [
        "--scale=1", "--guide", str(desk.root / "white.png"), "--seed=5", "--preview=center", "--max-size=18",
        "--keep-metadata", "--json-events",
    ]  # fmt: skip
    asked = {"of": "here/noisy.png", "task": "denoise"}
    assert client.get("costs", params=asked | {"preview": "0,0,16,16"}).status_code == 200
    assert "edge" in client.get("costs", params=asked | {"preview": "4,4,16,16"}).json()["error"]


def test_costs_are_those_of_the_picture(client):
    found = client.get("costs", params={"of": "here/noisy.png", "task": "denoise"}).json()
    assert (found["width"], found["height"]) == (18, 16)
    assert {"fast", "default", "best", "quick"} <= {preset["name"] for preset in found["presets"]}
    assert set(orders.tasks()) == set(orders.OFFERED)


def test_run_of_the_command_line_is_shown_and_its_answer_picked(client, desk, dip, small, from_random_input):
    picture = desk.root / "noisy.png"
    assert dip("run", picture, *ONE, "--quiet", "--iterations", "25", "--out", "runs/noisy").code == 0
    assert [run["status"] for run in client.get("runs").json()] == ["done"]
    state = client.get("runs/noisy").json()
    assert state["choices"]["steps"] == [10, 20, 25]
    assert state["summary"]["best_step"] == 25
    assert (state["has_input"], state["can_resume"]) == (True, False)
    for what in ("input", "result", "answer"):
        assert client.get(f"runs/noisy/look/{what}").headers["content-type"] == "image/png"
    report = client.get("runs/noisy/file/report")
    assert "sandbox" in report.headers["content-security-policy"]
    answer = client.get("runs/noisy/look/answer").content
    assert dip("pick", "runs/noisy", "--strength", "0.5").code == 0
    assert client.get("runs/noisy/look/answer").content == answer
    assert client.get("runs/noisy/look/result").content != answer
    for order in ({"step": "1"}, {"strength": "0.5"}, {"strength": True}):
        assert client.post("runs/noisy/pick", json=order).status_code == 422
    damaged = record("runs/noisy") | {"files": {"picture": str(desk.root.parent / "private.png")}}
    Path("runs/noisy/run.json").write_text(json.dumps(damaged))
    assert client.get("runs/noisy/look/input").status_code == 422
    assert client.get("runs/noisy").json()["has_input"] is False  # so that the page shows no blend with nothing


def test_input_of_a_preview_is_the_part_that_was_restored(client, desk, dip, small, from_random_input):
    """The page lays it over the result."""
    image = texture(20, 30)
    write(str(desk.root / "whole.png"), image)
    preview = ("--preview", "8,2,18,16", "--out", "runs/part")
    assert dip("run", desk.root / "whole.png", *ONE, "--quiet", "--iterations", "3", *preview).code == 0
    Path("shown.png").write_bytes(client.get("runs/part/look/input").content)
    np.testing.assert_array_equal(read(Path("shown.png")), image[2:18, 8:26])


def test_damaged_folders_are_listed_as_failed(client, desk):
    (desk.runs / "broken").mkdir()
    (desk.runs / "broken" / "run.json").write_text('{"status": "done", "summary": {}, "settings": 3}')
    (run,) = client.get("runs").json()
    assert run["name"] == "broken"
    assert client.get("runs/broken").status_code == 200


def test_child_is_found_again_by_another_server_and_stopped(desk):
    """A job is a process of its own: whoever reads its file finds it, and no other process with its number."""
    desk.make()
    first, second = jobs.Jobs(desk), jobs.Jobs(desk)
    sleeper = [jobs.PROGRAM[0], "-c", "import time\ntime.sleep(60)"]
    first._launch("noisy", sleeper, {"name": "noisy.png"})
    assert second.state("noisy")["status"] == "starting"
    facts = json.loads((desk.own / "jobs/noisy.json").read_text())
    assert os.getsid(facts["pid"]) == facts["pid"]
    second.stop("noisy")
    for _ in range(200):
        if second.state("noisy")["status"] != "starting":
            break
        time.sleep(0.02)
    assert second.state("noisy")["status"] not in jobs.AT_WORK
    facts["pid"] = os.getpid()
    (desk.own / "jobs/noisy.json").write_text(json.dumps(facts))
    second.stop("noisy")  # this process lives on


@pytest.mark.parametrize(
    ("log", "status"), [("dip-fast: stopped by the user\n", "stopped"), ("", "stopped"), ("dip-fast: no\n", "failed")]
)
def test_job_that_was_ended_before_its_record_has_not_failed(client, desk, log, status):
    (desk.own / "jobs/early.json").write_text('{"pid": 0}')
    (desk.own / "jobs/early.log").write_text(log)
    state = client.get("runs/early").json()
    assert (state["status"], state["can_resume"]) == (status, False)


def test_run_of_a_terminal_is_not_stopped_in_silence(client, desk, monkeypatch):
    folder = desk.runs / "noisy"
    folder.mkdir()
    (folder / "run.json").write_text('{"status": "running"}')
    monkeypatch.setattr(jobs, "_is_locked", lambda folder: True)
    answer = client.post("runs/noisy/stop")
    assert answer.status_code == 422
    assert "Ctrl-C" in answer.json()["error"]
    assert "at work" in client.post("runs/noisy/resume").json()["error"]


def test_last_event_of_a_long_file_is_found(desk):
    desk.make()
    line = json.dumps({"event": "progress", "done": 1, "pad": "x" * 900})
    lines = [
        json.dumps({"event": "note", "text": "first"}),
        *[line] * 200,
        json.dumps({"event": "progress", "done": 7}),
    ]
    (desk.own / "jobs/long.jsonl").write_text("\n".join(lines) + '\n{"event": "pro')
    assert jobs.Jobs(desk)._events("long") == (["first"], {"event": "progress", "done": 7})


def test_address_is_no_argument_of_a_browser(monkeypatch, desk):
    """Other users of the machine can read these."""
    import webbrowser

    from dip_fast.cli import ui

    desk.make()
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    ui._open(PAGE, desk.runs)
    (page,) = desk.own.glob("*.html")
    assert opened == [page.as_uri()]
    assert page.stat().st_mode & 0o077 == 0
    assert PAGE in page.read_text()


def test_missing_extra_is_named(dip, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    outcome = dip("ui")
    assert outcome.code == 2
    assert 'pip install "dip-fast[ui]"' in outcome.err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
