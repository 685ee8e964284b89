# SPDX-License-Identifier: Apache-2.0
"""Options of the loss and of the class centres."""
from __future__ import annotations

import math
from dataclasses import dataclass

from recognition.config import types
from recognition.config.groups.option import ENTRIES, PARALL_ONLY, option


@dataclass(frozen=True)
class LossOptions:
    """The options of the head: its loss, and where the class centres live."""

    loss_name: str = option("margin_softmax", types.loss_name, "loss")
    loss_s: float = option(64.0, types.real(), "scale s of the cosines")
    loss_m1: float = option(1.0, types.real(least=0), "margin m1, a factor of the angle")
    loss_m2: float = option(0.5, types.real(least=-math.pi, most=math.pi), "margin m2, added to the angle, in radians")
    loss_m3: float = option(0.0, types.real(least=-2, most=2), "margin m3, taken from the cosine")
    loss_margin: str = option(
        "same", types.choice("same", "adaface", "magface", "elastic"), "how the margins of images differ: not at all; "
        "by the norms of their features; at random")
    adaface_h: float = option(0.333, types.real(least=0), "AdaFace: factor of a norm's distance from the mean, in "
                              "standard deviations; m is loss_m2")
    adaface_share: float = option(0.01, types.real(above=0, most=1), "AdaFace: share of a batch in the running mean "
                                  "and deviation of norms")
    magface_norms: tuple[float, float] = option((10.0, 110.0), types.rising("10,110", above=0), "MagFace: the norms "
                                                "between which the margin grows")
    magface_margins: tuple[float, float] = option((0.45, 0.8), types.rising("0.45,0.8", least=0, most=math.pi),
                                                  "MagFace: the margins m2 at these norms")
    magface_weight: float = option(20.0, types.real(least=0), "MagFace: weight of the norms' own loss")
    elastic_deviation: float = option(0.0125, types.real(above=0, most=1), "ElasticFace: standard deviation of the "
                                      "margin: of loss_m2, or, if that is 0, of loss_m3")
    elastic_sorted: bool = option(False, types.boolean, "ElasticFace: the largest margins for the images farthest from "
                                  "their centres (Arc+, Cos+)")
    loss_K: int = option(1, types.integer(least=1), "sub-centres a class")
    sample_ratio: float = option(1.0, types.real(above=0, most=1), "share of the class centres in a step",
                                 PARALL_ONLY)
    centers_on: str = option("device", types.choice("device", "cpu", "disk"), "where the class centres live: on the "
                             "devices; in host memory, from where the devices get those of a step; or on a disk",
                             PARALL_ONLY)
    centers_folder: str = option("", types.text, "folder on a fast local disk for --centres-on disk; default: that of "
                                 "the run", PARALL_ONLY)
    centers_numbers: str = option("float32", types.choice("float32", "bfloat16"), "numbers that class centres and "
                                  "their moments are kept in; bfloat16 is rounded at random", PARALL_ONLY)
    head_products: str = option("auto", types.choice("auto", "float32", "float16"), "numbers that the head's products "
                                "are made of on GPUs; auto: float16 if the backbone computes in 16 bits", PARALL_ONLY)
    interclass_filtering_threshold: float = option(
        0.0, types.real(least=0, below=1), "a cosine: classes nearer than it to an image of another class are left out "
        "of that image's loss, as their labels may be wrong; 0: none")
    label_smoothing: float = option(0.0, types.real(least=0, below=1), "share of each label that all classes divide; "
                                    "0: none", ENTRIES)
    target_gradient: str = option(
        "exact", types.choice("exact", "straight_through"), "derivative of the target's logit: of the margin, or of "
        "the plain cosine as in the PyTorch recipe")
    ce_loss: bool = option(True, types.boolean, "tell the cross entropy in speed lines")
    fc7_lr_mult: float = option(1.0, types.real(least=0), "learning-rate factor of the class centres; 0: they stay as "
                                "they are", ENTRIES)
    fc7_wd_mult: float = option(1.0, types.real(least=0), "weight-decay factor of the class centres")
    fc7_no_bias: bool = option(False, types.boolean, "softmax without a bias")
    images_per_identity: int = option(5, types.integer(least=2), "triplets: images of an identity in a bag")
    triplet_alpha: float = option(0.3, types.real(least=0), "triplets: margin")
    triplet_bag_size: int = option(7200, types.integer(least=3), "triplets: images in a bag")
    triplet_max_ap: float = option(0.0, types.real(least=0), "triplets: largest distance of a positive pair; 0: any")
