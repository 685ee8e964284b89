# SPDX-License-Identifier: Apache-2.0
"""A network as an ONNX graph in the making: tensors, their shapes, their values, and the nodes so far.

MXNet 1.9.1's own exporter, ``mx.onnx``, imports ``onnx.mapping`` and other names that releases of the onnx package have
not had for years, and fixes the batch; so this is our own. The table of operators says what each becomes.
"""
from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

import recognition
from recognition.errors import UserError
from recognition.networks.fold import fold_batch_norms
from recognition.networks.graph import Entry, Graph, Node
from recognition.networks.operators import OPERATORS
from recognition.networks.operators.onnx import BATCH
from recognition.networks.shapes import all_shapes

OPSET = 13  # of 2020: every runtime in use reads it
IR_VERSION = 7  # the file format that belongs to it
INPUT, OUTPUT = "data", "fc1"


def import_onnx() -> ModuleType:
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise UserError(f"{error}: pip install -e '.[onnx]' brings the onnx package and onnxruntime") from None
    return onnx


def to_onnx(graph: Graph, arguments: dict[str, np.ndarray], auxiliary: dict[str, np.ndarray],
            image_shape: tuple[int, int, int] = (3, 112, 112), float16: bool = False, fold: bool = True) -> Any:
    """The ``onnx.ModelProto`` of a network: ``data`` float32 (batch, 3, H, W) to ``fc1`` float32 (batch, dim).

    The batch may have any size. With ``float16`` parameters and all between are float16; ``fold`` folds batch norms.

    :raises UserError: if the onnx package is missing, or an operator or a use of it cannot be exported.
    """
    if fold:
        graph, arguments, auxiliary = fold_batch_norms(graph, arguments, auxiliary)
    return OnnxGraph(graph, {**arguments, **auxiliary}, image_shape, float16).model()


class OnnxGraph:
    """What the operators write to."""

    def __init__(self, graph: Graph, values: Mapping[str, np.ndarray], image_shape: tuple[int, int, int],
                 float16: bool) -> None:
        self.onnx = import_onnx()
        self.dtype = np.dtype(np.float16 if float16 else np.float32)
        self.nodes: list[Any] = []
        self._values: dict[str, np.ndarray] = dict(values)
        self._source, self._head = graph.nodes, graph.heads[0]
        self._shapes = all_shapes(graph, (BATCH, *image_shape))
        self._at = 0  # the place of the node that is written
        self._places: dict[tuple[int, int], str] = {}  # outputs of the graph's nodes to tensors
        self._taken: set[str] = {INPUT, OUTPUT, *values}

    def name(self, wanted: str) -> str:
        """``wanted``, or with a number behind it if there is such a tensor."""
        found, count = wanted, 0
        while found in self._taken:
            found, count = f"{wanted}_{count}", count + 1
        self._taken.add(found)
        return found

    def add(self, op: str, name: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Append an ONNX node; returns its outputs."""
        node = self.name(name)
        names = [node] if outputs == 1 else [self.name(f"{name}_output{i}") for i in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(op, inputs, names, name=node, **attributes))
        return names

    def constant(self, name: str, value: Any, dtype: Any = None) -> str:
        """A tensor of fixed values, float unless ``dtype`` says int64; returns its name."""
        found = self.name(name)
        self._values[found] = np.asarray(value, dtype or np.float64)
        return found

    def value(self, name: str) -> np.ndarray:
        """The values of a parameter, as float64 ``(...)``."""
        if name not in self._values:
            raise UserError(f"{name}: is computed by the network, expected a parameter there: cannot be exported")
        return self._values[name].astype(np.float64)

    def shape(self, node: Node, which: int | None = None) -> tuple[int, ...]:
        """The shape of an input of a node, or of its first output, for :data:`BATCH` images."""
        entry = Entry(self._at) if which is None else node.inputs[which]
        return self._shapes[entry.node][entry.output]

    def model(self) -> Any:
        """Write all nodes and return the ``onnx.ModelProto``.

        :raises UserError: if an operator cannot be exported; it names the operator and the layer.
        """
        start = INPUT
        if self.dtype == np.float16:
            (start,) = self.add("Cast", "data_float16", [INPUT], to=self.onnx.TensorProto.FLOAT16)
        for number, node in enumerate(self._source):
            if node.is_variable:
                self._places[number, 0] = start if node.name == INPUT else node.name
                continue
            if node.operator.onnx is None:
                known = sorted({operator.name for operator in OPERATORS.values() if operator.onnx})
                raise UserError(f"layer {node.name}: the operator {node.op} cannot be exported, expected one of "
                                f"{', '.join(known)}")
            self._at = number
            outputs = node.operator.onnx(self, node, [self._places[entry[:2]] for entry in node.inputs])
            self._places.update({(number, output): name for output, name in enumerate(outputs)})
        last = self._places[self._head[:2]]
        self.nodes.append(self.onnx.helper.make_node("Cast", [last], [OUTPUT], name="to_float32",
                                                     to=self.onnx.TensorProto.FLOAT))
        return self._finish()

    def _finish(self) -> Any:
        helper, onnx = self.onnx.helper, self.onnx
        used = dict.fromkeys(name for node in self.nodes for name in node.input if name in self._values)
        initialisers = [onnx.numpy_helper.from_array(self._stored(self._values[name]), name) for name in used]
        data = next(shapes[0] for node, shapes in zip(self._source, self._shapes) if node.name == INPUT)
        shapes = {INPUT: data, OUTPUT: self._shapes[self._head.node][self._head.output]}
        ends = {name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", *shape[1:]])
                for name, shape in shapes.items()}
        graph = helper.make_graph(self.nodes, "backbone", [ends[INPUT]], [ends[OUTPUT]], initialisers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
                                  producer_name="face-recognition-trainer", producer_version=recognition.__version__)
        model.doc_string = ("data: aligned faces, RGB pixels 0 to 255, (batch, 3, H, W); the network scales them. "
                            "fc1: embeddings, not normalised.")
        onnx.checker.check_model(model)
        return model

    def _stored(self, value: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(value if value.dtype == np.int64 else value.astype(self.dtype))
