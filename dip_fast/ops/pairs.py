"""Pairs ``Upsample(x2) -> pad(1) -> Conv2d(3x3)``: finds them in a traced graph, and runs one as an operator.

`find_pairs` also returns, for each upsampling that makes no pair, the reason.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dip_fast.ops.reference import PADDING_MODES
from dip_fast.ops.tracing import Tracer, has_hooks
from dip_fast.ops.transforms import is_transformed
from dip_fast.ops.upsample_conv import upsample_conv2d

# At exactly twice the size, nearest-exact takes the same pixels as nearest.
MODES = {"nearest": "nearest", "nearest-exact": "nearest", "bilinear": "bilinear"}
PADS = {
    nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad2d: "replicate",
    nn.ZeroPad2d: "zeros",
    nn.ConstantPad2d: "zeros",
}
CONV = {"kernel_size": (3, 3), "stride": (1, 1), "dilation": (1, 1), "groups": 1}


class _NoMatchError(Exception):
    """An upsampling makes no pair; the message is the reason."""


@dataclass(frozen=True)
class Match:
    """The nodes of a pair and their options.

    Attributes
    ----------
    upsample, pad, conv : fx.Node
        The calls; `pad` is None if the convolution pads.
    mode : str
        The mode of the interpolation, a key of `MODES`.
    size : int, sequence, fx.Node or None
        The size to interpolate to; None if the scale factor is 2.
    padding_mode : str or None
        The padding mode of `pad`.
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
        """Find the innermost module that contains all of them."""
        for level in zip(*(node.meta["scope"] for node in self.nodes()), strict=False):
            if any(module is not level[0] for module in level):
                break
            root = level[0]
        return root


def find_pairs(tracer: Tracer) -> tuple[list[Match], dict[fx.Node, str]]:
    """Find the pairs in a graph, and for each other upsampling the reason why it makes none."""
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
    """Find the convolutions that read an upsampling, each of which makes a pair with it."""
    matches = []
    others = []  # nodes that also read it
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


def _check_conv(tracer: Tracer, node: fx.Node, source: fx.Node, pad: fx.Node | None) -> None:
    """Check that the operator can compute the convolution of a node, with the padding in front of it."""
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
    """Return whether a module has the forward of its kind and no hooks; it may be parametrized."""
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


def run_pair(
    x: Tensor,
    conv: nn.Conv2d,
    mode: str,
    size: Any,
    padding_mode: str | None,
    upsample: nn.Module | None,
    pad: nn.Module | None,
) -> Tensor:
    """Upsample and convolve: as one operator if the input allows it, else one after the other.

    Parameters
    ----------
    x : Tensor
        The input of the upsampling.
    conv : nn.Conv2d
        The convolution.
    mode : str
        The mode of the interpolation, a key of `MODES`.
    size : int, sequence of int or None
        The size to interpolate to; None if the scale factor is 2.
    padding_mode : str or None
        The mode of the padding between the two; None if the convolution pads.
    upsample, pad : nn.Module or None
        The upsampling and the padding, where they are layers.

    Returns
    -------
    Tensor, (N, K, 2H, 2W)
        The output of the convolution.
    """
    if x.dim() == 4 and not is_transformed() and _is_twice(x, size):
        padding = conv.padding_mode if padding_mode is None else padding_mode
        y = upsample_conv2d(x, conv.weight, conv.bias, mode=MODES[mode], padding_mode=padding)
        # In the layout of a convolution's output, which the layers after it are fast in.
        return y.contiguous(memory_format=torch.channels_last) if _any_channels_last(x, conv.weight) else y
    if upsample is not None:
        x = upsample(x)
    else:
        align_corners = False if mode == "bilinear" else None
        x = F.interpolate(x, size, None if size is not None else 2.0, mode, align_corners)
    if pad is not None:
        x = pad(x)
    elif padding_mode is not None:
        x = F.pad(x, (1, 1, 1, 1), mode="constant" if padding_mode == "zeros" else padding_mode)
    return conv(x)


def _any_channels_last(*tensors: Tensor) -> bool:
    return any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in tensors)


def _is_twice(x: Tensor, size: Any) -> bool:
    if size is None:
        return True
    height, width = (size, size) if isinstance(size, int) else size
    return height == 2 * x.shape[2] and width == 2 * x.shape[3]
