"""Finds pairs ``Upsample(x2) -> cat -> pad(1) -> Conv2d(3x3)`` in a traced graph; most have no cat, and many no pad.

`find_pairs` also returns, for each upsampling that makes no pair, the reason.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from dip_fast.ops.pair_calls import MODES
from dip_fast.ops.reference import PADDING_MODES
from dip_fast.ops.tracing import Tracer, has_code_of_its_own, has_hooks

PADS = {
    nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad2d: "replicate",
    nn.ZeroPad2d: "zeros",
    nn.ConstantPad2d: "zeros",
}
CONV = {"kernel_size": (3, 3), "stride": (1, 1), "dilation": (1, 1), "groups": 1}
JOINS = (torch.cat, torch.concat, torch.concatenate)
IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout2d)  # the latter two while nothing is trained
NEW = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
# Parameters of functions of PyTorch that have no signature, with their defaults.
CAT = {"tensors": None, "dim": 0, "out": None}
CONV2D = {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


class _NoMatchError(Exception):
    """An upsampling makes no pair; the message is the reason."""


@dataclass(frozen=True)
class Match:
    """The nodes of a pair and their options.

    Attributes
    ----------
    calls : tuple of fx.Node
        The upsampling, what is between, and the convolution.
    mode : str
        The mode of the interpolation, a key of `MODES`.
    size : int, sequence, fx.Node or None
        The size to interpolate to; None if the scale factor is 2.
    join : fx.Node or None
        The concatenation of the upsampled image with others.
    pad : fx.Node or None
        The padding; None if the convolution pads.
    padding_mode : str or None
        The padding mode of `pad`.
    function : tuple or None
        Weight, bias and padding of a convolution that is a call of ``F.conv2d``.
    kept : bool
        Whether the upsampled image is also read elsewhere.
    """

    calls: tuple[fx.Node, ...]
    mode: str
    size: Any
    join: fx.Node | None
    pad: fx.Node | None
    padding_mode: str | None
    function: tuple[Any, ...] | None
    kept: bool = False

    @property
    def upsample(self) -> fx.Node:
        """The upsampling."""
        return self.calls[0]

    @property
    def conv(self) -> fx.Node:
        """The convolution."""
        return self.calls[-1]

    @property
    def runs_early(self) -> bool:
        """Whether all that the pair reads is there where the upsampling is."""
        return self.join is None and self.function is None

    def others(self) -> tuple[tuple[fx.Node, ...], int]:
        """List what the upsampled image is concatenated with, and count what comes before it."""
        if self.join is None:
            return (), 0
        images = list(_arguments(CAT, self.join)["tensors"])
        position = next(number for number, image in enumerate(images) if image in self.calls)
        return (*images[:position], *images[position + 1 :]), position

    def owner(self, root: nn.Module) -> nn.Module:
        """Find the innermost module that contains all of them."""
        for level in zip(*(node.meta["scope"] for node in self.calls), strict=False):
            if any(module is not level[0] for module in level):
                break
            root = level[0]
        return root


def find_pairs(tracer: Tracer) -> tuple[list[Match], dict[fx.Node, str]]:
    """Find the pairs in a graph, and for each other upsampling the reason why it makes none."""
    matches: list[Match] = []
    left = {}
    for node in tracer.graph.nodes:
        try:
            spec = _upsampling(tracer, node)
            if spec is not None:
                matches += _match(tracer, node, *spec, {match.conv for match in matches})
        except _NoMatchError as error:
            left[node] = str(error)
    return matches, left


def _match(tracer: Tracer, upsample: fx.Node, mode: str, size: Any, taken: set[fx.Node]) -> list[Match]:
    """Find the convolutions that read an upsampling, each of which makes a pair with it."""
    matches = []
    others = []  # nodes that also read it
    reasons = []
    order = {node: position for position, node in enumerate(tracer.graph.nodes)}
    for calls in _chains(tracer, (upsample,)):
        try:
            match = _pair(tracer, calls, mode, size)
            if match.conv in taken:
                raise _NoMatchError(f"{_describe(tracer, match.conv)} reads another upsampled image that is fused")
            if not match.runs_early:
                between = [node for node, place in order.items() if order[upsample] < place < order[match.conv]]
                _refuse_changes(tracer, between)
            matches.append(match)
        except _NoMatchError as error:
            others.append(calls[-1])
            reasons.append(str(error))
    if not matches:
        raise _NoMatchError("; ".join(dict.fromkeys(reasons)) or "nothing reads it")
    read = [upsample.args[0], *(other for match in matches for other in match.others()[0])]
    later = [user for node in read if isinstance(node, fx.Node) for user in node.users if order[user] > order[upsample]]
    _refuse_changes(tracer, [*others, *later])
    return [replace(match, kept=bool(others)) for match in matches]


def _chains(tracer: Tracer, calls: tuple[fx.Node, ...]) -> Iterator[tuple[fx.Node, ...]]:
    """List the ways from an upsampling to what reads it, through calls that a pair may have between."""
    for user in calls[-1].users:
        between = calls[1:]
        if _is_identity(tracer, user, calls[-1]):
            passes = True
        elif _joins(user, calls[-1]):
            passes = not any(_joins(node) or _padding(tracer, node) for node in between)
        else:
            passes = _padding(tracer, user) is not None and not any(_padding(tracer, node) for node in between)
        if passes:
            yield from _chains(tracer, (*calls, user))
        else:
            yield (*calls, user)


def _pair(tracer: Tracer, calls: tuple[fx.Node, ...], mode: str, size: Any) -> Match:
    """Return the pair that a chain of calls makes."""
    join = next((node for node in calls if _joins(node)), None)
    pad = next((node for node in calls if _padding(tracer, node)), None)
    function = _check_conv(tracer, calls[-1], calls[-2], pad)
    padding_mode = None if pad is None else _padding(tracer, pad)
    return Match(calls, mode, size, join, pad, padding_mode, function)


def _refuse_changes(tracer: Tracer, nodes: list[fx.Node]) -> None:
    for node in nodes:
        if _may_change_its_input(tracer, node):
            raise _NoMatchError(f"{_describe(tracer, node)} may change in place what the convolution reads")


def _is_identity(tracer: Tracer, node: fx.Node, source: fx.Node) -> bool:
    """Return whether a node returns what it is given."""
    module = tracer.module_of(node)
    kind = next((kind for kind in IDENTITIES if module is not None and _is_plain(module, kind)), None)
    if module is None or kind is None or node.args != (source,) or node.kwargs:
        return False
    return kind is nn.Identity or not module.training


def _joins(node: fx.Node, source: fx.Node | None = None) -> bool:
    """Return whether a node concatenates the channels of images, among which an image is once."""
    if node.op != "call_function" or node.target not in JOINS:
        return False
    options = _arguments(CAT, node)
    images = options["tensors"]
    fits = options["dim"] == 1 and isinstance(images, list | tuple) and len(images) > 1
    return fits and (source is None or list(images).count(source) == 1)


def _upsampling(tracer: Tracer, node: fx.Node) -> tuple[str, Any] | None:
    """Return mode and size of an upsampling, or None for another node; the size is None if the factor is 2."""
    module = tracer.module_of(node)
    if node.target is F.interpolate:
        options = _arguments(F.interpolate, node)
    elif isinstance(module, nn.Upsample):
        if not _is_plain(module, nn.Upsample):
            raise _NoMatchError(f"{_describe(tracer, node)} has hooks, or a forward of its own")
        options = {**vars(module), "antialias": False}
    else:
        return None
    mode, size, scale = options["mode"], options["size"], options["scale_factor"]
    if len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
        raise _NoMatchError("its input is not its one positional argument")
    if mode not in MODES:
        raise _NoMatchError(f"its mode is {mode}, neither nearest nor bilinear")
    if mode == "bilinear" and options["align_corners"]:
        raise _NoMatchError("its corners are aligned (align_corners=True)")
    if options["antialias"]:
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
    """Return the mode of a padding by one pixel, or None for another node."""
    module = tracer.module_of(node)
    if module is not None:
        mode = next((mode for kind, mode in PADS.items() if _is_plain(module, kind)), None)
        fits = mode is not None and module.padding == (1, 1, 1, 1) and getattr(module, "value", 0) == 0
        return mode if fits else None
    if node.target is not F.pad:
        return None
    options = _arguments(F.pad, node)
    mode = {"constant": "zeros", "reflect": "reflect", "replicate": "replicate"}.get(options["mode"])
    pad, value = options["pad"], options["value"]
    fits = isinstance(pad, list | tuple) and list(pad) == [1, 1, 1, 1] and value in (None, 0)
    return mode if fits else None


def _check_conv(tracer: Tracer, node: fx.Node, source: fx.Node, pad: fx.Node | None) -> tuple[Any, ...] | None:
    """Check that the operator can compute the convolution of a node, with the padding in front of it.

    Returns weight, bias and padding of a call of ``F.conv2d``, and None for a layer.
    """
    conv = tracer.module_of(node)
    name = _describe(tracer, node)
    if node.target is F.conv2d:
        return _check_function(tracer, node, source, pad)
    if not isinstance(conv, nn.Conv2d):
        raise _NoMatchError(f"it is read by {name}, not by an nn.Conv2d")
    if not _is_plain(conv, nn.Conv2d) or type(conv)._conv_forward is not nn.Conv2d._conv_forward:
        raise _NoMatchError(f"{name} has hooks, or a forward of its own")
    if node.args != (source,) or node.kwargs:
        raise _NoMatchError(f"{name} is not called with its input as the one positional argument")
    pads = _check_options(name, vars(conv), pad)
    if pads and conv.padding_mode not in PADDING_MODES:
        raise _NoMatchError(f"{name} has padding_mode {conv.padding_mode}, none of {', '.join(PADDING_MODES)}")
    return None


def _check_function(tracer: Tracer, node: fx.Node, source: fx.Node, pad: fx.Node | None) -> tuple[Any, ...]:
    """Do the same for a call of ``F.conv2d``; the size of a weight that is computed is compared at each run."""
    options = _arguments(CONV2D, node)
    weight, bias = options["weight"], options["bias"]
    if options["input"] is not source or not isinstance(weight, fx.Node):
        raise _NoMatchError("conv2d reads it as a weight, or with a weight that is a number")
    sizes = {key: (value, value) for key in ("stride", "padding", "dilation") if type(value := options[key]) is int}
    size = (3, 3)
    if weight.op == "get_attr":
        stored: Any = functools.reduce(getattr, str(weight.target).split("."), tracer.root)
        size = tuple(stored.shape[2:])
    _check_options("conv2d", {**options, **sizes, "kernel_size": size}, pad)
    return weight, bias, options["padding"]


def _check_options(name: str, options: dict[str, Any], pad: fx.Node | None) -> bool:
    """Check the options of a convolution, and return whether it pads."""
    for attribute, wanted in CONV.items():
        got = options[attribute]
        if (tuple(got) if isinstance(got, list) else got) != wanted:
            raise _NoMatchError(f"{name} has {attribute} {got}, not {wanted}")
    padding = options["padding"]
    padding = tuple(padding) if isinstance(padding, list) else padding
    pads = padding in ("same", (1, 1))
    if not pads and padding not in ("valid", (0, 0)):
        raise _NoMatchError(f"{name} has padding {padding}, not 1")
    if pads == (pad is not None):
        raise _NoMatchError(f"{name} has its input padded {'twice' if pads else 'by other than one pixel'}")
    return pads


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a module has the forward of its kind and no hooks; it may be parametrized."""
    own = "forward" in vars(module) or type(module).forward is not kind.forward
    return isinstance(module, kind) and not own and not has_hooks(module)


def _may_change_its_input(tracer: Tracer, node: fx.Node) -> bool:
    module = tracer.module_of(node)
    if module is not None:
        return _layer_may_change_its_input(module)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if getattr(node.target, "__module__", "") == "_operator":
        return name == "setitem" or (name.startswith("i") and hasattr(operator, name[1:]))
    in_name = name.endswith("_") and not name.endswith("__")
    return in_name or bool(node.kwargs.get("inplace")) or node.kwargs.get("out") is not None


def _layer_may_change_its_input(module: nn.Module) -> bool:
    """Return the same for a module; what a sequence changes after a layer that writes a new image is not its input."""
    if not has_code_of_its_own(module) or type(module) is not nn.Sequential:
        return any(getattr(each, "inplace", False) for each in module.modules())
    for child in module:
        if _layer_may_change_its_input(child):
            return True
        if isinstance(child, NEW):
            return False
    return False


def _arguments(function: Callable[..., Any] | dict[str, Any], node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a call by name, with the defaults."""
    if isinstance(function, dict):
        return {**function, **dict(zip(function, node.args, strict=False)), **node.kwargs}
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
