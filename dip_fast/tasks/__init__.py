"""Tasks: what is known of a picture and what is wanted, one file each.  Importing this loads no torch.

The command line, the Python functions and the run folder take tasks from `TASKS`; nothing outside this room asks which
one it is.
"""

from __future__ import annotations

from collections.abc import Iterable

from dip_fast.errors import Argument, UsageError
from dip_fast.registry import Registry
from dip_fast.tasks.task import Baseline, Data, Input, Option, Task, Tile

__all__ = ["TASKS", "Baseline", "Data", "Input", "Option", "Task", "Tile", "choose"]

TASKS: Registry[Task] = Registry(
    "task",
    {
        "denoise": "dip_fast.tasks.denoise:DENOISE",
        "inpaint": "dip_fast.tasks.inpaint:INPAINT",
        "superres": "dip_fast.tasks.superres:SUPERRES",
        "deblur": "dip_fast.tasks.deblur:DEBLUR",
        "jpeg": "dip_fast.tasks.jpeg:JPEG",
        "guided": "dip_fast.tasks.guided:GUIDED",
    },
)


def choose(name: str | None, given: Iterable[str]) -> Task:
    """Find the task that was named, or the first one that needs just the inputs that were given.

    Parameters
    ----------
    name : str or None
        A name in `TASKS`.
    given : iterable of str
        Names of the inputs that came beside the picture.

    Raises
    ------
    UsageError
        If there is no such task, or it lacks an input, or has no use for one.
    """
    given = set(given)
    if name is None:
        tasks = (TASKS[name] for name in TASKS)
        fitting = [task for task in tasks if {entry.name for entry in task.inputs if entry.required} == given]
        if not fitting:
            raise UsageError(f"no task takes {' and '.join(sorted(given))}; see dip-fast tasks")
        return fitting[0]
    task = TASKS[name]
    for entry in task.inputs:
        if entry.required and entry.name not in given:
            raise UsageError("{} needs {}: {}", Argument("task", name), Argument(entry.name), entry.help)
    for extra in sorted(given - {entry.name for entry in task.inputs}):
        users = [other for other in TASKS if extra in {entry.name for entry in TASKS[other].inputs}]
        instead = Argument("task", users[0]) if users else "another task"
        raise UsageError("{} has no use for {}; use {}", Argument("task", name), Argument(extra), instead)
    return task
