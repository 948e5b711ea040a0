"""Layers that the example does not reach, though the model's code names them: later stages behind an early exit.

Another input may lead there, so what could feed such a layer, or be fed by it, keeps the width that it reads or gives.
What nothing in the code of a forward pass names (a head that is never called) is out of reach of any input, and holds
nothing back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from math import prod
from types import CodeType

from torch import nn

from compress.graph import axes
from compress.graph.axes import Dim
from compress.graph.recording import Recording

_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_ANY_CHILD = frozenset(("getattr", "children", "named_children", "modules", "named_modules", "_modules"))
_Width = tuple[str, int, int]  # tensor, place, size


def keep_what_meets(seen: Recording, unused: Collection[str], joined: Collection[tuple[str, int]]) -> None:
    """Freeze the widths that layers of `unused` parameters may read or give; those `joined` follow by themselves.

    That is what is handed from layer to layer where the unreached one is, and has the size that it reads or gives. What
    one of them gives to the next is theirs alone.
    """
    names = [name for name in _unreached(seen, unused) if _is_named(seen, _caller(seen, name), name)]
    ends = [(list(_widths(seen, name, first=True)), list(_widths(seen, name, first=False))) for name in names]
    handed: dict[str, dict[tuple[Dim, ...], None]] = {}
    for number, name in enumerate(names):
        before = {size for _, given in ends[:number] for _, _, size in given}
        behind = {size for read, _ in ends[number + 1 :] for _, _, size in read}
        read, given = ends[number]
        sizes = {size for tensor, place, size in read if size not in before and (tensor, place) not in joined}
        sizes |= {size for tensor, place, size in given if size not in behind and (tensor, place) not in joined}
        caller, reason = _caller(seen, name), f"{name!r} may read or give it, which no forward pass reached"
        if caller not in handed:
            handed[caller] = dict.fromkeys([*seen.handed[caller], *_handled(seen, caller)])
        for dims in handed[caller] if sizes else ():
            whole = prod(axes.dim_size(dim) for dim in dims[1:]) in sizes  # of a flattened map
            for place, dim in enumerate(dims):
                if axes.dim_size(dim) in sizes or (whole and place):
                    axes.freeze(dim, reason)


def _handled(seen: Recording, caller: str) -> Iterator[tuple[Dim, ...]]:
    """Yield the dimensions of each tensor that the operations in a module itself took or gave."""
    for step in (*seen.result.steps, *seen.result.training_steps):
        if step.module == caller:
            yield from (*step.inputs, *step.outputs)


def _unreached(seen: Recording, unused: Collection[str]) -> list[str]:
    """Return the outermost modules of whose parameters no operation used any."""
    used = {name for name, _ in seen.model.named_parameters()}.difference(unused)
    alive = {owner for name in used for owner in _around(name)} | set(seen.handed)
    found: dict[str, None] = {}
    for name in unused:
        if idle := [owner for owner in _around(name) if owner not in alive]:
            found[idle[0]] = None
    return list(found)


def _around(name: str) -> list[str]:
    """Return the modules that a tensor or module lies in, outermost first."""
    parts = name.split(".")[:-1]
    return ["", *(".".join(parts[: count + 1]) for count in range(len(parts)))]


def _caller(seen: Recording, name: str) -> str:
    """Return the innermost module around another that has run."""
    return next((owner for owner in reversed(_around(name)) if owner in seen.handed), "")


def _widths(seen: Recording, name: str, *, first: bool) -> Iterator[_Width]:
    """Yield the dimensions that number what a layer, or those of a part, read (`first`) or give.

    Of layers in a row only the first one reads what comes, and only the last one gives.
    """
    module = seen.model.get_submodule(name)
    if type(module) is nn.Sequential:
        children = [child for child, layer in module.named_children() if next(layer.parameters(), None) is not None]
        yield from _widths(seen, f"{name}.{children[0 if first else -1]}", first=first)
        return
    for owner, layer in module.named_modules(prefix=name):
        for leaf, tensor in layer.named_parameters(recurse=False):
            places = {place: size for place, size in enumerate(tensor.shape) if size > 1}
            if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag)):
                places = _of_product(layer, first) if leaf == "weight" else {}
            yield from ((f"{owner}.{leaf}", place, size) for place, size in places.items())


def _of_product(layer: nn.Module, first: bool) -> dict[int, int]:
    """Return the dimension of the weight of one of torch's layers that numbers what it reads (`first`) or gives."""
    if isinstance(layer, nn.Linear):
        return {1: layer.in_features} if first else {0: layer.out_features}
    if isinstance(layer, nn.modules.conv._ConvNd):
        return {int(first != layer.transposed): layer.in_channels if first else layer.out_channels}
    return {} if first else {1: layer.embedding_dim}  # type: ignore[dict-item]


def _is_named(seen: Recording, caller: str, name: str) -> bool:
    """Return whether code that a forward pass may come to names a module, and each that it lies in below `caller`."""
    around = _around(name)
    outer: set[str] = set()
    for place, (owner, inner) in enumerate(zip(around, [*around[1:], name], strict=True)):
        kind = type(seen.model.get_submodule(owner))
        own = _names(kind, {"forward"} if owner in seen.handed else outer)
        outer |= own
        below = place >= around.index(caller) and kind not in _LISTS  # what is in a list is called by its number
        if below and inner.rpartition(".")[2] not in (own or outer) and _ANY_CHILD.isdisjoint(own):
            return False
    return True


def _names(kind: type[nn.Module], methods: Collection[str]) -> set[str]:
    """Return all names in some methods of a class, and in those methods of the same class that these name."""
    found, todo, done = set(), set(methods), set()
    while todo:
        method = todo.pop()
        done.add(method)
        for each in kind.__mro__[: kind.__mro__.index(nn.Module)]:
            value = vars(each).get(method)
            function = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if isinstance(code := getattr(function, "__code__", None), CodeType):
                names = set(_names_in(code))
                found |= names
                todo |= names - done
                if "super" not in names:
                    break  # what it overrides is not called
    return found


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _names_in(each)
