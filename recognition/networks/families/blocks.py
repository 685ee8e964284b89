# SPDX-License-Identifier: Apache-2.0
"""The pieces that networks share: input scaling, convolution, batch norm, activation, squeeze and excitation.

Names and attributes of the layers are those of the public InsightFace recipes: a checkpoint is identified by them.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recognition.config import types
from recognition.networks import sym

ACTIVATIONS = ("prelu", "relu", "sigmoid", "softrelu", "softsign", "tanh")


def scale_pixels(data: sym.Symbol) -> sym.Symbol:
    """Pixels 0..255 to about -1..1: ``(data - 127.5) / 128``; any shape."""
    return (data - 127.5) * 0.0078125


def linear(data: sym.Symbol, name: str, channels: int, bn_mom: float, *, kernel: int = 1, stride: int = 1,
           pad: int = 0, groups: int = 1, fix_gamma: bool = False, **norm: Any) -> sym.Symbol:
    """Convolution without bias, ``<name>_conv2d``, and batch norm, ``<name>_batchnorm``, as in the mobile networks.

    (N, C, H, W) -> (N, channels, H', W'). The batch norm keeps MXNet's own epsilon, 1e-3, unless ``norm`` has an
    ``eps``; with ``fix_gamma`` its factor stays 1.
    """
    data = sym.Convolution(data, num_filter=channels, kernel=(kernel, kernel), stride=(stride, stride),
                              pad=(pad, pad), num_group=groups, no_bias=True, name=name + "_conv2d")
    return sym.BatchNorm(data, fix_gamma=fix_gamma, momentum=bn_mom, name=name + "_batchnorm", **norm)


@dataclass(frozen=True)
class Blocks:
    """Layer builders of one network, which share its options; each maps (N, C, H, W) to (N, C', H', W').

    ``net_act`` is one of :data:`ACTIVATIONS`, ``bn_mom`` the momentum of the moving statistics of batch norm, and
    ``workspace`` the megabytes that cuDNN may use to choose a convolution's algorithm.
    """

    net_act: str = "prelu"
    bn_mom: float = 0.9
    workspace: int = 256

    def __post_init__(self) -> None:
        types.choice(*ACTIVATIONS).check(self.net_act, "net_act")

    def activation(self, data: sym.Symbol, name: str) -> sym.Symbol:
        """The network's activation; PReLU has one learned slope a channel, ``<name>_gamma`` (C,), at first 0.25."""
        if self.net_act == "prelu":
            return sym.LeakyReLU(data, act_type="prelu", name=name)
        return sym.Activation(data, act_type=self.net_act, name=name)

    def batch_norm(self, data: sym.Symbol, name: str, fix_gamma: bool = False) -> sym.Symbol:
        """Batch norm with epsilon 2e-5; with ``fix_gamma`` the factor stays 1."""
        return sym.BatchNorm(data, fix_gamma=fix_gamma, eps=2e-5, momentum=self.bn_mom, name=name)

    def convolution(self, data: sym.Symbol, name: str, channels: int, kernel: int, stride: int = 1,
                    groups: int = 1, bias: bool = False) -> sym.Symbol:
        """Square convolution, padded so that stride 1 keeps the size of the map."""
        options: dict[str, Any] = {} if bias else {"no_bias": True}
        if groups > 1:
            options["num_group"] = groups
        if kernel > 1 or bias:  # legacy shortcuts do not write their padding of 0
            options["pad"] = (kernel // 2, kernel // 2)
        return sym.Convolution(data, num_filter=channels, kernel=(kernel, kernel), stride=(stride, stride),
                                  workspace=self.workspace, name=name, **options)

    def squeeze_excite(self, data: sym.Symbol, name: str, channels: int, reduction: int = 16,
                       act: str = "relu1") -> sym.Symbol:
        """Scale each channel by a sigmoid of all channels' means (Hu et al., arXiv 1709.01507).

        Between them are ``channels // reduction`` features; ``act`` is how the activation's name ends.
        """
        gate = sym.Pooling(data, global_pool=True, kernel=(7, 7), pool_type="avg", name=name + "_se_pool1")
        gate = self.convolution(gate, name + "_se_conv1", channels // reduction, 1, bias=True)
        gate = self.activation(gate, f"{name}_se_{act}")
        gate = self.convolution(gate, name + "_se_conv2", channels, 1, bias=True)
        gate = sym.Activation(gate, act_type="sigmoid", name=name + "_se_sigmoid")
        return sym.broadcast_mul(data, gate)
