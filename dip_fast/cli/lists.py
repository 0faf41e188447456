"""``dip-fast formats``, ``presets``, ``tasks`` and ``info``: what there is."""

from __future__ import annotations

import json
from typing import Any

import click

from dip_fast import figures
from dip_fast.cli.output import greet, show
from dip_fast.cli.parameters import json_option
from dip_fast.names import counted
from dip_fast.presets import PRESETS
from dip_fast.tasks import TASKS


@click.command(short_help="List the formats of model files.")
@json_option
def formats(as_json: bool) -> None:
    """List the formats of model files: suffix, where they run, what replays them."""
    from dip_fast.models.formats import FORMATS

    facts = {name: entry.facts() for name, entry in FORMATS.items()}
    if as_json:
        show(json.dumps(facts))
        return
    for name, fact in facts.items():
        show(f"{name}: {fact['suffix']}, on {fact['device']}; replayed by {fact['replayed_by']}")


@click.command(short_help="List the presets, with what they cost and reach.")
@json_option
def presets(as_json: bool) -> None:
    """List the presets, with what they cost and reach."""
    if as_json:
        facts = {name: {"summary": preset.summary, **_shown(name)} for name, preset in PRESETS.items()}
        show(json.dumps(facts))
        return
    measured = figures.read()["presets"]
    show(f"Measured on {measured.date}: {measured.machine}, by {measured.command}\n{measured.note}".rstrip())
    for name, preset in PRESETS.items():
        shown = _shown(name)
        show(f"{name}: {preset.summary}")
        show(f"    network {shown['network']}, {counted(shown['iterations'], 'step')}; {shown['cost']}")


@click.command(short_help="List the tasks, and what each takes.")
@json_option
def tasks(as_json: bool) -> None:
    """List the tasks, with the files and the options that each takes."""
    if as_json:
        facts = {
            name: {
                "summary": task.summary,
                "inputs": [
                    {"name": entry.name, "help": entry.help, "required": entry.required} for entry in task.inputs
                ],
                "options": [{"name": o.name, "default": o.default, "help": o.help} for o in task.options],
            }
            for name, task in TASKS.items()
        }
        show(json.dumps(facts))
        return
    for name, task in TASKS.items():
        show(f"{name}: {task.summary}")
        entries = {entry.name: entry.help for entry in task.inputs} | {entry.name: entry.help for entry in task.options}
        for option, text in entries.items():
            show(f"    --{option.replace('_', '-')}  {text}")


@click.command(short_help="Print what a bug report needs.")
@json_option
def info(as_json: bool) -> None:
    """Print what a bug report needs: versions, CPU, what is built, GPUs."""
    greet(then_stdout=True)
    from dip_fast.info import collect

    facts = collect()
    if as_json:
        show(json.dumps(facts))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value)) or "none"
        show(f"{name}: {value}")


def _shown(name: str) -> dict[str, Any]:
    recipe = PRESETS[name].recipe
    return {"network": recipe.network, "iterations": recipe.options.iterations, "cost": figures.preset_cost(name)}
