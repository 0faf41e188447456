"""Finds what can be fused in one module and rewrites its forward accordingly: a `Plan`.

The module is traced by torch.fx with its children as single calls, except those that have to be opened to reach a pair
(`pairs.find_pairs`).  In the graph, each pair becomes one call of `pair_calls.run_pair`.  The graph computes the
same as the code it was traced from as long as `Plan.is_current` and `Plan.fits`.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from dip_fast.ops import calls, tracing
from dip_fast.ops.calls import Call
from dip_fast.ops.pair_calls import MODES, run_pair
from dip_fast.ops.pairs import Match, find_pairs

PLAIN_TYPES = (bool, int, float, str, tuple, type(None))


@dataclass(frozen=True)
class Pair:
    """An upsampling and the convolution that reads it, which run as one operator.

    Attributes
    ----------
    where : str
        The name of the convolution in the model, or of the module whose code calls ``F.conv2d``.
    mode, padding_mode : str
        The arguments of the operator.
    note : str
        A condition that is checked when the model runs, or what remains besides; why it did not run; or nothing.
    number : int
        Another for each plan, by which `pair_calls.ran` names it.
    """

    where: str
    mode: str
    padding_mode: str
    note: str = ""
    number: int = field(default_factory=itertools.count().__next__, repr=False, compare=False)

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{self.where or 'the model itself'}: {self.mode}, {self.padding_mode}{note}"


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
    call : Call
        What the call that was traced passes.
    """

    run: Callable[..., Any] | None
    conditions: Callable[..., Any] | None
    outcomes: list[bool]
    grad: bool
    watched: list[tuple[nn.Module, tuple[Any, ...]]]
    call: Call

    def is_current(self, call: Call) -> bool:
        """Return whether a call is of the kind that was traced, and the modules are as they were then."""
        same = self.call == call and self.grad == torch.is_grad_enabled()
        return same and all(_state(module) == was for module, was in self.watched)

    def fits(self, module: nn.Module, inputs: list[Any]) -> bool:
        """Return whether the code would take the traced branches for these inputs."""
        return self.conditions is None or [bool(each) for each in self.conditions(module, *inputs)] == self.outcomes


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


def analyse(module: nn.Module, opens: Callable[[nn.Module], bool], call: Call | None = None) -> Analysis:
    """Find the pairs that meet in a module and not already in one of its children, and make a plan that runs them."""
    has_code = tracing.has_code_of_its_own(module)
    if call is None:
        call = calls.simplest(tracing.plain_forward(module)) if has_code else ()
    found = Analysis(Plan(None, None, [], torch.is_grad_enabled(), [(module, _state(module))], call))
    if not has_code:
        if isinstance(module, torch.jit.ScriptModule):
            if re.search(r"\binterpolate\b|torch\.upsample", str(getattr(module, "code", ""))):
                found.left[module] = Left("", "it is TorchScript, which cannot be traced")
        elif "forward" in vars(module) and not isinstance(module, nn.Upsample) and _mentions_upsampling(module):
            found.left[module] = Left("", "its forward was replaced by another")
        return found
    if not any(isinstance(each, nn.Conv2d) for each in module.modules()) and not _mentions_upsampling(module):
        return found
    try:
        for tracer in tracing.trace_paths(module, opens, call):
            matches, left = find_pairs(tracer)
            _note_left(tracer, left, found)
            own = [match for match in matches if match.owner(module) is module]
            if own:
                opened = {scope for match in own for node in match.calls for scope in node.meta["scope"]}
                _plan(module, opened, tracer, found)
                break
    except Exception as error:  # code that is traced may raise anything
        if _mentions_upsampling(module):
            found.left[module] = Left("", "its code cannot be traced: " + str(error).partition("\n")[0])
    return found


def _plan(module: nn.Module, opened: set[nn.Module], tracer: tracing.Tracer, found: Analysis) -> None:
    """Trace a module again, with only those children opened that its own pairs need, and rewrite the graph."""
    call = found.plan.call
    with contextlib.suppress(Exception):  # code may need to see that a child keeps the number of dimensions
        tracer = tracing.trace(module, opened.__contains__, tuple(tracer.outcomes), call)
    name = f"{type(module).__name__}, fused by dip_fast"
    conditions = tracing.compiled(tracing.conditions(tracer), name) if tracer.decisions else None
    matches, left = find_pairs(tracer)
    _note_left(tracer, left, found)
    layers = []
    pairs: dict[Match, Pair] = {}
    for match in matches:
        layers += [layer for node in match.calls if (layer := tracer.module_of(node)) is not None]
        if match.owner(module) is module:
            pairs[match] = _describe(tracer, match)
            found.replaced.setdefault(match.upsample.meta["key"], []).append(pairs[match])
    if matches:
        _rewrite(tracer, {match: pairs[match].number if match in pairs else None for match in matches})
        scopes = [scope for node in tracer.graph.nodes for scope in node.meta.get("scope", ())]
        watched = [(each, _state(each)) for each in dict.fromkeys([module, *opened, *scopes, *layers])]
        run = tracing.compiled(tracer.graph, name)
        found.plan = Plan(run, conditions, tracer.outcomes, torch.is_grad_enabled(), watched, call)


def _describe(tracer: tracing.Tracer, match: Match) -> Pair:
    notes = ["if its size is twice that of its input"] if match.size is not None else []
    notes += ["what it is concatenated with is convolved apart"] if match.join is not None else []
    notes += ["the upsampled image is read elsewhere too, and still computed"] if match.kept else []
    conv = tracer.module_of(match.conv)
    padding_mode = match.padding_mode or ("zeros" if conv is None else str(conv.padding_mode))
    return Pair(_place(tracer, match.conv), MODES[match.mode], padding_mode, "; ".join(notes))


def _rewrite(tracer: tracing.Tracer, matches: dict[Match, int | None]) -> None:
    """Replace each pair by a call of `run_pair`.

    Its place is that of the upsampling, before its input can be changed, if all that it reads is there.
    """
    graph = tracer.graph
    for match, number in matches.items():
        with graph.inserting_before(match.upsample if match.runs_early else match.conv):
            upsample, pad = (
                graph.get_attr(str(node.target)) if node is not None and node.op == "call_module" else None
                for node in (match.upsample, match.pad)
            )
            conv = graph.get_attr(str(match.conv.target)) if match.function is None else match.function
            arguments = (match.upsample.args[0], conv, match.mode, match.size, match.padding_mode, upsample, pad)
            others, position = match.others()
            pair = graph.call_function(run_pair, (*arguments, others, position, number))
        match.conv.replace_all_uses_with(pair)
        graph.erase_node(match.conv)
    replaced = {node for match in matches for node in match.calls[:-1]}
    for node in reversed(graph.nodes):
        if not node.users and node.op != "placeholder" and (node in replaced or tracing.is_metadata(node)):
            graph.erase_node(node)


def _place(tracer: tracing.Tracer, node: fx.Node) -> str:
    """Return the name of the module that a node calls; for a function, of the module whose code calls it."""
    assert isinstance(tracer.root, nn.Module)
    if node.op == "call_module":
        return str(node.target)
    caller = (tracer.root, *node.meta["scope"])[-1]
    return next(name for name, module in tracer.root.named_modules() if module is caller)


def _note_left(tracer: tracing.Tracer, left: dict[fx.Node, str], found: Analysis) -> None:
    """Record the upsamplings of a graph that make no pair, by their names in the module."""
    for node, reason in left.items():
        found.left[node.meta["key"]] = Left(_place(tracer, node), reason)


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
