# SPDX-License-Identifier: Apache-2.0
"""Networks as expressions, in the words of ``mx.sym``: ``sym.Convolution(data, num_filter=64, kernel=(3, 3))``.

Every operator of the table is a function of this module, by all its names. Inputs are symbols, in order or by name;
those that are not given become variables ``<name>_weight`` and so on. Attributes are written as ``str`` writes them.
A node without a name gets one by its kind and a number that counts from the ``Variable`` that the network begins with.
"""
from __future__ import annotations

from collections import Counter
from typing import Any, Callable

from recognition.networks.graph import VARIABLE, Entry, Graph, GraphMaker, Node
from recognition.networks.operators import OPERATORS, Operator


class _Draft:
    """A node whose inputs are symbols."""

    def __init__(self, operator: Operator, name: str, attrs: dict[str, str], inputs: list[Symbol],
                 counts: Counter[str]) -> None:
        self.operator, self.name, self.attrs, self.inputs, self.counts = operator, name, attrs, inputs, counts


class Symbol:
    """An output of a node, from which further nodes can be made."""

    def __init__(self, draft: _Draft, output: int = 0) -> None:
        self._draft, self._output = draft, output

    def __getitem__(self, output: int) -> Symbol:
        """Another output of the same node."""
        return Symbol(self._draft, output)

    def __add__(self, other: Any) -> Symbol:
        return _arithmetic("_Plus", self, other)

    def __sub__(self, other: Any) -> Symbol:
        return _arithmetic("_Minus", self, other)

    def __rsub__(self, other: float) -> Symbol:
        return make("_RMinusScalar", self, scalar=other)

    def __mul__(self, other: Any) -> Symbol:
        return _arithmetic("_Mul", self, other)

    def __truediv__(self, other: Any) -> Symbol:
        return _arithmetic("_Div", self, other)

    __radd__, __rmul__ = __add__, __mul__

    def graph(self) -> Graph:
        """The network that ends here."""
        return group(self)


def group(*symbols: Symbol) -> Graph:
    """The network with these outputs."""
    maker, places = GraphMaker(), dict[int, int]()

    def entry(symbol: Symbol, state: bool = False) -> Entry:
        return Entry(places[id(symbol._draft)], symbol._output, int(state))

    stack = [symbol._draft for symbol in reversed(symbols)]
    while stack:
        draft = stack[-1]
        waiting = [item._draft for item in draft.inputs if id(item._draft) not in places]
        if id(draft) in places:
            stack.pop()
        elif waiting:
            stack += reversed(waiting)
        else:
            stack.pop()
            inputs = [entry(item, draft.operator.is_state(place)) for place, item in enumerate(draft.inputs)]
            places[id(draft)] = maker.append(Node(draft.operator, draft.name, draft.attrs, tuple(inputs))).node
    return maker.graph(entry(symbol) for symbol in symbols)


def Variable(name: str, **attrs: Any) -> Symbol:
    """An image, a parameter or a state; ``attrs`` become hints such as ``__shape__``, ``__init__``, ``__lr_mult__``."""
    hints = {f"__{key}__": str(value) for key, value in attrs.items()}
    return Symbol(_Draft(VARIABLE, name, hints, [], Counter()))


def make(function: str, *inputs: Symbol, name: str = "", **others: Any) -> Symbol:
    """A node of the operator that has the name ``function``.

    :raises ValueError: on an attribute that the operator does not have.
    """
    operator = OPERATORS[function]
    given = {key: other for key, other in others.items() if isinstance(other, Symbol)}
    attrs = {key: str(other) for key, other in others.items() if key not in given}
    counts = next(iter((*inputs, *given.values())))._draft.counts
    if not name:
        hint = function.lower()
        name = f"{hint}{counts[hint]}"
        counts[hint] += 1
    if operator.variadic:
        if "num_args" in operator.parameters:
            attrs["num_args"] = str(len(inputs))
        return Symbol(_Draft(operator, name, attrs, list(inputs), counts))
    names = operator.input_names(operator.values(attrs))
    given.update(zip(names, inputs))
    chosen = [given.pop(key) if key in given else Symbol(_Draft(VARIABLE, f"{name}_{key}", dict(attrs), [], Counter()))
              for key in names]
    if given or len(inputs) > len(names):
        raise ValueError(f"{function} takes the inputs {', '.join(names)}")
    for key, symbol in zip(names, chosen):
        if symbol._draft.operator is VARIABLE and key in operator.starts:
            symbol._draft.attrs.setdefault("__init__", operator.starts[key])
    return Symbol(_Draft(operator, name, attrs, chosen, counts))


def _arithmetic(function: str, left: Symbol, right: Any) -> Symbol:
    if isinstance(right, Symbol):
        return make(function, left, right)
    return make(f"{function}Scalar", left, scalar=right)


def __getattr__(name: str) -> Callable[..., Symbol]:
    if name not in OPERATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return lambda *inputs, **attrs: make(name, *inputs, **attrs)
