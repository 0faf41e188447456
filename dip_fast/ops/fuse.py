"""Finding ``Upsample(x2) -> pad(1) -> Conv2d(3x3)`` in any model and running it as one operator.

A fused model has the modules, the parameters and the ``state_dict`` keys of the plain one; what changes is the
``forward`` of the modules in which a pair meets.  Each of those is traced by torch.fx, its graph is rewritten, and the
graph runs wherever it says the same as the code it was traced from (`Plan.fits`); everywhere else the plain code runs.

A module is traced with its children as single calls, except those that have to be opened to reach a pair.  So hooks,
custom modules and untraceable code around a pair are left as they are.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dip_fast.ops import tracing
from dip_fast.ops.pairs import MODES, Match, find_pairs
from dip_fast.ops.upsample_conv import upsample_conv2d

logger = logging.getLogger("dip_fast")

PLAIN_TYPES = (bool, int, float, str, tuple, type(None))
MAX_PLANS = 8  # kept of one module: training or not, with or without gradients, other values of its attributes


@dataclass(frozen=True)
class Pair:
    """An upsampling and the convolution that reads it.

    Attributes
    ----------
    where : str
        The convolution, by its name in the model.
    mode, padding_mode : str
        As the operator has them.
    note : str
        What is still decided when the model runs; empty if nothing is.
    """

    where: str
    mode: str
    padding_mode: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.mode}, {self.padding_mode}" + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Left:
    """An upsampling that stays as it is.

    Attributes
    ----------
    where : str
        The upsampling, or the module it is in, by its name in the model (empty for the model itself).
    reason : str
        Why it stays.
    """

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where or 'the model itself'}: {self.reason}"


@dataclass(frozen=True)
class FusionReport:
    """What `fuse` replaces in a model, and what it leaves and why.

    Attributes
    ----------
    replaced : list of Pair
        The pairs that run as one operator.
    left : list of Left
        The upsamplings that run as before.
    """

    replaced: list[Pair] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"replaced {len(self.replaced)}", *(f"  {pair}" for pair in self.replaced)]
        return "\n".join([*lines, f"left {len(self.left)}", *(f"  {left}" for left in self.left)])


def fuse(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Run every ``Upsample(x2) -> pad(1) -> Conv2d(3x3)`` of a model as one operator.

    Parameters
    ----------
    model : nn.Module
        Any model.  Upsampling is ``nn.Upsample`` or ``F.interpolate`` by two, nearest or bilinear with
        ``align_corners=False``; the padding is a layer, ``F.pad`` or that of the convolution, of zeros, reflection or
        replication; they may stand in ``nn.Sequential``, in the code of a ``forward`` or in modules that call each
        other.
    inplace : bool
        Whether to change the model itself.

    Returns
    -------
    nn.Module
        The fused model.  It shares the parameters and buffers of `model` and has its ``state_dict`` keys, so an
        optimiser goes on and checkpoints load, and it can be copied, pickled and fused again.

    Notes
    -----
    What cannot be fused runs as before; `fusion_report` names it, and the report is logged at level INFO.  A hook on
    one of the layers of a pair makes them run one by one for as long as it is there, so that it is called.
    An upsampling to a ``size`` is compared with its input each time the model runs.

    Examples
    --------
    >>> import dip_fast, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 3))
    >>> fused = dip_fast.fuse(model)
    >>> x = torch.rand(1, 4, 8, 8)
    >>> torch.allclose(fused(x), model(x), atol=1e-6)
    True
    """
    if not inplace:
        model = _copy_sharing_tensors(model)
    opens = tracing.opener()
    analyses = []
    for name, module in _children_first(model):
        analyses.append((name, _analyse(module, opens)))
        plan = analyses[-1][1].plan
        if plan.run is not None:
            if not isinstance(module, _Fused):
                module.__class__ = _fused_class(type(module))  # type: ignore[arg-type]
            module.__dict__["_dip_fast_plans"] = [plan]
    logger.info("dip-fast fused %s: %s", type(model).__name__, _report(model, analyses))
    return model


def fusion_report(model: nn.Module) -> FusionReport:
    """Tell what `fuse` replaces in a model, fused or not, and what it leaves and why.

    Parameters
    ----------
    model : nn.Module
        Any model; it is not changed.

    Returns
    -------
    FusionReport
        Its ``replaced`` and ``left``; ``print`` shows it.
    """
    opens = tracing.opener()
    return _report(model, [(name, _analyse(module, opens)) for name, module in _children_first(model)])


# ---- running -------------------------------------------------------------------------------------------------------


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
        What the upsampling reads.
    conv : nn.Conv2d
        The convolution.
    mode : str
        Of the interpolation.
    size : int, sequence of int or None
        What it interpolates to; None if it is by two.
    padding_mode : str or None
        Of the padding between the two; None if the convolution pads.
    upsample, pad : nn.Module or None
        The layers, where they are layers.

    Returns
    -------
    Tensor, (N, K, 2H, 2W)
        What the convolution gives.
    """
    if x.dim() == 4 and _is_twice(x, size):
        padding = conv.padding_mode if padding_mode is None else padding_mode
        return upsample_conv2d(x, conv.weight, conv.bias, mode=MODES[mode], padding_mode=padding)
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


def _is_twice(x: Tensor, size: Any) -> bool:
    if size is None:
        return True
    height, width = (size, size) if isinstance(size, int) else size
    return height == 2 * x.shape[2] and width == 2 * x.shape[3]


@dataclass
class Plan:
    """The rewritten forward of one module, and when it says the same as the code it was traced from.

    Attributes
    ----------
    run : callable or None
        Takes the module and its tensors; None if there is nothing to fuse in this state.
    conditions : callable or None
        Takes the same, and gives what the code branches on.
    outcomes : list of bool
        How that came out when the code was traced.
    grad : bool
        Whether gradients were enabled.
    watched : list of (nn.Module, tuple)
        The modules whose attributes the code may have read, and what these were.
    """

    run: Callable[..., Any] | None
    conditions: Callable[..., Any] | None
    outcomes: list[bool]
    grad: bool
    watched: list[tuple[nn.Module, tuple[Any, ...]]]

    def is_current(self) -> bool:
        """Tell whether the modules are as they were when the code was traced."""
        return self.grad == torch.is_grad_enabled() and all(_state(module) == was for module, was in self.watched)

    def fits(self, module: nn.Module, tensors: list[Tensor]) -> bool:
        """Tell whether the code would take the traced way for these tensors."""
        return self.conditions is None or [bool(each) for each in self.conditions(module, *tensors)] == self.outcomes


def _state(module: nn.Module) -> tuple[Any, ...]:
    """Collect what a forward may branch on: plain attributes, children, and whether there are hooks."""
    plain = [(name, value) for name, value in vars(module).items() if isinstance(value, PLAIN_TYPES)]
    return tracing.has_hooks(module), plain, list(module._modules.values())


class _Fused:
    """Mixed into the class of a module: its forward runs a plan where one fits, else the plain forward."""

    plain_class: type[nn.Module]
    plain_parameters: tuple[tuple[str, ...], dict[str, Any]]
    _dip_fast_plans: list[Plan]

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert isinstance(self, nn.Module)
        tensors = _required_tensors(*self.plain_parameters, args, kwargs)
        if tensors is not None:
            number = _current_plan(self, self.training)  # a statement of its own: it may make the plans
            plan = self._dip_fast_plans[number]
            if plan.run is not None and plan.fits(self, tensors):
                return plan.run(self, *tensors)
        return self.plain_class.forward(self, *args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class exists in this process only, and plans hold compiled code: both are made again.
        made = super().__reduce_ex__(protocol)
        if not isinstance(made, tuple) or made[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return made  # the class has a way of its own, and comes back plain
        state = {name: value for name, value in made[2].items() if name != "_dip_fast_plans"}
        return (_new_fused, (self.plain_class,), state, *made[3:])


def _new_fused(plain_class: type[nn.Module]) -> nn.Module:
    fused = _fused_class(plain_class)  # type: ignore[arg-type]
    return fused.__new__(fused)


@functools.cache
def _fused_class(plain_class: Any) -> type[nn.Module]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _Fused._forward(self, args, kwargs)

    forward.__code__ = forward.__code__.replace()  # torch.compile counts recompilations by code object
    functools.update_wrapper(forward, plain_class.forward)
    members = {
        "forward": forward,
        "plain_class": plain_class,
        "plain_parameters": tracing.parameters(plain_class.forward),
        "__module__": plain_class.__module__,
    }
    return type(f"Fused{plain_class.__name__}", (_Fused, plain_class), members)


@torch.compiler.assume_constant_result
def _current_plan(module: nn.Module, training: bool) -> int:
    """Find the number of the plan for the state the module is in, or make one.

    Under torch.compile this runs when the module is compiled.  What the state holds besides `training` and the mode of
    autograd is then taken for constant.
    """
    plans = module.__dict__.setdefault("_dip_fast_plans", [])
    for number, plan in enumerate(plans):
        if plan.is_current():
            return number
    del plans[: 1 - MAX_PLANS]
    plans.append(_analyse(module, tracing.opener()).plan)
    return len(plans) - 1


def _required_tensors(
    required: tuple[str, ...], defaults: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Tensor] | None:
    """Pick the tensors that a plan takes; None if the call says more than that."""
    given = dict(zip((*required, *defaults), args, strict=False)) | kwargs
    if len(given) != len(args) + len(kwargs):  # too many, or one twice: the plain forward knows
        return None
    tensors = [given.pop(name, None) for name in required]
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        return None
    if not all(name in defaults and value is defaults[name] for name, value in given.items()):
        return None
    return tensors


# ---- planning ------------------------------------------------------------------------------------------------------


@dataclass
class _Analysis:
    """What there is to fuse in one module.

    Attributes
    ----------
    plan : Plan
        What runs it.
    replaced, left : dict
        Each upsampling that it saw, under a key by which it is seen from the modules around it too.
    """

    plan: Plan
    replaced: dict[Any, list[Pair]] = field(default_factory=dict)
    left: dict[Any, Left] = field(default_factory=dict)


def _analyse(module: nn.Module, opens: Callable[[nn.Module], bool]) -> _Analysis:
    """Find the pairs that meet in a module and not already in one of its children, and plan to run them."""
    found = _Analysis(Plan(None, None, [], torch.is_grad_enabled(), [(module, _state(module))]))
    if not tracing.has_code_of_its_own(module):
        if isinstance(module, torch.jit.ScriptModule):
            if "interpolate" in str(getattr(module, "code", "")):
                found.left[module] = Left("", "it is TorchScript, which is not looked into")
        elif "forward" in vars(module) and not isinstance(module, nn.Upsample) and _mentions_upsampling(module):
            found.left[module] = Left("", "its forward was replaced by another")
        return found
    if not any(isinstance(each, nn.Conv2d) for each in module.modules()):
        return found
    try:
        for tracer in tracing.trace_paths(module, opens):
            matches, left = find_pairs(tracer)
            _note_left(tracer, left, found)
            own = [match for match in matches if match.owner(module) is module]
            if own:
                opened = {scope for match in own for node in match.nodes() for scope in node.meta["scope"]}
                _plan(module, opened, tuple(tracer.outcomes), found)
                break
    except Exception as error:  # whatever the code does when it is traced
        if _mentions_upsampling(module):
            found.left[module] = Left("", "its code cannot be traced: " + str(error).partition("\n")[0])
    return found


def _plan(module: nn.Module, opened: set[nn.Module], planned: tuple[bool, ...], found: _Analysis) -> None:
    """Trace a module again with no more children opened than its own pairs need, and rewrite the graph."""
    tracer = tracing.trace(module, opened.__contains__, planned)
    name = f"{type(module).__name__}, fused by dip_fast"
    conditions = tracing.compiled(tracing.conditions(tracer), name) if tracer.decisions else None
    matches, left = find_pairs(tracer)
    _note_left(tracer, left, found)
    layers = []
    for match in matches:
        layers += [layer for node in match.nodes() if (layer := tracer.module_of(node)) is not None]
        if match.owner(module) is module:
            notes = ["if its size is twice that of its input"] if match.size is not None else []
            notes += ["the upsampled image is read elsewhere too, and still made"] if match.kept else []
            padding_mode = str(layers[-1].padding_mode) if match.padding_mode is None else match.padding_mode
            pair = Pair(str(match.conv.target), MODES[match.mode], padding_mode, "; ".join(notes))
            found.replaced.setdefault(match.upsample.meta["key"], []).append(pair)
    if matches:
        _rewrite(tracer.graph, matches)
        watched = [(each, _state(each)) for each in dict.fromkeys([module, *opened, *layers])]
        run = tracing.compiled(tracer.graph, name)
        found.plan = Plan(run, conditions, tracer.outcomes, torch.is_grad_enabled(), watched)


def _rewrite(graph: fx.Graph, matches: list[Match]) -> None:
    """Put `run_pair` where the upsampling was, before anything can change what it reads."""
    for match in matches:
        with graph.inserting_before(match.upsample):
            conv, upsample, pad = (
                graph.get_attr(str(node.target)) if node is not None and node.op == "call_module" else None
                for node in (match.conv, match.upsample, match.pad)
            )
            arguments = (match.upsample.args[0], conv, match.mode, match.size, match.padding_mode, upsample, pad)
            pair = graph.call_function(run_pair, arguments)
        match.conv.replace_all_uses_with(pair)
        graph.erase_node(match.conv)
    replaced = {node for match in matches for node in match.nodes()[:-1]}
    for node in reversed(graph.nodes):
        if not node.users and (node in replaced or tracing.is_metadata(node)):
            graph.erase_node(node)


def _note_left(tracer: tracing.Tracer, left: dict[fx.Node, str], found: _Analysis) -> None:
    assert isinstance(tracer.root, nn.Module)
    names = {module: name for name, module in tracer.root.named_modules()}
    for node, reason in left.items():
        place = str(node.target) if node.op == "call_module" else names[(tracer.root, *node.meta["scope"])[-1]]
        found.left[node.meta["key"]] = Left(place, reason)


def _mentions_upsampling(module: nn.Module) -> bool:
    """Tell whether a module seems to upsample in code of its own: in its forward or in a method that this names."""
    codes = []
    todo = [tracing.plain_forward(module)]
    while todo:
        code = getattr(inspect.unwrap(todo.pop()), "__code__", None)
        if code is not None and code not in codes:
            codes.append(code)
            todo += [method for name in code.co_names if callable(method := getattr(type(module), name, None))]
    mentioned = any(name in ("interpolate", "upsample") for code in codes for name in code.co_names)
    return mentioned or any(isinstance(child, nn.Upsample) for child in module.children())


def _children_first(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the modules with their names, each after those in it."""
    return list(model.named_modules())[::-1]


def _report(model: nn.Module, analyses: list[tuple[str, _Analysis]]) -> FusionReport:
    """Join what was found in each module; one further out sees better why an upsampling is left."""
    names = {module: name for name, module in model.named_modules()}  # a shared module goes by its first name

    def inside(name: str, place: str) -> str:
        return names[model.get_submodule(".".join(filter(None, (name, place))))]

    replaced: dict[Any, list[Pair]] = {}
    left: dict[Any, Left] = {}
    for name, analysis in analyses:
        for key, pairs in analysis.replaced.items():
            replaced.setdefault(key, []).extend(replace(pair, where=inside(name, pair.where)) for pair in pairs)
        left |= {key: replace(each, where=inside(name, each.where)) for key, each in analysis.left.items()}
    order = list(names.values())
    return FusionReport(
        sorted((pair for pairs in replaced.values() for pair in pairs), key=lambda pair: order.index(pair.where)),
        sorted((each for key, each in left.items() if key not in replaced), key=lambda each: order.index(each.where)),
    )


def _copy_sharing_tensors(model: nn.Module) -> nn.Module:
    """Copy a model, its modules and their attributes, but no tensor."""
    memo = {}
    for module in model.modules():
        for value in [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]:
            if isinstance(value, Tensor):
                memo[id(value)] = value
    return copy.deepcopy(model, memo)
