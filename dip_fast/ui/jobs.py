"""Runs as child processes that outlive the server, and what their folders say of them.

The server keeps nothing in its memory: a job is a process in a session of its own, with its events in a file, and all
that is shown is read from that file and the run's folder.  So a server that was killed, and another one started, finds
them as they are.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from dip_fast.errors import UsageError
from dip_fast.pictures import write_atomically
from dip_fast.pictures.files import one_line
from dip_fast.runs import commands, picking, places
from dip_fast.runs.record import NAME, Record, UnreadableError
from dip_fast.ui.desk import Desk

RUN_NAME = re.compile(r"[\w-][\w. -]{0,120}")
TAIL = 2**16  # bytes of the events that are read for the last one
MAX_RUNS = 500  # that are listed
PROGRAM = (sys.executable, "-m", "dip_fast")
_children: list[subprocess.Popen[bytes]] = []  # to take note of their ends alone
AT_WORK = ("starting", "running")
STOPPED = "stopped by the user"  # as the command line says it
STATES = ("starting", "running", "done", "interrupted", "failed", "stopped")


@dataclass(frozen=True)
class Jobs:
    """The runs of a desk."""

    desk: Desk

    def _file(self, name: str, suffix: str) -> Path:
        return self.desk.own / "jobs" / f"{name}{suffix}"

    def folder(self, name: str) -> Path:
        """Find the folder of a run, which may not be there yet.

        Raises
        ------
        UsageError
            If there is neither such a folder nor such a job.
        """
        if not RUN_NAME.fullmatch(name) or not (self._file(name, ".json").exists() or self._is_run(name)):
            raise UsageError("there is no such run")
        folder = self.desk.runs / name
        if folder.is_symlink():
            raise UsageError("there is no such run")
        return folder

    def _is_run(self, name: str) -> bool:
        return (self.desk.runs / name / NAME).is_file()

    def start(self, picture: Path, words: list[str], facts: Mapping[str, Any]) -> str:
        """Start a run of a picture, in a folder that is nobody's; return its name."""
        stem = re.sub(r"[^\w-]+", "-", re.sub(r"^[0-9a-f]{8}-", "", picture.stem)).strip("-")[:60] or "run"
        for number in range(1, 10_000):
            name = stem if number == 1 else f"{stem}-{number}"
            if (self.desk.runs / name).exists():
                continue
            try:  # two tabs may start at once: one of them makes the file
                self._file(name, ".json").touch(exist_ok=False)
            except FileExistsError:
                continue
            break
        command = [*PROGRAM, "run", str(picture), "--out", str(self.desk.runs / name), *words, "--json-events"]
        self._launch(name, command, facts)
        return name

    def resume(self, name: str) -> None:
        """Go on with a run that was stopped.

        Raises
        ------
        UsageError
            If it is at work, or has no record.
        """
        folder = self.folder(name)
        if self.brief(name)["status"] in AT_WORK:
            raise UsageError("this run is at work")
        try:
            record = Record.load(folder)
        except (FileNotFoundError, UnreadableError) as error:
            raise UsageError("this run has no record to go on from; start it again") from error
        words = shlex.split(commands.resume(record, str(folder)))[1:]
        self._launch(name, [*PROGRAM, *words, "--json-events"], self._facts(name))

    def stop(self, name: str) -> None:
        """End a run after its step, with what there is by then.

        Raises
        ------
        UsageError
            If it is at work, but was not started here.
        """
        self.folder(name)
        process = self._process(name)
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGINT)
        elif self.brief(name)["status"] in AT_WORK:
            raise UsageError("this run was started in a terminal; Ctrl-C stops it there")

    def pick(self, name: str, step: int | None, strength: float | None) -> None:
        """Write another answer of a run; it takes as long as it takes.

        Raises
        ------
        UsageError
            If it is refused.
        """
        words = ["pick", str(self.folder(name)), "--json"]
        words += [] if step is None else [f"--step={step}"]
        words += [] if strength is None else [f"--strength={strength}"]
        ended = subprocess.run(
            [*PROGRAM, *words], stdin=subprocess.DEVNULL, capture_output=True, start_new_session=True, check=False
        )
        if ended.returncode:
            raise UsageError(_last_line(ended.stderr) or "it could not be written")

    def _launch(self, name: str, command: list[str], facts: Mapping[str, Any]) -> None:
        """Start a process of its own session, which does not end with the server."""
        with self._file(name, ".jsonl").open("wb") as events, self._file(name, ".log").open("wb") as log:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=events, stderr=log, start_new_session=True
            )
        _children.append(child)
        created = psutil.Process(child.pid).create_time()
        document = {**facts, "pid": child.pid, "created": created}
        write_atomically(self._file(name, ".json"), json.dumps(document).encode())

    def _facts(self, name: str) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            document = json.loads(self._file(name, ".json").read_bytes())
            if isinstance(document, dict):
                return document
        return {}

    def _process(self, name: str) -> psutil.Process | None:
        """Find the process of a job, if it is at work: the same one, not another with its number."""
        _children[:] = [child for child in _children if child.poll() is None]
        facts = self._facts(name)
        with contextlib.suppress(psutil.Error, KeyError, TypeError, ValueError):
            process = psutil.Process(facts["pid"])
            if process.create_time() == facts["created"] and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def all(self) -> list[dict[str, Any]]:
        """List all runs, the newest first, with what a list shows of each."""
        names = {path.stem: path for path in (self.desk.own / "jobs").glob("*.json")}
        names |= {path.parent.name: path.parent for path in self.desk.runs.glob(f"*/{NAME}")}
        newest = sorted(names, key=lambda name: _changed(names[name]), reverse=True)
        return [self.brief(name) for name in newest[:MAX_RUNS] if RUN_NAME.fullmatch(name)]

    def brief(self, name: str) -> dict[str, Any]:
        """Describe a run in a few words."""
        document, facts = places.found(self.desk.runs / name) or {}, self._facts(name)
        at_work = self._process(name) is not None
        summary = document.get("summary")
        status = document.get("status")
        if at_work:
            status = "running" if self._events(name)[1] is not None else "starting"
        elif status == "running":
            status = "running" if _is_locked(self.desk.runs / name) else "stopped"
        elif not self._is_run(name) and self._error(name) in ("", STOPPED):
            status = "stopped"
        elif status not in STATES:
            status = "failed"
        settings = document.get("settings")
        settings = settings if isinstance(settings, dict) else {}
        return {
            "name": name,
            "status": status,
            "picture": _name_of_picture(document) or facts.get("name", ""),
            "task": str(settings.get("task") or facts.get("task", "")),
            "preset": str(settings.get("preset") or facts.get("preset", "")),
            "has_result": isinstance(summary, dict) and not at_work,
            "can_resume": bool(document) and status in ("interrupted", "stopped"),
        }

    def state(self, name: str) -> dict[str, Any]:
        """Describe all that is shown of a run."""
        folder = self.folder(name)
        found = self.brief(name)
        notes, last = self._events(name)
        error = self._error(name) if found["status"] in ("failed", "stopped") else ""
        snapshots = [path.stem.removeprefix("iter_") for path in sorted(folder.glob("snapshots/iter_*.png"))]
        found |= {
            "notes": notes,
            "progress": last,
            "error": error or (places.found(folder) or {}).get("error", ""),
            "snapshots": [int(step) for step in snapshots if step.isdecimal()],
            "has_input": False,
            "summary": None,
            "choices": None,
        }
        with contextlib.suppress(FileNotFoundError, UnreadableError, UsageError):
            record = Record.load(folder)
            if found["has_result"] and record.summary is not None:
                choices = asdict(picking.choices(folder))
                found |= {"summary": asdict(record.summary), "choices": choices}
            # One of another size is not laid over the result.
            found["has_input"] = record.settings.options.get("scale", 1) == 1 and self.desk.input(record).is_file()
        return found

    def _error(self, name: str) -> str:
        """Read what a job said last."""
        log = self._file(name, ".log")
        return _last_line(log.read_bytes()) if log.exists() else ""

    def _events(self, name: str) -> tuple[list[str], dict[str, Any] | None]:
        """Read the notes and the last progress of a job."""
        path = self._file(name, ".jsonl")
        if not path.exists():
            return [], None
        with path.open("rb") as file:
            head = file.read(TAIL)
            file.seek(max(len(head) - TAIL, path.stat().st_size - TAIL, 0))
            tail = file.read(TAIL)
        notes = [str(event.get("text", "")) for event in _parsed(head) if event.get("event") == "note"]
        progress = [event for event in _parsed(tail) if event.get("event") == "progress"]
        return notes, progress[-1] if progress else None


def _parsed(lines: bytes) -> list[dict[str, Any]]:
    """Parse whole lines of JSON; those that were cut are left out."""
    events = []
    for line in lines.splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                events.append(event)
    return events


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return one_line(lines[-1]).removeprefix("dip-fast: ") if lines else ""


def _changed(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _name_of_picture(document: Mapping[str, Any]) -> str:
    with contextlib.suppress(KeyError, TypeError):
        return str(document["inputs"]["picture"]["name"])
    return ""


def _is_locked(folder: Path) -> bool:
    """Whether some process has locked a folder; locking it to find out would be in the way of a run that starts."""
    with contextlib.suppress(OSError):
        inode = folder.stat().st_ino
        locks = Path("/proc/locks").read_text()
        return any(line.split()[1] == "FLOCK" and f":{inode} " in line for line in locks.splitlines())
    return False
