"""The class of a fused module: its forward runs a plan where one fits, else the plain forward.

`fuse_class` changes the class of a module to a subclass of its own class, so that parameters, hooks, attributes and
``isinstance`` stay as they are.  Plans are made anew when the state of the module changes: for training or not, with or
without gradients, for other values of its attributes, and for each kind of call.
"""

from __future__ import annotations

import copyreg
import functools
from typing import Any

import torch
from torch import nn

from dip_fast.ops import calls, tracing
from dip_fast.ops.calls import Call
from dip_fast.ops.planning import Analysis, analyse

MAX_PLANS = 8  # kept of one module, the latest


def fuse_class(module: nn.Module, first: Analysis) -> None:
    """Make a module a fused one, with a first plan."""
    if not isinstance(module, FusedModule):
        module.__class__ = _fused_class(type(module))  # type: ignore[arg-type]
    module.__dict__["_dip_fast_plans"] = [first]


def unfuse_class(module: nn.Module) -> None:
    """Make a fused module one of its own class again; leave any other as it is."""
    if isinstance(module, FusedModule):
        module.__dict__.pop("_dip_fast_plans", None)  # a copy has none yet
        module.__class__ = module.plain_class  # type: ignore[assignment]


def analyses(module: nn.Module) -> list[Analysis]:
    """List what was found in a fused module for each kind of call and state so far; nothing in any other."""
    return list(vars(module).get("_dip_fast_plans", ()))


class FusedModule:
    """Base class of fused modules: the forward runs a plan where one fits, else the plain forward."""

    plain_class: type[nn.Module]
    plain_parameters: tuple[tuple[str, ...], dict[str, Any]]
    _dip_fast_plans: list[Analysis]

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert isinstance(self, nn.Module)
        found = calls.of(*self.plain_parameters, args, kwargs)
        if found is not None:
            call, inputs = found
            number = _current_plan(self, self.training, call)  # before the plans are read, as it may make them
            plan = self._dip_fast_plans[number].plan
            if plan.run is not None and plan.fits(self, inputs):
                return plan.run(self, *inputs)
        return self.plain_class.forward(self, *args, **kwargs)

    def __prepare_scriptable__(self) -> nn.Module:
        # A plain module returned here would take this one's place in the user's model.
        raise TypeError("torch.jit.script cannot compile a fused model; script dip_fast.unfuse(model), or trace it")

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class exists in this process only, and plans hold compiled code: a copy makes both anew.
        made = super().__reduce_ex__(protocol)
        if not isinstance(made, tuple) or made[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return made  # the class pickles itself in a way of its own; the copy is plain
        state = {name: value for name, value in made[2].items() if name != "_dip_fast_plans"}
        return (_new_fused, (self.plain_class,), state, *made[3:])


def _new_fused(plain_class: type[nn.Module]) -> nn.Module:
    """Create an empty fused module, which a copy or a pickle then fills."""
    fused = _fused_class(plain_class)  # type: ignore[arg-type]
    return fused.__new__(fused)


@functools.cache
def _fused_class(plain_class: Any) -> type[nn.Module]:
    """Derive the class of fused modules from a class of plain ones."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return FusedModule._forward(self, args, kwargs)

    forward.__code__ = forward.__code__.replace()  # torch.compile counts recompilations by code object
    functools.update_wrapper(forward, plain_class.forward)
    members = {
        "forward": forward,
        "plain_class": plain_class,
        "plain_parameters": calls.parameters(plain_class.forward),
        "__module__": plain_class.__module__,
    }
    return type(f"Fused{plain_class.__name__}", (FusedModule, plain_class), members)


@torch.compiler.assume_constant_result
def _current_plan(module: nn.Module, training: bool, call: Call) -> int:
    """Return the number of the plan for a kind of call and the module's present state, making one if there is none.

    Under torch.compile this runs while the module is compiled, and the result is a constant for each value of
    `training` and of autograd's mode: later changes of other attributes go unnoticed.
    """
    plans = module.__dict__.setdefault("_dip_fast_plans", [])
    for number, found in enumerate(plans):
        if found.plan.is_current(call):
            return number
    del plans[: 1 - MAX_PLANS]
    plans.append(analyse(module, tracing.opener(), call))
    return len(plans) - 1
