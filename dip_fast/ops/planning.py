"""Finds what can be fused in one module and rewrites its forward accordingly: a `Plan`.

The module is traced by torch.fx with its children as single calls, except those that have to be opened to reach a pair
(`pairs.find_pairs`).  In the graph, each pair becomes one call of `pairs.run_pair`.  The graph computes the same as the
code it was traced from as long as `Plan.is_current` and `Plan.fits`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from dip_fast.ops import tracing
from dip_fast.ops.pairs import MODES, Match, find_pairs, run_pair

PLAIN_TYPES = (bool, int, float, str, tuple, type(None))


@dataclass(frozen=True)
class Pair:
    """An upsampling and the convolution that reads it, which run as one operator.

    Attributes
    ----------
    where : str
        The name of the convolution in the model.
    mode, padding_mode : str
        The arguments of the operator.
    note : str
        A condition that is checked when the model runs, or what remains besides; empty if there is neither.
    """

    where: str
    mode: str
    padding_mode: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.mode}, {self.padding_mode}" + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Left:
    """An upsampling that is left as it is.

    Attributes
    ----------
    where : str
        The name of the upsampling in the model, or of the module around it; empty for the model itself.
    reason : str
        Why it is left.
    """

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where or 'the model itself'}: {self.reason}"


@dataclass
class Plan:
    """The rewritten forward of one module, and when it computes the same as the code it was traced from.

    Attributes
    ----------
    run : callable or None
        The rewritten forward, a function of the module and its tensors; None if there is nothing to fuse in this state.
    conditions : callable or None
        A function of the same arguments that computes the conditions that the code branches on; None if there are none.
    outcomes : list of bool
        The values of these conditions when the code was traced.
    grad : bool
        Whether gradients were enabled then.
    watched : list of (nn.Module, tuple)
        The modules whose attributes the code may have read, and their state then.
    """

    run: Callable[..., Any] | None
    conditions: Callable[..., Any] | None
    outcomes: list[bool]
    grad: bool
    watched: list[tuple[nn.Module, tuple[Any, ...]]]

    def is_current(self) -> bool:
        """Return whether the modules are as they were when the code was traced."""
        return self.grad == torch.is_grad_enabled() and all(_state(module) == was for module, was in self.watched)

    def fits(self, module: nn.Module, tensors: list[Tensor]) -> bool:
        """Return whether the code would take the traced branches for these tensors."""
        return self.conditions is None or [bool(each) for each in self.conditions(module, *tensors)] == self.outcomes


@dataclass
class Analysis:
    """The upsamplings found in one module, and the plan that runs the module.

    Attributes
    ----------
    plan : Plan
        The rewritten forward.
    replaced, left : dict
        The upsamplings that the trace contains, by a key that is the same in a trace of a module around this one.
    """

    plan: Plan
    replaced: dict[Any, list[Pair]] = field(default_factory=dict)
    left: dict[Any, Left] = field(default_factory=dict)


def analyse(module: nn.Module, opens: Callable[[nn.Module], bool]) -> Analysis:
    """Find the pairs that meet in a module and not already in one of its children, and make a plan that runs them."""
    found = Analysis(Plan(None, None, [], torch.is_grad_enabled(), [(module, _state(module))]))
    if not tracing.has_code_of_its_own(module):
        if isinstance(module, torch.jit.ScriptModule):
            if re.search(r"\binterpolate\b|torch\.upsample", str(getattr(module, "code", ""))):
                found.left[module] = Left("", "it is TorchScript, which cannot be traced")
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
    except Exception as error:  # code that is traced may raise anything
        if _mentions_upsampling(module):
            found.left[module] = Left("", "its code cannot be traced: " + str(error).partition("\n")[0])
    return found


def _plan(module: nn.Module, opened: set[nn.Module], planned: tuple[bool, ...], found: Analysis) -> None:
    """Trace a module again, with only those children opened that its own pairs need, and rewrite the graph."""
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
            notes += ["the upsampled image is read elsewhere too, and still computed"] if match.kept else []
            padding_mode = str(layers[-1].padding_mode) if match.padding_mode is None else match.padding_mode
            pair = Pair(str(match.conv.target), MODES[match.mode], padding_mode, "; ".join(notes))
            found.replaced.setdefault(match.upsample.meta["key"], []).append(pair)
    if matches:
        _rewrite(tracer.graph, matches)
        watched = [(each, _state(each)) for each in dict.fromkeys([module, *opened, *layers])]
        run = tracing.compiled(tracer.graph, name)
        found.plan = Plan(run, conditions, tracer.outcomes, torch.is_grad_enabled(), watched)


def _rewrite(graph: fx.Graph, matches: list[Match]) -> None:
    """Replace each pair by a call of `run_pair` at the place of the upsampling, before its input can be changed."""
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


def _note_left(tracer: tracing.Tracer, left: dict[fx.Node, str], found: Analysis) -> None:
    """Record the upsamplings of a graph that make no pair, by their names in the module."""
    assert isinstance(tracer.root, nn.Module)
    names = {module: name for name, module in tracer.root.named_modules()}
    for node, reason in left.items():
        place = str(node.target) if node.op == "call_module" else names[(tracer.root, *node.meta["scope"])[-1]]
        found.left[node.meta["key"]] = Left(place, reason)


def _state(module: nn.Module) -> tuple[Any, ...]:
    """Collect what a forward may branch on: attributes of plain types, children, and whether there are hooks."""
    plain = [(name, value) for name, value in vars(module).items() if isinstance(value, PLAIN_TYPES)]
    return tracing.has_hooks(module), plain, list(module._modules.values())


def _mentions_upsampling(module: nn.Module) -> bool:
    """Return whether a module seems to upsample in its own code: in its forward or in methods that this names."""
    codes = []
    todo = [tracing.plain_forward(module)]
    while todo:
        code = getattr(inspect.unwrap(todo.pop()), "__code__", None)
        if code is not None and code not in codes:
            codes.append(code)
            todo += [method for name in code.co_names if callable(method := getattr(type(module), name, None))]
    mentioned = any(name in ("interpolate", "upsample") for code in codes for name in code.co_names)
    return mentioned or any(isinstance(child, nn.Upsample) for child in module.children())
