"""torch.fx with care: a graph is made only where it says the same as the code it is traced from.

torch.fx leaves it to its user that the code does nothing but compute, and bakes in whatever the code asks Python.
Here code that does more is refused (`CannotTraceError`), what it did meanwhile is undone, and the conditions on the
shapes and dtypes of its input that the code branched on are kept (`Tracer.decisions`), to be asked again at each run.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

MAX_PATHS = 16  # ways through one forward that are tried


class CannotTraceError(Exception):
    """The graph would not say the same as the code."""


class Tracer(fx.Tracer):
    """Traces one forward as it runs with its required arguments alone.

    Parameters
    ----------
    opens : callable
        Says of each child whether to trace into it; the others are single calls.
    planned : tuple of bool
        How the first conditions come out; those after come out false.

    Attributes
    ----------
    decisions : list of fx.Node
        The conditions, and in ``outcomes`` how they came out.

    Notes
    -----
    Each node says in ``meta["scope"]`` which opened modules it is in.  A call of a module or of ``F.interpolate`` has a
    ``meta["key"]`` too, by which it is known again in a trace of another module around it.
    """

    proxy_buffer_attributes = True  # or an update of a buffer would happen while tracing, and never again

    def __init__(self, opens: Callable[[nn.Module], bool], planned: tuple[bool, ...] = ()) -> None:
        super().__init__()
        self.opens = opens
        self.planned = planned
        self.outcomes: list[bool] = []
        self.decisions: list[fx.Node] = []
        self._frames: list[tuple[nn.Module, list[fx.Node]]] = []
        self._modes = _modes()

    def trace_safely(self, module: nn.Module) -> None:
        """Trace a module, undoing and refusing what its code does besides computing."""
        with _undoing_effects(module), warnings.catch_warnings(action="ignore"):
            self.trace(module)

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """Find the module that a node calls; None if it calls none."""
        assert isinstance(self.root, nn.Module)
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Give placeholders to the required parameters; the code sees the defaults of the others."""
        assert isinstance(self.root, nn.Module)
        self._frames.append((self.root, []))
        forward = plain_forward(self.root)
        placeholders = [self.create_proxy("placeholder", name, (), {}) for name in parameters(forward)[0]]
        return forward, [self.root, *placeholders]

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Record a call, or follow it."""
        if not self.opens(m):
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
        self._frames.append((m, []))
        try:
            return plain_forward(m)(m, *args, **kwargs)
        finally:
            self._frames.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Record a node and where it stands."""
        if _modes() != self._modes:
            raise CannotTraceError("its code switches gradients or autocast, which a graph does not hold")
        node = super().create_node(*args, **kwargs)
        node.meta["scope"] = tuple(module for module, _ in self._frames[1:])
        module, interpolations = self._frames[-1]
        if node.target is F.interpolate:
            node.meta["key"] = (module, len(interpolations))
            interpolations.append(node)
        elif node.op == "call_module":
            node.meta["key"] = (module, self.module_of(node))
        return node

    def create_arg(self, a: Any) -> Any:
        """Refuse tensors that torch.fx would keep as constants: the code would make them anew at each run."""
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and a not in self.tensor_attrs:
            raise CannotTraceError("its code makes a tensor that does not come from its input")
        return super().create_arg(a)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Decide a condition."""
        if not is_metadata(obj.node):
            raise CannotTraceError("its code branches on values, or on shapes of what it computes")
        position = len(self.outcomes)
        self.outcomes.append(position < len(self.planned) and self.planned[position])
        self.decisions.append(obj.node)
        return self.outcomes[-1]


def trace(module: nn.Module, opens: Callable[[nn.Module], bool], planned: tuple[bool, ...] = ()) -> Tracer:
    """Trace the forward of a module.

    Returns
    -------
    Tracer
        Its ``graph``, ``decisions`` and ``outcomes``.

    Raises
    ------
    Exception
        Whatever the code does when it is handed proxies; `CannotTraceError` if it does more than compute.
    """
    tracer = Tracer(opens, planned)
    tracer.trace_safely(module)
    return tracer


def trace_paths(module: nn.Module, opens: Callable[[nn.Module], bool]) -> Iterator[Tracer]:
    """Trace a module along each way its code can take, beginning with every condition false.

    Raises
    ------
    Exception
        The first error, if no way can be traced.
    """
    planned: tuple[bool, ...] = ()
    errors = []
    found = False
    for _ in range(MAX_PATHS):
        tracer = Tracer(opens, planned)
        try:
            tracer.trace_safely(module)
        except Exception as error:  # see `trace`
            errors.append(error)
        else:
            found = True
            yield tracer
        taken = list(tracer.outcomes)
        while taken and taken[-1]:
            taken.pop()
        if not taken:
            break
        planned = (*taken[:-1], True)
    if not found:
        raise errors[0]


def opener() -> Callable[[nn.Module], bool]:
    """Make the test whether a child can be traced along with its parent: it must go through without conditions."""
    known: dict[nn.Module, bool] = {}

    def opens(module: nn.Module) -> bool:
        if module not in known:
            known[module] = False  # a module that calls itself is not opened
            known[module] = has_code_of_its_own(module) and not has_hooks(module) and goes_through(module)
        return known[module]

    def goes_through(module: nn.Module) -> bool:
        try:
            return not trace(module, opens).decisions
        except Exception:  # see `trace`
            return False

    return opens


def conditions(tracer: Tracer) -> fx.Graph:
    """Extract the computation of the conditions from a graph."""
    needed = set(tracer.decisions)
    for node in reversed(tracer.graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in tracer.graph.nodes:
        if node in needed or node.op == "placeholder":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in tracer.decisions))
    return graph


def compiled(graph: fx.Graph, name: str) -> Callable[..., Any]:
    """Make a function of a graph; it takes the module and then what the placeholders stand for."""
    code = graph.python_code(root_module="self")
    namespace = dict(code.globals)
    exec(compile(code.src, f"<{name}>", "exec"), namespace)
    return namespace["forward"]


def is_metadata(node: fx.Node) -> bool:
    """Tell whether a node is computed from nothing but shapes, dtypes and devices of what the module is given."""
    given = [source.op in ("placeholder", "get_attr") for source in node.all_input_nodes]
    if node.target is getattr:
        return given == [True] and node.args[1] in ("shape", "dtype", "device", "ndim")
    if node.op == "call_method":
        return given == [True] and node.target in ("size", "dim", "numel", "ndimension")
    plain = getattr(node.target, "__module__", None) in ("_operator", "builtins", "math")
    return node.op == "call_function" and plain and all(map(is_metadata, node.all_input_nodes))


def plain_forward(module: nn.Module) -> Callable[..., Any]:
    """Give the forward of the class of a module, that before fusion if the module is fused."""
    return getattr(type(module), "plain_class", type(module)).forward


def has_code_of_its_own(module: nn.Module) -> bool:
    """Tell containers of modules and modules written by users from the layers of PyTorch."""
    if "forward" in vars(module) or isinstance(module, torch.jit.ScriptModule):
        return False
    if isinstance(module, fx.GraphModule) or plain_forward(module) is nn.Sequential.forward:
        return True
    return not type(module).__module__.startswith("torch.")


def has_hooks(module: nn.Module) -> bool:
    """Tell whether something is to be called when the module is."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def parameters(forward: Callable[..., Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """List the required parameters of a forward, and the others with their defaults, in order."""
    required = []
    defaults = {}
    for parameter in list(inspect.signature(forward).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        else:
            defaults[parameter.name] = parameter.default
    return tuple(required), defaults


def _modes() -> tuple[bool, ...]:
    autocast = [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")]
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast)


@contextlib.contextmanager
def _undoing_effects(module: nn.Module) -> Iterator[None]:
    """Undo what the code does besides computing while it is traced, and refuse it: its graph would not do it again."""
    attributes = [(vars(each), dict(vars(each))) for each in module.modules()]
    values = [value for _, before in attributes for value in before.values()]
    containers = [(value, copy.copy(value)) for value in values if type(value) in (dict, list, set)]
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    changed = False
    try:
        yield
    finally:
        for now, before in [*attributes, *containers]:
            if not _holds_the_same(now, before):
                changed = True
                now.clear()
                (now.extend if isinstance(now, list) else now.update)(before)
        drawn = random.getstate() != python_state or not torch.equal(torch.get_rng_state(), torch_state)
        random.setstate(python_state)
        torch.set_rng_state(torch_state)
    if changed:
        raise CannotTraceError("its code changes its own attributes")
    if drawn:
        raise CannotTraceError("its code draws random numbers of its own")


def _holds_the_same(now: Any, before: Any) -> bool:
    if isinstance(now, dict):
        return now.keys() == before.keys() and all(now[key] is before[key] for key in now)
    return len(now) == len(before) and all(map(operator.is_, now, before))
