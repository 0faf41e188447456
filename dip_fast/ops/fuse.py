"""Finds ``Upsample(x2) -> pad(1) -> Conv2d(3x3)`` in any model and runs it as one operator.

A fused model has the modules, the parameters and the ``state_dict`` keys of the plain one; what changes is the
``forward`` of the modules in which a pair meets.  Each of those is traced by torch.fx, its graph is rewritten
(`planning`), and the graph runs wherever it computes the same as the code it was traced from; everywhere else the plain
code runs (`fused_modules`).  So hooks, custom modules and untraceable code around a pair are left as they are.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from dip_fast.ops import fused_modules, pair_calls, tracing
from dip_fast.ops.planning import Analysis, Left, Pair, analyse

logger = logging.getLogger("dip_fast")
NOT_CALLED = "it was not called"


@dataclass(frozen=True)
class FusionReport:
    """The upsamplings of a model that `fuse` replaces, and those that it leaves, with the reasons.

    Attributes
    ----------
    replaced : list of Pair
        The pairs that run as one operator; after a run of the model, those that did.
    left : list of Left
        The upsamplings that run as before.
    unused : list of Pair
        The pairs that are replaced, and did not run as one operator in that run; their notes say why.
    """

    replaced: list[Pair] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    unused: list[Pair] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"replaced {len(self.replaced)}", *(f"  {pair}" for pair in self.replaced)]
        if self.unused:
            lines += [f"replaced, not used {len(self.unused)}", *(f"  {pair}" for pair in self.unused)]
        return "\n".join([*lines, f"left {len(self.left)}", *(f"  {left}" for left in self.left)])


def fuse(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Run every ``Upsample(x2) -> pad(1) -> Conv2d(3x3)`` of a model as one operator.

    Parameters
    ----------
    model : nn.Module
        Any model.  The upsampling is ``nn.Upsample`` or ``F.interpolate`` by two, nearest or bilinear with
        ``align_corners=False``; the padding is a layer, ``F.pad`` or the convolution's own, with zeros, reflection or
        replication.  The upsampled image may be concatenated with others before, as in a U-Net.  They may be in an
        ``nn.Sequential``, in the code of a ``forward`` or in modules that call each other.
    inplace : bool
        Whether to change the model itself rather than a copy.

    Returns
    -------
    nn.Module
        The fused model.  It shares the parameters and buffers of `model` and has the same ``state_dict`` keys, so an
        optimiser can go on with it and checkpoints can be loaded; it can be copied, pickled and fused again.

    Notes
    -----
    Where the layers are faster, on a CPU for small images, they run; `fusion_report` with an input shows it.  What
    cannot be fused runs as before; `fusion_report` lists it, and the report is logged at level INFO.  While one of
    the layers of a pair has a hook, the layers run one by one, so that the hook is called.  An upsampling to a ``size``
    is compared with the size of its input each time the model runs.

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
        analyses.append((name, analyse(module, opens)))
        if analyses[-1][1].plan.run is not None:
            fused_modules.fuse_class(module, analyses[-1][1])
    logger.info("dip-fast fused %s: %s", type(model).__name__, _report(model, analyses))
    return model


def unfuse(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Undo `fuse`: every module of a model has the class that it had before, and runs as before.

    Parameters
    ----------
    model : nn.Module
        A fused model, or any other.
    inplace : bool
        Whether to change the model itself rather than a copy.

    Returns
    -------
    nn.Module
        The plain model.  It shares the parameters and buffers of `model`.

    Notes
    -----
    A layer `UpsampleConv2d` stays as it is: it is no layer of PyTorch that `fuse` has changed.

    Examples
    --------
    >>> import dip_fast
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1))
    >>> type(dip_fast.unfuse(dip_fast.fuse(model)))
    <class 'torch.nn.modules.container.Sequential'>
    """
    if not inplace:
        model = _copy_sharing_tensors(model)
    for module in model.modules():
        fused_modules.unfuse_class(module)
    return model


def fusion_report(model: nn.Module, *args: Any, **kwargs: Any) -> FusionReport:
    """List the upsamplings that `fuse` replaces in a model, and those that it leaves, with the reasons.

    Parameters
    ----------
    model : nn.Module
        Any model, fused or not; it is not changed.
    *args, **kwargs
        Arguments to run the model with, so that the report says what ran.  Without them it says what could: each module
        is taken to be called with its required arguments alone, which may be of other shapes than in a run.

    Returns
    -------
    FusionReport
        The lists ``replaced`` and ``left``, and after a run ``unused``, which ``print`` shows.

    Notes
    -----
    It runs a copy, which has the parameters of the model and buffers of its own, once, in evaluation mode and without
    gradients.

    Examples
    --------
    >>> import dip_fast, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Upsample(size=(16, 16)), nn.Conv2d(4, 4, 3, padding=1))
    >>> print(dip_fast.fusion_report(model, torch.rand(1, 4, 9, 9)))
    replaced 0
    replaced, not used 1
      1: nearest, zeros (its size is not twice that of its input)
    left 0
    """
    opens = tracing.opener()
    if not args and not kwargs:
        return _report(model, [(name, analyse(module, opens)) for name, module in _children_first(model)])
    ran: dict[int, str] = {}
    token = pair_calls.ran.set(ran)
    try:
        with torch.no_grad():
            model = fuse(_copy_sharing_tensors(model, buffers=False).eval(), inplace=True)
            model(*args, **kwargs)
            analyses = [
                (name, each)
                for name, module in _children_first(model)
                for each in fused_modules.analyses(module) or [analyse(module, opens)]
            ]
    finally:
        pair_calls.ran.reset(token)
    return _report(model, analyses, ran)


def _children_first(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the modules with their names, each after its children."""
    return list(model.named_modules())[::-1]


def _report(model: nn.Module, analyses: list[tuple[str, Analysis]], ran: dict[int, str] | None = None) -> FusionReport:
    """Merge what was found in each module; of several reasons, the one found in the outermost module counts.

    After a run, pairs for which `ran` has a reason or nothing are unused; a pair of several plans counts once.
    """
    names = {module: name for name, module in model.named_modules()}  # a shared module has its first name
    modules = dict(model.named_modules(remove_duplicate=False))  # TorchScript has no get_submodule

    def full_name(name: str, place: str) -> str:
        return names[modules[".".join(filter(None, (name, place)))]]

    replaced: dict[Any, list[Pair]] = {}
    unused: dict[Any, list[Pair]] = {}
    left: dict[Any, Left] = {}
    for name, analysis in analyses:
        for key, pairs in analysis.replaced.items():
            for pair in pairs:
                against = "" if ran is None else ran.get(pair.number, NOT_CALLED)
                found = replace(pair, where=full_name(name, pair.where), note=against or pair.note)
                (unused if against else replaced).setdefault(key, []).append(found)
        left |= {key: replace(each, where=full_name(name, each.where)) for key, each in analysis.left.items()}
    order = list(names.values())

    def listed(found: dict[Any, list[Any]]) -> list[Any]:
        each = [entry for entries in found.values() for entry in entries]
        return sorted(each, key=lambda entry: order.index(entry.where))

    used = {(key, pair.where) for key, pairs in replaced.items() for pair in pairs}
    for key, pairs in unused.items():  # if the call that was made has a reason to leave it, that is what counts
        others = {pair.where: pair for pair in pairs if key not in left and (key, pair.where) not in used}
        unused[key] = [pair for pair in others.values() if key not in replaced or pair.note != NOT_CALLED]
    kept = {key: [each] for key, each in left.items() if key not in replaced}
    if ran is not None:
        replaced = {key: list(dict.fromkeys(pairs)) for key, pairs in replaced.items()}
    return FusionReport(listed(replaced), listed(kept), listed(unused))


def _copy_sharing_tensors(model: nn.Module, *, buffers: bool = True) -> nn.Module:
    """Copy a model, its modules and their attributes, but share its tensors, its buffers if this is asked for."""
    memo = {}
    for module in model.modules():
        shared = module._buffers.values() if buffers else ()
        for value in [*module._parameters.values(), *shared, *vars(module).values()]:
            if isinstance(value, Tensor):
                memo[id(value)] = value
    return copy.deepcopy(model, memo)
