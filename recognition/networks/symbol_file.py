# SPDX-License-Identifier: Apache-2.0
"""MXNet's ``-symbol.json``, checked before an engine sees it.

MXNet's reader trusts the file: an operator ``Custom`` calls into Python, ``_Native`` and ``_NDArray`` take addresses of
memory from their attributes, a subgraph's operator may name a library, an input that points nowhere is read all the
same. So the graph is read here, everything in it is held against lists and bounds, and what MXNet gets is written anew
from what was checked: what two readers of JSON could understand differently does not reach it.
"""
from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recognition.errors import UserError
from recognition.io.checksums import check_sum
from recognition.io.files import reading, regular
from recognition.networks.full_precision import full_precision
from recognition.networks.graph import Graph
from recognition.networks.needed import needed
from recognition.networks.operators import OPERATORS
from recognition.networks.operators.operator import MOST_INPUTS

LAYER, OUTPUT = "fc1", "fc1_output"  # what the embedding is called in every checkpoint of the recipes

MOST_BYTES = 32 << 20
MOST_NODES = 50_000  # r200 has 3,000
MOST_OUTPUTS = 1024
MOST_NUMBER = 1 << 24  # of an attribute: channels, sides, groups
_MOST_TEXT = 256

Node = dict[str, Any]
_NEAREST = ("UpSampling", "sample_type", "nearest")  # the other kind divides by zero at some scales
# What is not the operator's business: hints for training, under names old and new. They are left out.
_HINT = re.compile(r"__\w*__|(?:\w+_)?(?:lr_mult|wd_mult|ctx_group|force_mirroring|mirror_stage)")
_KEPT_HINTS = frozenset(("__shape__", "__dtype__"))
_KEY = re.compile(r"\w{1,64}")
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?L?"
_ITEM = rf"(?:{_NUMBER}|None)"
_VALUE = re.compile(rf"(?:{_NUMBER}|[A-Za-z_]\w{{0,63}}|[(\[] *(?:{_ITEM}(?: *, *{_ITEM}){{0,31}} *,?)? *[)\]])")
_POSITIVE = frozenset(("num_filter", "num_hidden", "num_group", "num_groups", "num_outputs", "num_args", "kernel",
                       "stride", "dilate", "block_size", "scale", "nsize", "reps", "repeats"))
_SMALL = {"num_outputs": MOST_OUTPUTS, "num_args": MOST_INPUTS, "scale": 64, "block_size": 1024, "repeats": 1024,
          "reps": 1024, "nsize": 1024, "pad_width": 4096, "pad": 4096, "kernel": 4096, "stride": 4096, "dilate": 4096,
          "output_size": 4096, "height": 4096, "width": 4096, "adj": 4096, "target_shape": 4096}


def read_network(path: Path) -> Graph:
    """The graph of ``data`` to ``fc1_output`` in a ``-symbol.json``, in float32, whatever it computes beyond.

    The rest, a head and a loss for example, is left out before anything is judged.

    :raises UserError: if it cannot be read, is not made of the operators of such networks, has no such input or
        output, or is not what the checksum beside it is of.
    """
    check_sum(path)
    source = _parse(path)
    with _naming(path):
        _check_nodes(source)
        wanted = needed(source, LAYER)
        graph = Graph.from_dict(checked_graph(wanted)) if wanted else None
    if graph is None or OUTPUT not in graph.internals:
        raise _missing(path, source, "output", OUTPUT)
    if "data" not in graph.internals:
        raise _missing(path, source, "input", "data")
    return full_precision(graph, LAYER)


def _missing(path: Path, source: Node, place: str, wanted: str) -> UserError:
    last = source["nodes"][-1]
    name = last.get("name") if isinstance(last, dict) else last
    if isinstance(last, dict) and last.get("op") != "null":
        name = f"{name}_output"
    return UserError(f"{path}: found no {place} {wanted!r} (the last layer is {_shown(name)}), expected the network of "
                     "a face recognition checkpoint")


def read_symbol(path: Path) -> Graph:
    """The whole graph of a ``-symbol.json``, checked.

    :raises UserError: if the file is no such graph, or holds what networks of images have no use for.
    """
    source = _parse(path)
    with _naming(path):
        return Graph.from_dict(checked_graph(source))


def _parse(path: Path) -> Any:
    with reading(path), open(path, "rb", opener=regular) as file:
        data = file.read(MOST_BYTES + 1)
    with _naming(path):
        if len(data) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES >> 20} MB")
        return json.loads(data)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Context in which what is wrong with a graph becomes a UserError that names the file ``path``."""
    try:
        yield
    except RecursionError:
        reason = "it is nested too deep"
    except (ValueError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:300]
    else:
        return
    raise UserError(f"{path}: not a symbol that MXNet can be given: {reason}")


def _check_nodes(graph: Any) -> None:
    if not isinstance(graph, dict) or not isinstance(graph.get("nodes"), list):
        raise ValueError("found no list of nodes")
    if not 0 < len(graph["nodes"]) <= MOST_NODES:
        raise ValueError(f"found {len(graph['nodes'])} nodes, expected 1 to {MOST_NODES}")


def checked_graph(graph: Any) -> Node:
    """The graph with what was checked and nothing else.

    :raises ValueError: with a text that says what was found.
    """
    _check_nodes(graph)
    found = graph["nodes"]
    nodes: list[Node] = []
    outputs: list[int] = []
    is_variable: list[bool] = []
    names: set[str] = set()
    for place, node in enumerate(found):
        try:
            checked = _node(node, outputs, is_variable)
            if checked["name"] in names:
                raise ValueError("another node has the same name")
            names.add(checked["name"])
        except ValueError as error:
            name = node.get("name") if isinstance(node, dict) else None
            raise ValueError(f"node {place} ({_shown(name)}): {error}") from None
        nodes.append(checked)
        outputs.append(_outputs(checked))
        is_variable.append(checked["op"] == "null")
    _check_own(nodes)
    heads = _entries(graph.get("heads"), outputs)
    if not heads:
        raise ValueError("found no heads")
    version = _version(graph.get("attrs"))
    return {"nodes": nodes, "arg_nodes": [n for n, node in enumerate(nodes) if node["op"] == "null"], "heads": heads,
            **({"attrs": {"mxnet_version": ["int", version]}} if version else {})}


def _node(node: Any, outputs: list[int], is_variable: list[bool]) -> Node:
    if not isinstance(node, dict):
        raise ValueError(f"found {_shown(node)}, expected a node")
    op, name = node.get("op"), node.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= _MOST_TEXT or not name.isprintable():
        raise ValueError("its name is no printable text")
    operator = OPERATORS.get(op) if isinstance(op, str) else None
    if op != "null" and (operator is None or not operator.in_untrusted_files):
        raise ValueError(f"the operator {_shown(op)}, expected one of those that networks of images are made of")
    if "subgraphs" in node:
        raise ValueError("it has subgraphs")
    inputs = _entries(node.get("inputs", []), outputs)
    fewest, most = (operator.fewest, operator.most) if operator else (0, 0)
    if not fewest <= len(inputs) <= most:
        raise ValueError(f"{op} has {len(inputs)} inputs, expected {fewest} to {most}")
    if operator and operator.own_inputs and any(not is_variable[entry[0]] for entry in inputs[1:]):
        raise ValueError(f"{op} has statistics or factors that are no variables")
    attrs = _attributes(node)
    if op == _NEAREST[0] and attrs.get(_NEAREST[1]) != _NEAREST[2]:
        raise ValueError(f"{op} has the {_NEAREST[1]} {attrs.get(_NEAREST[1])}, expected {_NEAREST[2]}")
    if "num_args" in attrs and attrs["num_args"] != str(len(inputs)):
        raise ValueError(f"num_args {attrs['num_args']} with {len(inputs)} inputs")
    return {"op": op, "name": name, **({"attrs": attrs} if attrs else {}), "inputs": inputs}


def _check_own(nodes: list[Node]) -> None:
    """Check that no other node uses a layer's states or factors: MXNet writes to states, and takes factors to have the
    shape that the layer needs without comparing."""
    owner: dict[int, int] = {}
    for place, node in enumerate(nodes):
        for entry in node["inputs"][1:] if _has_own(node) else ():
            owner.setdefault(entry[0], place)
    for place, node in enumerate(nodes):
        for number, entry in enumerate(node["inputs"]):
            other = nodes[owner.get(entry[0], place)]
            if other is not node or (entry[0] in owner and [at for at, *_ in node["inputs"]].index(entry[0]) != number):
                raise ValueError(f"{_shown(nodes[entry[0]]['name'])} is a factor or a statistic of "
                                 f"{_shown(other['name'])} and something else, too")


def _has_own(node: Node) -> bool:
    return node["op"] != "null" and OPERATORS[node["op"]].own_inputs


def _entries(found: Any, outputs: list[int]) -> list[list[int]]:
    """Outputs of earlier nodes as (node, output, version); old files lack the version, which is 0 then."""
    if not isinstance(found, list) or len(found) > MOST_NODES:
        raise ValueError(f"found {_shown(found)}, expected a list of inputs or heads")
    entries = []
    for entry in found:
        if not (isinstance(entry, list) and len(entry) in (2, 3) and all(type(number) is int for number in entry)
                and 0 <= entry[0] < len(outputs) and 0 <= entry[1] < outputs[entry[0]] and entry[2:] in ([], [0], [1])):
            raise ValueError(f"found {_shown(entry)}, expected [a node before this one, one of its outputs, 0]")
        entries.append([*entry, 0][:3])
    return entries


def _attributes(node: Node) -> dict[str, str]:
    """The operator's attributes, which files of older versions have under other names."""
    attrs: dict[str, str] = {}
    for kind in ("param", "attr", "attrs"):
        group = node.get(kind, {})
        if not isinstance(group, dict) or len(group) > 64:
            raise ValueError(f"its {kind} is {_shown(group)}, expected a few attributes")
        for key, value in group.items():
            if not (_KEY.fullmatch(key) and isinstance(value, str)):
                raise ValueError(f"the attribute {_shown(key)} is {_shown(value)}, expected a short text")
            if _HINT.fullmatch(key) and key not in _KEPT_HINTS:
                continue  # of any length: the first values of a table
            if len(value) > 4096:
                raise ValueError(f"the attribute {_shown(key)} is {_shown(value)}, expected a short text")
            if node["op"] == "null" and key not in _KEPT_HINTS:
                continue
            _check_value(key, value)
            if attrs.setdefault(key, value) != value:
                raise ValueError(f"the attribute {key} stands there twice")
    return attrs


def _check_value(key: str, value: str) -> None:
    if not _VALUE.fullmatch(value):
        raise ValueError(f"the attribute {key} is {_shown(value)}, expected a number, a word or a tuple of numbers")
    for text in re.findall(r"(?<![\w.])" + _NUMBER, value):
        number = float(text.rstrip("L"))
        if "." not in text and "e" not in text.lower() and abs(number) > _SMALL.get(key, MOST_NUMBER):
            raise ValueError(f"the attribute {key} is {_shown(value)}, expected numbers up to "
                             f"{_SMALL.get(key, MOST_NUMBER)}")
        if key in _POSITIVE and number < 1:
            raise ValueError(f"the attribute {key} is {_shown(value)}, expected numbers above 0")


def _outputs(node: Node) -> int:
    """The number of a node's outputs that others may use."""
    operator = OPERATORS.get(node["op"])
    if operator is None or "num_outputs" not in operator.parameters:
        return 1
    try:
        return operator.outputs(operator.values(node.get("attrs", {})))
    except ValueError as error:
        raise ValueError(f"node {_shown(node['name'])}: {error}") from error


def _version(attrs: Any) -> int:
    """MXNet's version, 10901 for 1.9.1; 0 where the file has none, as before 0.9."""
    found = attrs.get("mxnet_version") if isinstance(attrs, dict) else None
    if found is None:
        return 0
    if not (isinstance(found, list) and len(found) == 2 and found[0] == "int" and type(found[1]) is int
            and 0 < found[1] < 10 ** 6):
        raise ValueError(f"the version {_shown(found)}")
    return found[1]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
