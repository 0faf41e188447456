"""Traces modules with torch.fx, and returns a graph only where it computes the same as the code.

torch.fx assumes that the code does nothing but compute, and makes every value that the code reads from Python a
constant.  Here code that does more is refused (`CannotTraceError`), its side effects are undone, and the conditions on
shapes and dtypes of the input that the code branched on are kept (`Tracer.decisions`), to be computed again at each
run.
"""

from __future__ import annotations

import contextlib
import copy
import operator
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from types import NoneType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules import module as all_modules
from torch.utils._python_dispatch import TorchDispatchMode

from dip_fast.ops import calls
from dip_fast.ops.calls import Call

HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
DRAWS = "its code draws random numbers of its own"
# What returns as many dimensions as its first argument has: the layers of these files but one, and functions.
FILES = ("activation", "batchnorm", "conv", "dropout", "instancenorm", "padding", "pooling", "upsampling")
LAYERS = tuple(f"torch.nn.modules.{file}" for file in (*FILES, "normalization"))
ELEMENTWISE = (F.interpolate, F.relu, F.silu, F.leaky_relu, F.elu, F.gelu, F.pad, F.dropout, F.conv2d)
# Modules that ask whether a value is a proxy, and so have to see that it is one.
UNTYPED = ("torch.fx", "torch.utils", "torch.overrides", "torch.nn.parameter", "dip_fast.")
MAX_PATHS = 16  # how many combinations of branches of one forward are tried


class CannotTraceError(Exception):
    """A graph would not compute the same as the code."""


class Proxy(fx.Proxy):
    """A value in a trace that is of the type that the call passes; of torch.fx's own, code takes another branch."""

    @property
    def __class__(self) -> type:
        """The type that ``isinstance`` sees, in code that is not torch.fx itself."""
        if sys._getframe(1).f_globals.get("__name__", "").startswith(UNTYPED):
            return Proxy
        kind = self.node.meta.get("kind")
        if kind is None:
            raise CannotTraceError("its code branches on the type of what it computes")
        return calls.type_of(kind)

    @__class__.setter
    def __class__(self, type_: type) -> None:
        raise TypeError("a value in a trace keeps its type")


class Tracer(fx.Tracer):
    """Traces one forward as it runs in one kind of call.

    Parameters
    ----------
    opens : callable
        Returns for each child whether to trace into it; the others become single calls.
    planned : tuple of bool
        The values of the first conditions; all later ones are taken to be false.
    call : Call, optional
        What the call passes; by default its required arguments alone, all of them tensors.

    Attributes
    ----------
    decisions : list of fx.Node
        The conditions that the code branched on.
    outcomes : list of bool
        The value that each of them was given.

    Notes
    -----
    The ``meta["scope"]`` of a node lists the opened modules around it.  A call of a module or of ``F.interpolate`` also
    has a ``meta["key"]``, which is the same in a trace of another module around this one.
    """

    proxy_buffer_attributes = True  # otherwise an update of a buffer would happen while tracing, and never again

    def __init__(
        self, opens: Callable[[nn.Module], bool], planned: tuple[bool, ...] = (), call: Call | None = None
    ) -> None:
        super().__init__()
        self.opens = opens
        self.planned = planned
        self.call = call
        self.outcomes: list[bool] = []
        self.decisions: list[fx.Node] = []
        self._images: set[fx.Node] = set()  # tensors that are taken to have four dimensions
        self._frames: list[tuple[nn.Module, list[fx.Node]]] = []
        self._modes = _modes()

    def trace_safely(self, module: nn.Module) -> None:
        """Trace a module; side effects of its code are undone, and refused."""
        with _undoing_effects(module), warnings.catch_warnings(action="ignore"):
            self.trace(module)

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """Find the module that a node calls; None if it calls none."""
        assert isinstance(self.root, nn.Module)
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Make the value of a node."""
        return Proxy(node, self)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Create placeholders for the tensors and numbers that the call passes."""
        assert isinstance(self.root, nn.Module)
        self._frames.append((self.root, []))
        forward = plain_forward(self.root)

        def placeholder(name: str, kind: str) -> fx.Proxy:
            proxy = self.create_proxy("placeholder", name, (), {})
            proxy.node.meta["kind"] = kind
            return proxy

        call = calls.simplest(forward) if self.call is None else self.call
        return forward, [self.root, *calls.arguments(forward, call, placeholder)]

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Record a call of a module, or trace into it."""
        if not self.opens(m):
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
        self._frames.append((m, []))
        try:
            return plain_forward(m)(m, *args, **kwargs)
        finally:
            self._frames.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Record a node and the modules around it."""
        if _modes() != self._modes:
            raise CannotTraceError("its code switches gradients or autocast, which a graph does not record")
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
        """Refuse tensors that torch.fx would keep as constants, as the code would make them anew at each run."""
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and a not in self.tensor_attrs:
            raise CannotTraceError("its code makes a tensor that does not come from its input")
        return super().create_arg(a)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Choose the value of a condition that the code branches on."""
        if not is_metadata(obj.node):
            raise CannotTraceError("its code branches on values, or on shapes of what it computes")
        position = len(self.outcomes)
        self.outcomes.append(position < len(self.planned) and self.planned[position])
        self.decisions.append(obj.node)
        return self.outcomes[-1]

    def iter(self, obj: Any) -> Iterator[Any]:
        """Iterate over sizes, if they are of an image, on the condition that it has four dimensions."""
        length = self._length(obj.node)
        return super().iter(obj) if length is None else iter([obj[number] for number in range(length)])

    def _length(self, node: fx.Node) -> int | None:
        """Return how many sizes a node holds, where this is known."""
        if node.op == "placeholder":
            return calls.length_of(node.meta.get("kind"))
        if node.target is operator.getitem and isinstance(node.args[1], slice):
            length = self._length(node.args[0]) if isinstance(node.args[0], fx.Node) else None
            cut = node.args[1]
            constant = all(type(each) in (int, NoneType) for each in (cut.start, cut.stop, cut.step))
            return None if length is None or not constant else len(range(length)[cut])
        shape = node.target is getattr and node.args[1] == "shape"
        if not shape and not (node.op == "call_method" and node.target == "size" and len(node.args) == 1):
            return None
        image = self._image(node.args[0])
        if image is None:
            return None
        if image not in self._images:
            self._images.add(image)
            dimensions = self.create_proxy("call_method", "dim", (self.proxy(image),), {})
            self.decisions.append(self.create_proxy("call_function", operator.eq, (dimensions, 4), {}).node)
            self.outcomes.append(True)
        return 4

    def _image(self, node: Any) -> fx.Node | None:
        """Return the tensor input that a node has as many dimensions as, where this is known."""
        while isinstance(node, fx.Node):
            if node.meta.get("kind") == calls.TENSOR:
                return node
            module = self.module_of(node)
            layer = (
                module is not None
                and type(module).__module__ in LAYERS
                and not isinstance(module, nn.MultiheadAttention)
            )
            if not (layer or node.target in ELEMENTWISE) or not node.args:
                return None
            node = node.args[0]
        return None


def trace(
    module: nn.Module,
    opens: Callable[[nn.Module], bool],
    planned: tuple[bool, ...] = (),
    call: Call | None = None,
) -> Tracer:
    """Trace the forward of a module.

    Returns
    -------
    Tracer
        The tracer, with its ``graph``, ``decisions`` and ``outcomes``.

    Raises
    ------
    Exception
        Any error that the code raises when it is called with proxies; `CannotTraceError` if it does more than compute.
    """
    tracer = Tracer(opens, planned, call)
    tracer.trace_safely(module)
    return tracer


def trace_paths(module: nn.Module, opens: Callable[[nn.Module], bool], call: Call | None = None) -> Iterator[Tracer]:
    """Trace a module for each combination of its conditions that its code can reach, all false first.

    Raises
    ------
    Exception
        The first error, if none of them can be traced.
    """
    planned: tuple[bool, ...] = ()
    errors = []
    found = False
    for _ in range(MAX_PATHS):
        tracer = Tracer(opens, planned, call)
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
    """Return a function that tests whether a child can be traced along with its parent, without any conditions."""
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
    """Extract from a graph the part that computes the conditions."""
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
    """Compile a graph to a function of the module and the values of the placeholders."""
    code = graph.python_code(root_module="self")
    namespace = dict(code.globals)
    exec(compile(code.src, f"<{name}>", "exec"), namespace)
    return namespace["forward"]


def is_metadata(node: fx.Node) -> bool:
    """Return whether a node is computed from numbers, shapes, dtypes and devices that the module is given alone."""
    if node.op == "placeholder":
        return node.meta.get("kind") != calls.TENSOR
    given = [source.op in ("placeholder", "get_attr") for source in node.all_input_nodes]
    if node.target is getattr:
        return given == [True] and node.args[1] in ("shape", "dtype", "device", "ndim")
    if node.op == "call_method":
        return given == [True] and node.target in ("size", "dim", "numel", "ndimension")
    plain = getattr(node.target, "__module__", None) in ("_operator", "builtins", "math")
    return node.op == "call_function" and plain and all(map(is_metadata, node.all_input_nodes))


def plain_forward(module: nn.Module) -> Callable[..., Any]:
    """Return the forward of a module's class; for a fused module, of its class before fusion."""
    return getattr(type(module), "plain_class", type(module)).forward


def has_code_of_its_own(module: nn.Module) -> bool:
    """Return whether a module is a container or written by a user, and not a layer of PyTorch."""
    if "forward" in vars(module) or isinstance(module, torch.jit.ScriptModule):
        return False
    if isinstance(module, fx.GraphModule) or plain_forward(module) is nn.Sequential.forward:
        return True
    return not type(module).__module__.startswith("torch.")


def has_hooks(module: nn.Module) -> bool:
    """Return whether a call of the module calls hooks, of its own or those of all modules."""
    own = (f"_{kind}" for kind in HOOKS)
    return any(getattr(module, name) for name in own) or any(getattr(all_modules, f"_global_{kind}") for kind in HOOKS)


def _modes() -> tuple[bool, ...]:
    autocast = [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")]
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast)


@contextlib.contextmanager
def _undoing_effects(module: nn.Module) -> Iterator[None]:
    """Undo the side effects of code that is traced, and refuse it if there are any: a graph would not repeat them."""
    attributes = [(vars(each), dict(vars(each))) for each in module.modules()]
    values = [value for _, before in attributes for value in before.values()]
    containers = [(value, copy.copy(value)) for value in values if type(value) in (dict, list, set)]
    python_state, draws = random.getstate(), _Draws()
    changed = False
    try:
        with draws:
            yield
    finally:
        for now, before in [*attributes, *containers]:
            if not _holds_the_same(now, before):
                changed = True
                now.clear()
                (now.extend if isinstance(now, list) else now.update)(before)
        drawn = draws.refused or random.getstate() != python_state
        if drawn:
            random.setstate(python_state)
    if changed:
        raise CannotTraceError("its code changes its own attributes")
    if drawn:
        raise CannotTraceError(DRAWS)


class _Draws(TorchDispatchMode):
    """Refuses what draws from a generator of PyTorch before it draws: other threads draw from the same one."""

    refused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.refused = True
            raise CannotTraceError(DRAWS)
        return func(*args, **(kwargs or {}))


def _holds_the_same(now: Any, before: Any) -> bool:
    if isinstance(now, dict):
        return now.keys() == before.keys() and all(now[key] is before[key] for key in now)
    return len(now) == len(before) and all(map(operator.is_, now, before))
