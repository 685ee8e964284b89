# SPDX-License-Identifier: Apache-2.0
"""Networks as expressions, in the words of ``mx.sym``: ``sym.Convolution(data, num_filter=64, kernel=(3, 3))``.

Every operator of the table is a function of this module, by all its names. Inputs are symbols, in order or by name;
those that are not given become variables ``<name>_weight`` and so on. Attributes are written as ``str`` writes them;
they may stand behind the inputs in the table's order, which is MXNet's.
A node without a name gets one by its kind and a number that counts from the ``Variable`` that the network begins with.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Callable

from recognition.networks.graph import VARIABLE, Entry, Graph, GraphMaker, Node
from recognition.networks.operators import OPERATORS, Operator
from recognition.networks.shapes import Shape, all_shapes

METHODS = frozenset((  # of MXNet's symbols, those that are operators of the table
    "abs", "argmax", "argmin", "broadcast_axes", "broadcast_like", "broadcast_to", "ceil", "clip", "depth_to_space",
    "exp", "expand_dims", "flatten", "flip", "floor", "log", "log_softmax", "max", "mean", "min", "norm",
    "ones_like", "pad", "prod", "reciprocal", "relu", "repeat", "reshape", "reshape_like", "round", "rsqrt",
    "sigmoid", "sign", "slice", "slice_axis", "slice_like", "softmax", "space_to_depth", "split", "sqrt", "square",
    "squeeze", "sum", "swapaxes", "take", "tanh", "tile", "transpose", "zeros_like"))
LISTS = ("list_arguments", "list_auxiliary_states", "list_inputs", "list_outputs")
HIDDEN = ("ctx_group", "force_mirroring", "lr_mult", "mirror_stage", "profiler_scope", "wd_mult")  # written as __KEY__


class _Draft:
    """A node whose inputs are symbols."""

    def __init__(self, operator: Operator, name: str, attrs: dict[str, str], inputs: list[Symbol],
                 counts: Counter[str]) -> None:
        self.operator, self.name, self.attrs, self.inputs, self.counts = operator, name, attrs, inputs, counts


class Symbol:
    """A node, or one output of it, from which further nodes can be made."""

    def __init__(self, draft: _Draft, output: int | None = None) -> None:
        self._draft, self._output = draft, output

    def __getitem__(self, output: int | str) -> Symbol:
        """An output of the node, by number or name."""
        names = self._outputs()
        place = names.index(output) if isinstance(output, str) and output in names else output
        if place not in range(len(names)):
            raise IndexError(f"{self.name}: found the output {output!r}, expected 0 to {len(names) - 1}")
        return Symbol(self._draft, int(place)) if self._output is None else self

    def __len__(self) -> int:
        return len(self._outputs())

    def __iter__(self) -> Iterator[Symbol]:
        return (self[output] for output in range(len(self)))

    def __bool__(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        """MXNet's methods: operators, and lists of names of the network that ends here."""
        if name in METHODS:
            return partial(make, name, self)
        if name in LISTS:
            return getattr(self.graph(), name)
        raise AttributeError(f"a symbol has no {name} here, but {', '.join(sorted({*METHODS, *LISTS}))}")

    @property
    def name(self) -> str:
        return self._draft.name

    def _outputs(self) -> list[str]:
        """The names of the outputs."""
        names = Node(self._draft.operator, self._draft.name, self._draft.attrs).outputs()
        return names if self._output is None else [names[self._output]]

    def attr(self, key: str) -> str | None:
        """An attribute's text, or None."""
        return self._draft.attrs.get(f"__{key}__" if key in HIDDEN else key)

    def list_attr(self) -> dict[str, str]:
        return dict(self._draft.attrs)

    def _set_attr(self, **attrs: Any) -> None:
        self._draft.attrs.update(_written(attrs))
        self._draft.operator.values(self._draft.attrs)  # all are known

    def infer_shape(self, data: Shape) -> tuple[list[Shape], list[Shape], list[Shape]]:
        """The shapes of arguments, outputs and auxiliary states for ``data`` (N, 3, H, W)."""
        graph = self.graph()
        found = all_shapes(graph, tuple(data))
        by_name = {node.name: shapes[0] for node, shapes in zip(graph.nodes, found) if node.is_variable}
        return ([by_name[name] for name in graph.list_arguments()], [found[at.node][at.output] for at in graph.heads],
                [by_name[name] for name in graph.list_auxiliary_states()])

    def astype(self, dtype: Any) -> Symbol:
        return make("cast", self, dtype=dtype)

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

    def __rtruediv__(self, other: float) -> Symbol:
        return make("_RDivScalar", self, scalar=other)

    def __pow__(self, other: Any) -> Symbol:
        return _arithmetic("_Power", self, other)

    def __rpow__(self, other: float) -> Symbol:
        return make("_rpower_scalar", self, scalar=other)

    def __mod__(self, other: float) -> Symbol:
        return _arithmetic("_Mod", self, other)

    def __gt__(self, other: float) -> Symbol:
        return make("_greater_scalar", self, scalar=other)

    def __lt__(self, other: float) -> Symbol:
        return make("_lesser_scalar", self, scalar=other)

    def __neg__(self) -> Symbol:
        return self * -1.0

    def __abs__(self) -> Symbol:
        return make("abs", self)

    __radd__, __rmul__ = __add__, __mul__

    def graph(self) -> Graph:
        """The network that ends here."""
        return group(self)


def group(*symbols: Symbol) -> Graph:
    """The network with these outputs."""
    maker, places = GraphMaker(), dict[int, int]()

    def entry(symbol: Symbol, state: bool = False) -> Entry:
        return Entry(places[id(symbol._draft)], symbol._output or 0, int(state))

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


def make(function: str, *inputs: Any, name: str | None = None, attr: Mapping[str, Any] | None = None,
         **others: Any) -> Symbol:
    """A node of the operator that has the name ``function``.

    :param inputs: symbols, then attributes; ``attr``: hints, such as ``mirror_stage``.
    :raises ValueError: on an operator that is not known, or an attribute or an input that it does not have.
    """
    if function not in OPERATORS:
        raise ValueError(f"found the operator {function}, expected one that networks of ours have")
    operator = OPERATORS[function]
    if not operator.variadic:
        order = (*operator.inputs, *operator.states, *operator.parameters)
        if len(inputs) > len(order):
            raise ValueError(f"{function} takes the inputs {', '.join(order)}")
        others, inputs = {**dict(zip(order, inputs)), **others}, ()
    given = {key: other for key, other in others.items() if isinstance(other, Symbol)}
    nothing = [key for key in (*operator.inputs, *operator.states) if key in others and others[key] is None]
    attrs = {key: str(other) for key, other in others.items() if key not in given and key not in nothing}
    attrs.update(_written(attr or {}))
    counts = next(iter((*inputs, *given.values())))._draft.counts
    if not name:
        hint = function.removeprefix("_contrib_").lower()
        name = f"{hint}{counts[hint]}"
        counts[hint] += 1
    if operator.variadic:
        if "num_args" in operator.parameters:
            attrs["num_args"] = str(len(inputs))
        return Symbol(_Draft(operator, name, attrs, list(inputs), counts))
    names = operator.input_names(operator.values(attrs))
    chosen = [given.pop(key) if key in given else Symbol(_Draft(VARIABLE, f"{name}_{key}", dict(attrs), [], Counter()))
              for key in names]
    if given:
        raise ValueError(f"{function} takes the inputs {', '.join(names)}")
    for key, symbol in zip(names, chosen):
        if symbol._draft.operator is VARIABLE and key in operator.starts:
            symbol._draft.attrs.setdefault("__init__", operator.starts[key])
    return Symbol(_Draft(operator, name, attrs, chosen, counts))


def _written(attrs: Mapping[str, Any]) -> dict[str, str]:
    """Hints as MXNet writes them."""
    return {f"__{key}__" if key in HIDDEN else key: str(value) for key, value in attrs.items()}


def _arithmetic(function: str, left: Symbol, right: Any) -> Symbol:
    if isinstance(right, Symbol):
        return make(function, left, right)
    return make(f"{function}Scalar", left, scalar=right)


def __getattr__(name: str) -> Callable[..., Symbol]:
    if name not in OPERATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return lambda *inputs, **attrs: make(name, *inputs, **attrs)
