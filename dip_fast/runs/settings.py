"""What decides the bits of a result, besides the picture and the versions: what the user said, completed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from dip_fast import networks
from dip_fast.device import devices, engines, precision
from dip_fast.errors import UsageError
from dip_fast.presets import PRESETS, Recipe, default


@dataclass(frozen=True)
class Settings:
    """Everything is explicit here; ``run.json`` holds it."""

    task: Literal["denoise", "inpaint"]
    preset: str
    network: str
    upsampling: str | None
    iterations: int
    stop: Literal["auto", "never"]
    seed: int
    device: str
    engine: Literal["plain", "fused"]
    precision: Literal["fp32", "tf32", "bf16"]
    threads: int
    snapshot_every: int
    composite: bool
    keep_metadata: bool

    def recipe(self) -> Recipe:
        """Preset with what the user changed in it."""
        recipe = PRESETS[self.preset].recipe
        network_options = dict(recipe.network_options)
        if self.upsampling is not None:
            network_options["upsampling"] = self.upsampling
        options = replace(recipe.options, iterations=self.iterations, stop=self.stop)
        return replace(recipe, network_options=network_options, options=options)


def complete(said: dict[str, Any], *, mask: bool) -> Settings:
    """Fill in what the user said nothing about, from the preset.

    Parameters
    ----------
    said : dict
        By field of `Settings`.
    mask : bool
        Whether a mask was given.

    Raises
    ------
    UsageError
        If what was said contradicts itself, or cannot be had here.
    """
    task = said.get("task", "inpaint" if mask else "denoise")
    if task == "inpaint" and not mask:
        raise UsageError("--task inpaint needs --mask MASK.png, white where the picture is known")
    if task == "denoise" and mask:
        raise UsageError("--task denoise has no use for --mask; take --task inpaint")
    devices.require_threads(said.get("threads", 1))
    device = devices.choose(said.get("device", "auto")).type
    precision.require(said.get("precision", "tf32"), torch.device(device))
    preset = said.get("preset") or default(said.get("network"), device)
    recipe = PRESETS[preset].recipe
    if said.get("network", recipe.network) != recipe.network:
        raise UsageError(
            f"--network {said['network']} does not go with --preset {preset}, which fits a {recipe.network} network; "
            "give one of the two"
        )
    upsampling = recipe.network_options.get("upsampling")
    if "upsampling" in said and upsampling is None:
        raise UsageError(f"--upsampling: the {recipe.network} network has no such choice; leave it out")
    defaults = Settings(
        task=task,
        preset=preset,
        network=recipe.network,
        upsampling=upsampling,
        iterations=recipe.options.iterations,
        stop=recipe.options.stop,
        seed=0,
        device=device,
        engine="plain",
        precision="tf32",
        threads=torch.get_num_threads(),
        snapshot_every=100,
        composite=True,
        keep_metadata=False,
    )
    settings = replace(defaults, **{field: value for field, value in said.items() if field != "device"})
    return replace(settings, engine=_engine(said.get("engine", "auto"), settings))


def _engine(wanted: str, settings: Settings) -> Literal["plain", "fused"]:
    """Choose the engine; which blocks have a fused form shows on the meta device."""
    recipe = settings.recipe()
    with torch.device("meta"):
        network = networks.build(recipe.network, recipe.in_channels, 1, **recipe.network_options)
    return engines.choose(wanted, network, torch.device(settings.device))


def resumed(said: dict[str, Any], stored: dict[str, Any]) -> Settings:
    """Take the settings of the run that is resumed.

    Raises
    ------
    UsageError
        If the user now says something else, or the run cannot go on here.
    """
    try:
        settings = Settings(**stored["settings"])
        settings.recipe()
    except (KeyError, TypeError) as error:  # other fields, or another preset
        raise UsageError("cannot resume: run.json is not of this version; start again with --overwrite") from error
    for field, value in said.items():
        was = getattr(settings, field)
        if value != was and not (field == "device" and value == "auto"):
            raise UsageError(
                f"cannot resume with another {field.replace('_', ' ')}: the run has {was}, not {value}; "
                "leave the option out, or start again with --overwrite"
            )
    devices.choose(settings.device)
    _engine(settings.engine, settings)
    return settings
