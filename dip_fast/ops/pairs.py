"""Which nodes of a traced graph make ``Upsample(x2) -> pad(1) -> Conv2d(3x3)``, and for the others why not."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from dip_fast.ops.reference import PADDING_MODES
from dip_fast.ops.tracing import Tracer, has_hooks

# For exactly twice the size, nearest-exact takes the same pixels as nearest.
MODES = {"nearest": "nearest", "nearest-exact": "nearest", "bilinear": "bilinear"}
PADS = {
    nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad2d: "replicate",
    nn.ZeroPad2d: "zeros",
    nn.ConstantPad2d: "zeros",
}
CONV = {"kernel_size": (3, 3), "stride": (1, 1), "dilation": (1, 1), "groups": 1}


class _NoMatchError(Exception):
    """Why an upsampling does not make a pair."""


@dataclass(frozen=True)
class Match:
    """The nodes of a pair and what they say.

    Attributes
    ----------
    upsample, pad, conv : fx.Node
        The calls; no `pad` if the convolution pads.
    mode : str
        Of the interpolation, a key of `MODES`.
    size : int, sequence, fx.Node or None
        What it interpolates to; None if it is by two.
    padding_mode : str or None
        Of `pad`.
    kept : bool
        Whether the upsampled image is also read elsewhere.
    """

    upsample: fx.Node
    pad: fx.Node | None
    conv: fx.Node
    mode: str
    size: Any
    padding_mode: str | None
    kept: bool = False

    def nodes(self) -> list[fx.Node]:
        """List the calls, the convolution last."""
        return [node for node in (self.upsample, self.pad, self.conv) if node is not None]

    def owner(self, root: nn.Module) -> nn.Module:
        """Find the innermost module in which all of them are."""
        for together in zip(*(node.meta["scope"] for node in self.nodes()), strict=False):
            if any(module is not together[0] for module in together):
                break
            root = together[0]
        return root


def find_pairs(tracer: Tracer) -> tuple[list[Match], dict[fx.Node, str]]:
    """Find the pairs in a graph, and for each other upsampling why it makes none."""
    matches = []
    left = {}
    for node in tracer.graph.nodes:
        try:
            spec = _upsampling(tracer, node)
            if spec is not None:
                matches += _match(tracer, node, *spec)
        except _NoMatchError as error:
            left[node] = str(error)
    return matches, left


def _match(tracer: Tracer, upsample: fx.Node, mode: str, size: Any) -> list[Match]:
    """Find the convolutions that read an upsampling."""
    matches = []
    others = []  # what else reads it
    reasons = []
    for user in upsample.users:
        padding_mode = _padding(tracer, user)
        pad = None if padding_mode is None else user
        for reader in [user] if pad is None else list(pad.users):
            try:
                _check_conv(tracer, reader, upsample if pad is None else pad, pad)
                matches.append(Match(upsample, pad, reader, mode, size, padding_mode))
            except _NoMatchError as error:
                others.append(reader)
                reasons.append(str(error))
    if not matches:
        raise _NoMatchError("; ".join(dict.fromkeys(reasons)) or "nothing reads it")

    source = upsample.args[0]
    assert isinstance(source, fx.Node)
    order = {node: position for position, node in enumerate(tracer.graph.nodes)}
    for node in [*others, *(user for user in source.users if order[user] > order[upsample])]:
        if _may_change_its_input(tracer, node):
            raise _NoMatchError(f"{_describe(tracer, node)} may change in place what the convolution reads")
    return [replace(match, kept=bool(others)) for match in matches]


def _upsampling(tracer: Tracer, node: fx.Node) -> tuple[str, Any] | None:
    """Give the mode and the size (None if it is by two) of an upsampling; None if the node is none."""
    module = tracer.module_of(node)
    if node.target is F.interpolate:
        said = _arguments(F.interpolate, node)
    elif isinstance(module, nn.Upsample):
        if not _is_plain(module, nn.Upsample):
            raise _NoMatchError(f"{_describe(tracer, node)} has hooks, or a forward of its own")
        said = {**vars(module), "antialias": False}
    else:
        return None
    mode, size, scale = said["mode"], said["size"], said["scale_factor"]
    if len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
        raise _NoMatchError("its input is not its one positional argument")
    if mode not in MODES:
        raise _NoMatchError(f"its mode is {mode}, neither nearest nor bilinear")
    if mode == "bilinear" and said["align_corners"]:
        raise _NoMatchError("its corners are aligned (align_corners=True)")
    if said["antialias"]:
        raise _NoMatchError("it blurs what it samples (antialias=True)")
    if size is not None:
        if not isinstance(size, int | fx.Node) and len(size) != 2:
            raise _NoMatchError(f"its size is {size}, not a height and a width")
        return mode, size
    factors = scale if isinstance(scale, list | tuple) else [scale, scale]
    if any(isinstance(factor, fx.Node) for factor in factors):
        raise _NoMatchError("its scale factor is computed when the model runs")
    if list(factors) != [2, 2]:
        raise _NoMatchError(f"its scale factor is {scale}, not 2")
    return mode, None


def _padding(tracer: Tracer, node: fx.Node) -> str | None:
    """Give the padding mode of a padding by one pixel; None if the node is none."""
    module = tracer.module_of(node)
    if module is not None:
        mode = next((mode for kind, mode in PADS.items() if _is_plain(module, kind)), None)
        fits = mode is not None and module.padding == (1, 1, 1, 1) and getattr(module, "value", 0) == 0
        return mode if fits else None
    if node.target is not F.pad:
        return None
    said = _arguments(F.pad, node)
    mode = {"constant": "zeros", "reflect": "reflect", "replicate": "replicate"}.get(said["mode"])
    fits = isinstance(said["pad"], list | tuple) and list(said["pad"]) == [1, 1, 1, 1] and said["value"] in (None, 0)
    return mode if fits else None


def _check_conv(tracer: Tracer, node: fx.Node, source: fx.Node, pad: fx.Node | None) -> None:
    """Check that a node is a convolution that the operator can do, after the padding in front of it."""
    conv = tracer.module_of(node)
    name = _describe(tracer, node)
    if not isinstance(conv, nn.Conv2d):
        raise _NoMatchError(f"it is read by {name}, not by an nn.Conv2d")
    if not _is_plain(conv, nn.Conv2d) or type(conv)._conv_forward is not nn.Conv2d._conv_forward:
        raise _NoMatchError(f"{name} has hooks, or a forward of its own")
    if node.args != (source,) or node.kwargs:
        raise _NoMatchError(f"{name} is not called with its input as the one positional argument")
    for attribute, wanted in CONV.items():
        if (got := getattr(conv, attribute)) != wanted:
            raise _NoMatchError(f"{name} has {attribute} {got}, not {wanted}")
    pads = conv.padding in ("same", (1, 1))
    if not pads and conv.padding not in ("valid", (0, 0)):
        raise _NoMatchError(f"{name} has padding {conv.padding}, not 1")
    if pads == (pad is not None):
        raise _NoMatchError(f"{name} has its input padded {'twice' if pads else 'by other than one pixel'}")
    if pads and conv.padding_mode not in PADDING_MODES:
        raise _NoMatchError(f"{name} has padding_mode {conv.padding_mode}, none of {', '.join(PADDING_MODES)}")


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Tell whether a module does what its kind does: no forward of its own, no hooks.  It may be parametrized."""
    own = "forward" in vars(module) or type(module).forward is not kind.forward
    return isinstance(module, kind) and not own and not has_hooks(module)


def _may_change_its_input(tracer: Tracer, node: fx.Node) -> bool:
    module = tracer.module_of(node)
    if module is not None:
        return any(getattr(each, "inplace", False) for each in module.modules())
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if getattr(node.target, "__module__", "") == "_operator":
        return name == "setitem" or (name.startswith("i") and hasattr(operator, name[1:]))
    in_name = name.endswith("_") and not name.endswith("__")
    return in_name or bool(node.kwargs.get("inplace")) or node.kwargs.get("out") is not None


def _arguments(function: Callable[..., Any], node: fx.Node) -> dict[str, Any]:
    bound = inspect.signature(function).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return bound.arguments


def _describe(tracer: Tracer, node: fx.Node) -> str:
    module = tracer.module_of(node)
    if module is not None:
        return f"{node.target} ({type(module).__name__})"
    if node.op == "output":
        return "the code around this module"
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
