"""The class of a fused module: its forward runs a plan where one fits, else the plain forward.

`fuse_class` changes the class of a module to a subclass of its own class, so that parameters, hooks, attributes and
``isinstance`` stay as they are.  Plans are made anew when the state of the module changes: for training or not, with or
without gradients, for other values of its attributes.
"""

from __future__ import annotations

import copyreg
import functools
from typing import Any

import torch
from torch import Tensor, nn

from dip_fast.ops import tracing
from dip_fast.ops.planning import Plan, analyse

MAX_PLANS = 8  # kept of one module, the latest


def fuse_class(module: nn.Module, plan: Plan) -> None:
    """Make a module a fused one, with a first plan."""
    if not isinstance(module, FusedModule):
        module.__class__ = _fused_class(type(module))  # type: ignore[arg-type]
    module.__dict__["_dip_fast_plans"] = [plan]


def unfuse_class(module: nn.Module) -> None:
    """Make a fused module one of its own class again; leave any other as it is."""
    if isinstance(module, FusedModule):
        module.__dict__.pop("_dip_fast_plans", None)  # a copy has none yet
        module.__class__ = module.plain_class  # type: ignore[assignment]


class FusedModule:
    """Base class of fused modules: the forward runs a plan where one fits, else the plain forward."""

    plain_class: type[nn.Module]
    plain_parameters: tuple[tuple[str, ...], dict[str, Any]]
    _dip_fast_plans: list[Plan]

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert isinstance(self, nn.Module)
        tensors = _required_tensors(*self.plain_parameters, args, kwargs)
        if tensors is not None:
            number = _current_plan(self, self.training)  # before the plans are read, as it may make them
            plan = self._dip_fast_plans[number]
            if plan.run is not None and plan.fits(self, tensors):
                return plan.run(self, *tensors)
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
        "plain_parameters": tracing.parameters(plain_class.forward),
        "__module__": plain_class.__module__,
    }
    return type(f"Fused{plain_class.__name__}", (FusedModule, plain_class), members)


@torch.compiler.assume_constant_result
def _current_plan(module: nn.Module, training: bool) -> int:
    """Return the number of the plan for the module's present state, making one if there is none.

    Under torch.compile this runs while the module is compiled, and the result is a constant for each value of
    `training` and of autograd's mode: later changes of other attributes go unnoticed.
    """
    plans = module.__dict__.setdefault("_dip_fast_plans", [])
    for number, plan in enumerate(plans):
        if plan.is_current():
            return number
    del plans[: 1 - MAX_PLANS]
    plans.append(analyse(module, tracing.opener()).plan)
    return len(plans) - 1


def _required_tensors(
    required: tuple[str, ...], defaults: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Tensor] | None:
    """Return the required arguments if they are tensors and all others have their default values, else None."""
    given = dict(zip((*required, *defaults), args, strict=False)) | kwargs
    if len(given) != len(args) + len(kwargs):  # too many, or one twice: the plain forward raises the error
        return None
    tensors = [given.pop(name, None) for name in required]
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        return None
    if not all(name in defaults and value is defaults[name] for name, value in given.items()):
        return None
    return tensors
