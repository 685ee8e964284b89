# SPDX-License-Identifier: Apache-2.0
"""A user's ``torch.nn.Module`` as a graph: so it trains, is saved, resumed, verified and exported as any network is.

``torch.export`` writes the module's operators down, and ``operators.py`` and its neighbours say them in ours.
Parameters and statistics keep their names in the module's ``state_dict``. First values are drawn from the run's seed,
with the mean and spread that the module gives its own. Other buffers are tables, see ``constants.py``.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from recognition.engines.torch.imports import torch
from recognition.engines.torch.modules.call import ARITHMETIC, Call, Unknown
from recognition.engines.torch.modules.compositions import COMPOSED, OF_TENSORS
from recognition.engines.torch.modules.constants import Tables, named
from recognition.engines.torch.modules.operators import TABLE
from recognition.engines.torch.network import Network
from recognition.errors import UserError
from recognition.networks import sym
from recognition.networks.graph import Graph
from recognition.networks.sym import Symbol

DOES_NOT_LEARN = "does not learn, expected that of a batch norm's factors of 1 alone; the option freeze does it by name"
OPERATORS = {**TABLE, **COMPOSED}
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
    names = [spec.target for spec in program.graph_signature.input_specs]
    inputs = [symbols if key is None else _stored(key, constants[key], symbols, name) for key in names]
    tables = Tables(symbols, {id(item): key for key, item in zip(names, inputs) if isinstance(item, torch.Tensor)})
    try:
        output = _Reader(program.graph_module, symbols, tables).run(*inputs, enable_io_processing=False)
    except Unknown as error:
        raise UserError(f"{name}: found {error} in the module, which networks of ours do not have") from error
    if len(output) != 1 or not isinstance(output[0], Symbol):
        raise UserError(f"{name}: the module gives {len(output)} outputs, expected one tensor, the embedding (N, D)")
    graph = sym.identity(output[0], name="fc1").graph()
    if fixed := [key for key, attrs in graph.attributes().items() if "__fixed__" in attrs]:
        raise UserError(f"{name}: the module's parameter {fixed[0]} {DOES_NOT_LEARN}")
    arrays = {key: tensor.detach().numpy() for key, tensor in constants.items()}
    _compare(module, graph, {**arrays, **tables.arrays}, images, name)
    return graph


def _stored(key: str, tensor: torch.Tensor, images: Symbol, name: str) -> Any:
    """The stand-in for a parameter or a statistic, a variable; for another buffer, its tensor; None for a count of
    batches."""
    values, learns = tensor.detach().clone(), isinstance(tensor, torch.nn.Parameter)
    if key.endswith("num_batches_tracked"):
        return None
    if not learns and not key.endswith(("running_mean", "running_var")):
        return values
    first = float(values.flatten()[0])
    alike = bool((values == first).all())
    if learns and not tensor.requires_grad and not (alike and first == 1 and tensor.ndim == 1):
        raise UserError(f"{name}: the module's parameter {key} {DOES_NOT_LEARN}")
    start = ["Constant", {"value": first}] if alike else ["Normal", {"sigma": float(values.std())}]
    return named(images, key, tensor.shape, start, **({} if tensor.requires_grad or not learns else {"fixed": 1}))


class _Reader(torch.fx.Interpreter):
    """Interpreter of an exported module, with symbols in the place of tensors. A tensor that depends on no parameter
    and no image is computed, and stays a constant."""

    def __init__(self, module: Any, images: Symbol, tables: Tables) -> None:
        super().__init__(module)
        self._images, self._tables = images, tables
        self._node: Any = None
        self._once: set[Any] = set()  # nodes that should be there for each image, and are the same for all
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
            return type(self)(args[place], self._images, self._tables).run(*args[place + 1 :],
                                                                           enable_io_processing=False)
        inputs: list[Any] = []
        torch.fx.map_arg((node.args, node.kwargs), inputs.append)
        found = [item for value in inputs for item in _items(self.env[value])]
        if not any(isinstance(item, Symbol) for item in found):  # without the number of images, a constant
            return self._computed(target, name, args, kwargs, any(item is None for item in found))
        if not isinstance(_shape(node), tuple) or (args and args[0] is None):
            return None  # sizes, checks, counts of batches
        name = name.rstrip("_") if name.rstrip("_") in OPERATORS else name
        if name not in OPERATORS:
            raise Unknown(f"the operator {target}")
        args, kwargs = torch.utils._pytree.tree_map_only(
            torch.Tensor, lambda tensor: self._constant(name, tensor), (args, kwargs))
        known = [item for item in inputs if _shape(item) is not None]
        shapes, out = [self._sizes(item) for item in known], _shape(node)
        ours = [size[:1] == (1,) for size, item in zip(shapes, known) if _shape(item)[:1] == out[:1] != (1,)]
        if ours and all(ours):
            self._once.add(node)
            out = (1, *out[1:])
        try:
            return OPERATORS[name](Call(shapes, out, self._images, self._tables), *args, **kwargs)
        except TypeError as error:
            raise Unknown(f"the operator {target} with options that it mostly does not have") from error

    def _sizes(self, item: Any) -> Any:
        value, shape = self.env[item], _shape(item)
        return tuple(value.shape) if isinstance(value, torch.Tensor) else (
            (1, *shape[1:]) if item in self._once else shape)

    def _computed(self, target: Any, name: str, args: Any, kwargs: Any, of_batch: bool) -> Any:
        """The result for constants. What has a size of the batch stands there once, and is broadcast."""
        shape = _shape(self._node)
        if name.startswith("_assert") or (of_batch and not shape):
            return None
        if name.startswith(("rand", "bernoulli", "empty")):
            raise Unknown(f"the operator {target} of no input")
        if of_batch:
            if all(isinstance(size, int) for size in shape) or not all(isinstance(size, int) for size in shape[1:]):
                raise Unknown(f"the operator {target} of the number of images")
            args = tuple([1 if size is None else size for size in arg] if isinstance(arg, (list, tuple)) else arg
                         for arg in args)
        return target(*args, **kwargs)

    def _constant(self, name: str, tensor: torch.Tensor) -> Any:
        """A constant as the operator ``name`` takes it."""
        alike = name in ARITHMETIC and bool((tensor == tensor.flatten()[0]).all())
        if alike and any(_shape(item) == _shape(self._node) for item in self._node.all_input_nodes
                         if isinstance(self.env[item], Symbol)):
            return float(tensor.flatten()[0])
        return tensor if name in OF_TENSORS else self._tables(tensor)


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _name_of(target: Any) -> str:
    return str(getattr(target, "_opname", getattr(target, "__name__", target)))


def _shape(node: Any) -> Any:
    value = node.meta.get("val")
    value = value[0] if isinstance(value, (list, tuple)) and value else value
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _compare(module: torch.nn.Module, graph: Graph, arrays: dict[str, np.ndarray], images: torch.Tensor,
             name: str) -> None:
    """Check that the graph gives the module's features.

    :raises UserError: if it does not.
    """
    with torch.inference_mode():
        expected, found = module.eval()(images), Network(graph, arrays, arrays, torch.device("cpu"))(images)
    difference = np.abs(expected.numpy() - found.numpy()).max() if expected.shape == found.shape else np.inf
    if not difference <= AGREEMENT * float(expected.abs().max()):
        raise UserError(f"{name}: the module gives {tuple(expected.shape)} features that differ from its graph's by "
                        f"{difference:.2g}, expected the same: does it depend on more than its input?")
