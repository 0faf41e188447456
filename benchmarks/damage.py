"""One change to a run's folder: of a file, of a value of its record, of a value or a tensor of its checkpoint."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dip_fast.runs import checkpoints

NUMBERS = (-1, 0, 3, 0.5, 10**400, float("nan"), float("inf"))
VALUES: tuple[Any, ...] = (None, True, *NUMBERS, "", "x", "\ud800", [], {}, [[]], "[" * 5000)


def change(rng: random.Random) -> str:
    """Make one change to the folder ``out``, and describe it."""
    return rng.choice([change_file, change_file, change_record, change_record, change_checkpoint])(rng)


def change_file(rng: random.Random) -> str:
    """Damage, cut, remove or replace one of the files."""
    path = rng.choice(sorted(path for path in Path("out").rglob("*")))
    ways: list[Callable[[Path], object]]
    if path.is_dir():
        ways = [shutil.rmtree, replaced_by_link, replaced_by_file]
    else:
        changes = 3 * [bytes_changed(rng)]
        ways = [replaced_by_link, replaced_by_folder, replaced_by_pipe, Path.unlink, *changes]
    how = rng.choice(ways)
    how(path)
    return f"{path} {how}"


def replaced_by_link(path: Path) -> None:
    """Put a link out of the folder in the place of something."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(Path("album").resolve() if path.name == "snapshots" else Path("album/iter_000007.png").resolve())


def replaced_by_file(path: Path) -> None:
    """Put a file in the place of a folder."""
    shutil.rmtree(path)
    path.write_text("x")


def replaced_by_folder(path: Path) -> None:
    """Put a folder in the place of a file."""
    path.unlink()
    path.mkdir()


def replaced_by_pipe(path: Path) -> None:
    """Put a pipe in the place of a file."""
    path.unlink()
    os.mkfifo(path)


def bytes_changed(rng: random.Random) -> Callable[[Path], None]:
    """Change, cut out or put in some bytes of a file, or cut it off."""

    def change(path: Path) -> None:
        held = bytearray(path.read_bytes()) or bytearray(1)
        at, length = rng.randrange(len(held)), rng.randrange(1, 100)
        kind = rng.randrange(4)
        if kind == 0:
            held[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del held[at : at + length]
        elif kind == 2:
            held[at:at] = rng.randbytes(length)
        else:
            del held[at:]
        path.write_bytes(held)

    return change


def change_value(document: Any, rng: random.Random) -> str:
    """Change, or remove, one of the values of a document of JSON."""
    places = []

    def walk(value: Any, path: str) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key, f"{path}.{key}"))
            walk(value[key], f"{path}.{key}")

    walk(document, "")
    holder, key, path = rng.choice(places)
    value = rng.choice([*VALUES, holder[key], "remove"])
    if value == "remove":
        del holder[key]
    else:
        holder[key] = value + 1 if value is holder[key] and isinstance(value, int | float) else value
    return f"{path} = {str(value)[:20]!r}"


def change_record(rng: random.Random) -> str:
    """Change a value of the record."""
    path = Path("out/run.json")
    document = json.loads(path.read_text())
    what = change_value(document, rng)
    path.write_text(json.dumps(document))
    return what


def change_checkpoint(rng: random.Random) -> str:
    """Change a value or a tensor of the checkpoint, and its hash with it."""
    tensors, metadata = read_checkpoint("out")
    texts = {which: metadata[which] for which in checkpoints.WHICH if which in metadata}
    which = rng.choice([*texts])
    what = "nothing"
    if rng.random() < 0.5:
        document = json.loads(texts[which])
        document["seconds"] = 1.0  # a time that another one is told from
        what = change_value(document, rng)
        if json.loads(texts[which]) | {"seconds": 1.0} != document and ".seconds" not in what:
            texts[which] = json.dumps(document)
    else:
        name = rng.choice(sorted(name for name in tensors if tensors[name].numel()))
        ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "NaN": lambda t: t * torch.nan,
            "infinite": lambda t: t - torch.inf,
            "huge": lambda t: t + 1e20,
            "another type": lambda t: t.to(torch.float16),
            "another shape": lambda t: t[None],
            "flat": lambda t: t.reshape(-1)[:1],
        }
        way = rng.choice([*ways])
        changed = ways[way](tensors[name])
        what = f"{name} {way}"
        if way != "NaN" or not name.endswith("history"):  # which has NaN where there is no figure
            tensors[name] = changed.contiguous()
    metadata |= texts | {"sha256": checkpoints.digest_of(tensors, texts)}
    save_file(tensors, Path("out", checkpoints.CHECKPOINT), metadata)
    return what


def read_checkpoint(folder: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read tensors and texts of a checkpoint."""
    with safe_open(Path(folder, checkpoints.CHECKPOINT), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
