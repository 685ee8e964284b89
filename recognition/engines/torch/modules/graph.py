# SPDX-License-Identifier: Apache-2.0
"""A user's ``torch.nn.Module`` as a graph: so it trains, is saved, resumed, verified and exported as any network is.

``torch.export`` writes the module's operators down, and ``operators.py`` says them in ours. Parameters and
statistics keep their names in the module's ``state_dict``. First values are drawn from the run's seed, with the mean
and spread that the module gives its own.
"""
from __future__ import annotations

import json
from typing import Any

import numpy as np

from recognition.engines.torch.imports import torch
from recognition.engines.torch.modules.operators import TABLE, Call, Unknown
from recognition.engines.torch.network import Network
from recognition.errors import UserError
from recognition.networks import sym
from recognition.networks.graph import Graph
from recognition.networks.sym import Symbol

Tensors = dict[str, "torch.Tensor"]
DOES_NOT_LEARN = "does not learn, expected that of a batch norm's factors of 1 alone; the option freeze does it by name"
AGREEMENT = 1e-3  # of the largest feature, between the module and its graph on noise in float32


def module_graph(module: torch.nn.Module, image_shape: tuple[int, int, int], name: str) -> Graph:
    """The network of a module that maps pixels 0..255 (N, 3, H, W) RGB to the embedding: ``data`` to ``fc1_output``.

    :param image_shape: (3, H, W). ``name`` stands before messages.
    :raises UserError: if it has operators or tensors that a network of ours cannot have, or gives something else.
    """
    images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0)) * 255
    module = module.cpu().float()
    try:
        program = torch.export.export(module.train(), (images,), strict=False,
                                      dynamic_shapes=({0: torch.export.Dim("images", min=2)},))
    except Exception as error:  # of many types, and of the user's own code
        raise UserError(f"{name}: torch.export cannot write the module down: "
                        f"{' '.join(str(error).split())[:300]}") from error
    constants, symbols = {**program.state_dict, **program.constants}, sym.Variable("data")
    inputs = [symbols if spec.target is None else _stored(spec.target, constants[spec.target], name)
              for spec in program.graph_signature.input_specs]
    try:
        output = _Reader(program.graph_module, symbols).run(*inputs, enable_io_processing=False)
    except Unknown as error:
        raise UserError(f"{name}: found {error} in the module, which networks of ours do not have") from error
    if len(output) != 1 or not isinstance(output[0], Symbol):
        raise UserError(f"{name}: the module gives {len(output)} outputs, expected one tensor, the embedding (N, D)")
    graph = sym.identity(output[0], name="fc1").graph()
    if fixed := [key for key, attrs in graph.attributes().items() if "__fixed__" in attrs]:
        raise UserError(f"{name}: the module's parameter {fixed[0]} {DOES_NOT_LEARN}")
    _compare(module, graph, constants, images, name)
    return graph


def _stored(key: str, tensor: torch.Tensor, name: str) -> Any:
    """What stands for a parameter or a buffer: a variable, or the number that it holds; None for a count of batches."""
    values = tensor.detach()
    if not values.is_floating_point():
        return None
    first = float(values.flatten()[0])
    alike = bool((values == first).all())
    learns = isinstance(tensor, torch.nn.Parameter)
    if not learns and not key.endswith(("running_mean", "running_var")):
        if not alike:
            raise UserError(f"{name}: the module has the buffer {key} {tuple(tensor.shape)}, expected parameters, "
                            "batch norms' statistics, and buffers of one number")
        return first
    if learns and not tensor.requires_grad and not (alike and first == 1 and tensor.ndim == 1):
        raise UserError(f"{name}: the module's parameter {key} {DOES_NOT_LEARN}")
    start = ["Constant", {"value": first}] if alike else ["Normal", {"sigma": float(values.std())}]
    return sym.Variable(key, shape=tuple(tensor.shape), init=json.dumps(start),
                        **({} if tensor.requires_grad or not learns else {"fixed": 1}))


class _Reader(torch.fx.Interpreter):
    """Goes through an exported module with symbols in the place of tensors."""

    def __init__(self, module: Any, images: Symbol) -> None:
        super().__init__(module)
        self._images = images
        self._node: Any = None
        self.extra_traceback = False  # of errors

    def run_node(self, n: Any) -> Any:
        self._node = n
        result = super().run_node(n)
        if n.op == "call_function" and _name_of(n.target).endswith("_") and isinstance(n.args[0], torch.fx.Node):
            self.env[n.args[0]] = result  # computed in place: later readers of the input see the result
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        node, name = self._node, _name_of(target)
        if name == "getitem":
            return args[0][args[1]]
        if name in ("wrap_with_autocast", "wrap_with_set_grad_enabled"):  # mixed precision is an option of the run
            place = next(place for place, arg in enumerate(args) if isinstance(arg, torch.nn.Module))
            return type(self)(args[place], self._images).run(*args[place + 1 :], enable_io_processing=False)
        if not isinstance(_shape(node), tuple) or (args and args[0] is None):
            return None  # sizes, checks, counts of batches
        function = TABLE.get(name.rstrip("_") if name.rstrip("_") in TABLE else name)
        if function is None:
            raise Unknown(f"the operator {target}")
        inputs: list[Any] = []
        torch.fx.map_arg((node.args, node.kwargs), inputs.append)
        shapes = [shape for item in inputs if (shape := _shape(item)) is not None]
        try:
            return function(Call(shapes, _shape(node), self._images), *args, **kwargs)
        except TypeError:
            raise Unknown(f"the operator {target} with options that it mostly does not have") from None


def _name_of(target: Any) -> str:
    return str(getattr(target, "_opname", getattr(target, "__name__", target)))


def _shape(node: Any) -> Any:
    value = node.meta.get("val")
    value = value[0] if isinstance(value, (list, tuple)) and value else value
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _compare(module: torch.nn.Module, graph: Graph, constants: Tensors, images: torch.Tensor, name: str) -> None:
    """Check that the graph gives the module's features.

    :raises UserError: if it does not.
    """
    arrays = {key: tensor.detach().numpy() for key, tensor in constants.items()}
    with torch.inference_mode():
        expected, found = module.eval()(images), Network(graph, arrays, arrays, torch.device("cpu"))(images)
    difference = np.abs(expected.numpy() - found.numpy()).max() if expected.shape == found.shape else np.inf
    if not difference <= AGREEMENT * float(expected.abs().max()):
        raise UserError(f"{name}: the module gives {tuple(expected.shape)} features that differ from its graph's by "
                        f"{difference:.2g}, expected the same: does it depend on more than its input?")
