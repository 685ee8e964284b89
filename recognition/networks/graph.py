# SPDX-License-Identifier: Apache-2.0
"""A network as a graph: operators with names and attributes, each after what it reads, and the outputs.

Graphs do not change: a pass makes a new one. The JSON is that of MXNet, byte for byte what MXNet 1.9.1 writes.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Callable, NamedTuple, Optional

from recognition.networks.operators import OPERATORS, Operator
from recognition.networks.operators.operator import Values, same, written_shape

MXNET_VERSION = 10901  # 1.9.1, whose form this is
INLINE_NUMBERS = 10  # numbers of a list that MXNet writes in one line
VARIABLE = Operator("null", same, ())
OLD_INPUTS = 900  # MXNet's version before which files left out inputs
OLD_STARTS, OLD_AXES = 904, 905  # before which states had no ``__init__``, and argmax's axis -1 meant all


class Entry(NamedTuple):
    """An output of a node: the node's place in the graph, the output's number, and MXNet's version (1: a state)."""

    node: int
    output: int = 0
    version: int = 0


@dataclass(frozen=True)
class Node:
    """An operator in a graph, or a variable: an image, a parameter or a state."""

    operator: Operator
    name: str
    attrs: Mapping[str, str]
    inputs: tuple[Entry, ...] = ()

    @property
    def op(self) -> str:
        return self.operator.name

    @property
    def is_variable(self) -> bool:
        return self.operator is VARIABLE

    @cached_property
    def values(self) -> Values:
        """The attributes as Python values, with the operator's defaults; of a variable the shape that it says.

        :raises ValueError: if one is not known, missing or unreadable.
        """
        return written_shape(self.attrs) if self.is_variable else self.operator.values(self.attrs)

    def outputs(self) -> list[str]:
        """Names of the outputs that a graph lists."""
        if self.is_variable:
            return [self.name]
        return [self.output_name(output) for output in range(self.operator.shown(self.values))]

    def output_name(self, output: int) -> str:
        return self.name if self.is_variable else f"{self.name}_{self.operator.output_name(self.values, output)}"


class Graph:
    """Nodes in the order in which they are computed, and the outputs that the network gives."""

    def __init__(self, nodes: Sequence[Node], heads: Iterable[Entry]) -> None:
        """:param nodes: each after its inputs; those that no head depends on are left out, and the others are put into
            MXNet's order: an input's nodes before those of the next input.
        """
        wanted = [Entry(*head) for head in heads]
        order = _post_order(nodes, [head.node for head in wanted])
        places = {old: new for new, old in enumerate(order)}
        self.nodes = [Node(nodes[old].operator, nodes[old].name, nodes[old].attrs,
                           tuple(entry._replace(node=places[entry.node]) for entry in nodes[old].inputs))
                      for old in order]
        self.heads = [head._replace(node=places[head.node]) for head in wanted]

    @classmethod
    def from_dict(cls, source: Mapping[str, Any], operators: Mapping[str, Operator] = OPERATORS) -> Graph:
        """The graph that MXNet 1.9.1 makes of parsed JSON, also of that of older versions.

        :raises ValueError: if an operator is not in ``operators``, or an attribute is none of it.
        """
        maker, places = GraphMaker(), list[int]()
        version = source.get("attrs", {}).get("mxnet_version", ("int", 0))[1]
        for node in source["nodes"]:
            op, attrs = node["op"], {**node.get("param", {}), **node.get("attr", {}), **node.get("attrs", {})}
            if "subgraphs" in node:
                raise ValueError(f"node {node['name']!r}: found subgraphs, expected none")
            if op != "null" and op not in operators:
                raise ValueError(f"node {node['name']!r}: found the operator {op!r}, which is not known")
            operator = VARIABLE if op == "null" else operators[op]
            if version < OLD_AXES and operator.name in ("argmax", "argmin") and attrs.get("axis") == "-1":
                del attrs["axis"]
            inputs = [Entry(places[entry[0]], *entry[1:]) for entry in node["inputs"]]
            made = Node(operator, node["name"], attrs, tuple(inputs))
            if version < OLD_INPUTS and not made.is_variable and not operator.variadic:
                missing = operator.input_names(made.values)[len(inputs) :]
                inputs += [maker.append(Node(VARIABLE, f"{made.name}_{name}", attrs)) for name in missing]
                made = Node(operator, made.name, attrs, tuple(inputs))
            expected = operator.input_names(made.values)
            if not made.is_variable and not operator.variadic and len(inputs) != len(expected):
                raise ValueError(f"node {made.name!r}: {made.op} has {len(inputs)} inputs, expected {len(expected)}: "
                                 f"{', '.join(expected)}")
            if version < OLD_STARTS:
                maker.mark_starts(made)
            places.append(maker.append(made).node)
        return maker.graph(Entry(places[head[0]], *head[1:]) for head in source["heads"])

    def only_readers(self) -> dict[int, int]:
        """For each node that one input alone reads: the place of that input's node."""
        reads = [(entry.node, place) for place, node in enumerate(self.nodes) for entry in node.inputs]
        uses = Counter(read for read, _ in reads)
        return {read: place for read, place in reads if uses[read] == 1}

    def to_json(self) -> str:
        """The JSON that MXNet's ``tojson`` writes."""
        rows = [0]
        for node in self.nodes:
            rows.append(rows[-1] + (1 if node.is_variable else node.operator.outputs(node.values)))
        variables = [place for place, node in enumerate(self.nodes) if node.is_variable]
        parts = {"nodes": _lines(map(_node_json, self.nodes), 2), "arg_nodes": _numbers(variables),
                 "node_row_ptr": _numbers(rows), "heads": _entries(self.heads, 2),
                 "attrs": f'{{"mxnet_version": ["int", {MXNET_VERSION}]}}'}
        return _object(parts, 0)

    @cached_property
    def _states(self) -> set[int]:
        """The variables that operators change."""
        return {entry.node for node in self.nodes for place, entry in enumerate(node.inputs)
                if node.operator.is_state(place, entry.version)}

    def list_inputs(self) -> list[str]:
        """Names of all variables."""
        return [node.name for node in self.nodes if node.is_variable]

    def list_arguments(self) -> list[str]:
        """Names of the variables that are no states: images, parameters."""
        return [node.name for place, node in enumerate(self.nodes) if node.is_variable and place not in self._states]

    def list_auxiliary_states(self) -> list[str]:
        return [self.nodes[place].name for place in sorted(self._states)]

    def list_outputs(self) -> list[str]:
        return [self.nodes[head.node].output_name(head.output) for head in self.heads]

    @cached_property
    def internals(self) -> dict[str, Entry]:
        """All outputs that operators and variables list, by name; the last one of a name."""
        return {name: Entry(place, output) for place, node in enumerate(self.nodes)
                for output, name in enumerate(node.outputs())}

    def attributes(self) -> dict[str, Mapping[str, str]]:
        """The attributes of each node that has some, by its name."""
        return {node.name: node.attrs for node in self.nodes if node.attrs}

    def places(self) -> frozenset[str]:
        """Names of the variables that the places of a ``take`` are made of: 16 bits do not hold all whole numbers."""
        wanted = {node.inputs[1].node for node in self.nodes if node.op == "take"}
        for place in range(len(self.nodes) - 1, -1, -1):
            if place in wanted:
                wanted |= {entry.node for entry in self.nodes[place].inputs}
        return frozenset(self.nodes[place].name for place in wanted if self.nodes[place].is_variable)

    def tables(self) -> frozenset[str]:
        """Names of the variables that no update moves: those whose ``__lr_mult__`` is 0."""
        return frozenset(node.name for node in self.nodes
                         if node.is_variable and node.attrs.get("__lr_mult__") in ("0", "0.0"))

    def cut(self, output: str) -> Graph:
        """The part of the graph that computes only the output of this name.

        :raises KeyError: if there is none.
        """
        return Graph(self.nodes, [self.internals[output]])


class GraphMaker:
    """A graph in the making: nodes, each after its inputs."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def add(self, op: str, name: str, *inputs: Entry, **attrs: Any) -> Entry:
        """Append an operator of the table; returns its first output."""
        return self.append(Node(OPERATORS[op], name, {key: str(value) for key, value in attrs.items()}, inputs))

    def append(self, node: Node, inputs: Iterable[Entry] | None = None) -> Entry:
        """Append a node, with other ``inputs`` if they are given; returns its first output."""
        self.nodes.append(node if inputs is None else Node(node.operator, node.name, node.attrs, tuple(inputs)))
        return Entry(len(self.nodes) - 1)

    def mark(self, entry: Entry, **attrs: str) -> None:
        """Give a node further attributes."""
        node = self.nodes[entry.node]
        self.nodes[entry.node] = Node(node.operator, node.name, {**node.attrs, **attrs}, node.inputs)

    def mark_starts(self, node: Node) -> None:
        """Give the variables that ``node`` reads the ``__init__`` that its operator says, unless they have one."""
        starts = node.operator.starts
        for name, entry in zip(node.operator.input_names(node.values) if starts else (), node.inputs):
            if name in starts and self.nodes[entry.node].is_variable:
                self.mark(entry, **{"__init__": starts[name], **self.nodes[entry.node].attrs})

    def graph(self, heads: Iterable[Entry]) -> Graph:
        return Graph(self.nodes, heads)


def with_starts(graph: Graph) -> Graph:
    """The graph with ``__init__`` on the parameters and states whose operators say what they start from, as MXNet
    writes it: PReLU's slope 0.25, moving variances 1. A file that was checked has lost it."""
    maker = GraphMaker()
    for node in graph.nodes:
        maker.append(node)
        maker.mark_starts(node)
    return maker.graph(graph.heads)


# From a node and its inputs in the new graph: the output that takes the place of its only one, or None to keep it.
Rule = Callable[[GraphMaker, Node, list[Entry]], Optional[Entry]]


def rewrite(graph: Graph, rules: Mapping[str, Rule]) -> Graph:
    """A graph in which each node whose operator has a rule is replaced by what the rule adds.

    Names of variables and outputs stay as they are, and so does the order of arguments and states.
    """
    maker, places = GraphMaker(), list[Entry]()

    def moved(entry: Entry) -> Entry:
        place = places[entry.node]
        return Entry(place.node, place.output + entry.output, entry.version)

    for node in graph.nodes:
        inputs = [moved(entry) for entry in node.inputs]
        rule = rules.get(node.op)
        replaced = rule(maker, node, inputs) if rule else None
        places.append(replaced or maker.append(node, inputs))
    return maker.graph(moved(head) for head in graph.heads)


def _post_order(nodes: Sequence[Node], heads: Iterable[int]) -> list[int]:
    """Places of the nodes that the heads depend on, those of the first input first."""
    order: list[int] = []
    seen: set[int] = set()
    for head in heads:
        stack = [(head, iter(nodes[head].inputs))] if head not in seen else []
        seen.add(head)
        while stack:
            place, inputs = stack[-1]
            entry = next((entry for entry in inputs if entry.node not in seen), None)
            if entry is None:
                order.append(place)
                stack.pop()
            else:
                seen.add(entry.node)
                stack.append((entry.node, iter(nodes[entry.node].inputs)))
    return order


# MXNet's JSON: two spaces a level, a blank behind commas, a list of more than INLINE_NUMBERS numbers with one a line.


def _node_json(node: Node) -> str:
    parts = {"op": _text(node.op), "name": _text(node.name)}
    if node.attrs:
        parts["attrs"] = _object({key: _text(node.attrs[key]) for key in sorted(node.attrs)}, 6)
    return _object({**parts, "inputs": _entries(node.inputs, 6)}, 4)


def _object(parts: Mapping[str, str], indent: int) -> str:
    items = [f"{_text(key)}: {value}" for key, value in parts.items()]
    return "{" + items[0] + "}" if len(items) == 1 else _lines(items, indent, "{}")


def _entries(entries: Sequence[Entry], indent: int) -> str:
    return _list([f"[{', '.join(map(str, entry))}]" for entry in entries], indent)


def _numbers(numbers: Sequence[int]) -> str:
    return _list(list(map(str, numbers)), 2)


def _list(items: Sequence[str], indent: int) -> str:
    return _lines(items, indent) if len(items) > INLINE_NUMBERS else f"[{', '.join(items)}]"


def _lines(items: Iterable[str], indent: int, ends: str = "[]") -> str:
    separator = "\n" + " " * (indent + 2)
    return ends[0] + separator + f", {separator}".join(items) + "\n" + " " * indent + ends[1]


_ESCAPES = str.maketrans({"\r": "\\r", "\n": "\\n", "\\": "\\\\", "\t": "\\t", '"': '\\"'})


def _text(value: str) -> str:
    return f'"{value.translate(_ESCAPES)}"'
