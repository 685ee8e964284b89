# SPDX-License-Identifier: Apache-2.0
"""A model of the package timm, which ``net_name`` names: ``timm:resnet18``. It becomes a graph, as a user's own module.

The model's classifier is the embedding. Pixels are scaled to -1..1 in front of it. The key ``timm_options`` of
config.py is a dictionary of what else ``timm.create_model`` is told, such as ``img_size``.
"""
from __future__ import annotations

import importlib
from typing import Any

from recognition.config.user_code import TIMM
from recognition.engines.torch.imports import torch
from recognition.engines.torch.modules.graph import module_graph
from recognition.errors import UserError
from recognition.networks.graph import Graph

OPTIONS = "timm_options"


def timm_graph(config: Any) -> Graph:
    """The graph of the model, ``data`` to ``fc1_output``, its arrays by their names in the model's ``state_dict``.

    :raises UserError: if timm is not installed, has no such model, or the model is no network that we can have.
    """
    name, options = f"net_name {config.net_name}", dict(config.own_keys).get(OPTIONS, {})
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise UserError(f"{name}: {error}, expected the package: pip install timm") from error
    if not isinstance(options, dict):
        raise UserError(f"{OPTIONS}: found {options!r}, expected a dictionary, such as dict(img_size=112)")
    height, width, channels = config.image_shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # all processes, and a run that goes on, see the same spread of first values
        try:
            model = timm.create_model(config.net_name[len(TIMM) :],
                                      **{"pretrained": False, "num_classes": config.emb_size, **options})
        except Exception as error:  # of many types, by the model
            raise UserError(f"{name}: timm cannot make it: {' '.join(str(error).split())[:300]}") from error
        plain = model.forward
        model.forward = lambda images: plain((images - 127.5) / 127.5)
        return module_graph(model, (channels, height, width), name)
