# SPDX-License-Identifier: Apache-2.0
"""The options of one run, checked one by one and together. ``groups`` beside this file has the table of them.

``presets`` reads options from a config.py, ``cli`` from flags.
"""
from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

from recognition.config import types
from recognition.config.command_line import british
from recognition.config.dataset_places import name_of_sets
from recognition.config.groups.data import DataOptions
from recognition.config.groups.loss import LossOptions
from recognition.config.groups.network import FAMILIES, NETWORK_KEYS, NetworkOptions
from recognition.config.groups.run import DISTIL_WEIGHT, NO_END, RunOptions
from recognition.errors import UserError

_LARGEST = 1e37  # of factors in float32 arithmetic; 1 / _LARGEST is a normal float32, too
_PRODUCTS = (("loss_s",), ("lr",), ("lr", "lr_factor"), ("lr", "fc7_lr_mult"), ("wd",), ("wd", "fc7_wd_mult"),
             ("lr", "wd"), ("lr", "fc7_lr_mult", "wd", "fc7_wd_mult"), ("adam_eps",), ("fp16_scale",),
             ("distil_weight",))


@dataclass(frozen=True)
class Config(RunOptions, LossOptions, NetworkOptions, DataOptions):  # a dataclass has the fields of its last base first
    """The options of one run, checked one by one and together.

    Attributes have the names of the legacy keys. ``dataclasses.replace`` gives a changed copy, checked again;
    ``Config(**fields)`` reads the result of ``dataclasses.asdict``, also after JSON.

    :raises UserError: with its key, if an option is not valid.
    """

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = check(item.name, getattr(self, item.name), british(item.name), self.net_name not in FAMILIES)
            object.__setattr__(self, item.name, value)
        if self.loss_name == "margin_softmax" and min(self.loss_s, self.loss_m1) <= 0:
            raise UserError(f"loss_s, loss_m1: found {self.loss_s:g}, {self.loss_m1:g}, expected numbers above 0")
        for keys in _PRODUCTS:
            factors = [self._largest(key) for key in keys]
            if math.prod(factors) > _LARGEST:
                raise UserError(f"{', '.join(keys)}: found {' times '.join(f'{factor:g}' for factor in factors)}, "
                                f"expected at most {_LARGEST:g}, as it is computed with in float32")
        if self.triplets and self.per_batch_size % 3:
            raise UserError(f"per_batch_size: found {self.per_batch_size}, expected a multiple of 3 such as "
                            f"{self.per_batch_size // 3 * 3 or 3}: a {self.loss_name} batch is anchors, positives and "
                            "negatives in thirds")
        if self.triplets and self.triplet_bag_size < 2 * self.images_per_identity:
            raise UserError(f"triplet_bag_size: found {self.triplet_bag_size}, expected at least two identities of "
                            f"images_per_identity, {2 * self.images_per_identity}")
        if self.centres_from == "embeddings" and (self.triplets or not self.pretrained):
            raise UserError("centres_from: found 'embeddings', expected it with --pretrained, and with a loss that has "
                            "class centres")
        if self.dataset_weights and len(self.dataset_weights) != len(self.dataset_places):
            raise UserError(f"dataset_weights: found {len(self.dataset_weights)} for {len(self.dataset_places)} data "
                            "sets, expected one for each")
        if "@" in self.mlflow.partition("://")[2].partition("/")[0]:
            raise UserError("mlflow: found a name or a password in the address, expected them in "
                            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
        if self.worker_id >= self.num_workers:
            raise UserError(f"worker_id: found {self.worker_id}, expected less than the number of workers "
                            f"(DMLC_NUM_WORKER), {self.num_workers}")

    def _largest(self, key: str) -> float:
        """The value of a number; for ``lr_factor`` the largest factor."""
        return max((factor for _, factor in self.lr_factor), default=1.0) if key == "lr_factor" else getattr(self, key)

    @property
    def measure_every(self) -> int:
        """Batches between measures of angles and gradients; 0: they have nowhere to go."""
        return self.tensorboard_every if self.tensorboard or self.wandb or self.mlflow else 0

    @property
    def dataset_places(self) -> tuple[str, ...]:
        """The places of all data sets."""
        return (self.dataset_path,) if isinstance(self.dataset_path, str) else self.dataset_path

    @property
    def triplets(self) -> bool:
        """True for a loss of triplets, which has no class centres, no labels and batches in thirds."""
        return self.loss_name in ("triplet", "atriplet")

    @property
    def device_batch(self) -> int:
        """Images of a device and batch."""
        return self.per_batch_size * self.gradient_acc

    @property
    def whole_head(self) -> bool:
        """True if each process has the centres of all classes, as in ``train.py``."""
        return self.entry == "train"

    @property
    def has_bias(self) -> bool:
        """True if the class centres have a bias: only softmax in ``train.py`` has one."""
        return self.whole_head and self.loss_name == "softmax" and not self.fc7_no_bias

    @property
    def in_16_bits(self) -> bool:
        """True if the backbone computes in 16 bits: by ``fp16``, or by a loss scale above 0."""
        return self.fp16 or self.fp16_scale > 0

    @property
    def low_products(self) -> bool:
        """True if the head's products may be of 16 bits, where the engine has them."""
        return self.head_products == "float16" or (self.head_products == "auto" and self.in_16_bits)

    @property
    def ends(self) -> bool:
        """True if the number of batches of the run is known before it starts."""
        return self.max_steps > 0 or (self.end_epoch < NO_END and not self.triplets)

    @property
    def output_dir(self) -> str:
        """The folder of this run's checkpoints: ``<models_root>/<network>-<loss>-<dataset>[-<extra>]``."""
        parts = (self.network, self.loss, name_of_sets(self.dataset), self.extra_model_name)
        return os.path.join(self.models_root, "-".join(part for part in parts if part))

    @property
    def prefix(self) -> str:
        """The common prefix of the checkpoints, for ``mx.model.load_checkpoint``."""
        return os.path.join(self.output_dir, "model")


OPTIONS = {item.name: item for item in dataclasses.fields(Config)}
_BY_SPELLING = {british(key): key for key in OPTIONS}  # one key has "center" in saved states, and keeps it there


def option_key(key: str) -> str:
    """The option of a key in a config.py, where "centre" and "center" are both accepted; any other key as it is."""
    return _BY_SPELLING.get(british(key), key)


def check(key: str, value: Any, where: str, own_network: bool = False) -> Any:
    """The typed value of option ``key``. With ``own_network``, a NETWORK_KEYS value that is not valid is not changed.

    :raises UserError: beginning with ``where``, if it is not valid.
    """
    try:
        return OPTIONS[key].metadata["type"].check(value, where)
    except UserError:
        if own_network and key in NETWORK_KEYS:
            return value
        raise


class Refusal(NamedTuple):
    """An option that the trainer refuses for some configurations, and the reason."""

    key: str
    refused: Callable[[Config], bool]
    reason: str


REFUSALS = (
    Refusal("num_workers", lambda c: c.num_workers > 1 and not c.kvstore.startswith("dist"),
            "several workers need --kvstore dist_sync; unset DMLC_NUM_WORKER for one"),
    Refusal("sample_ratio", lambda c: c.triplets and c.sample_ratio < 1,
            "a triplet loss has no class centres to sample"),
    Refusal("centers_on", lambda c: c.triplets and c.centers_on != "device", "a triplet loss has no class centres"),
    Refusal("centers_on", lambda c: c.centers_on == "disk" and c.sample_ratio == 1,
            "a step without --sample-ratio would read all of the disk"),
    Refusal("centers_on", lambda c: c.centers_on == "disk" and c.centres_from == "embeddings",
            "sums of embeddings would need memory for all class centres"),
    Refusal("centres_from", lambda c: c.centres_from not in types.CENTRES_FROM and c.triplets,
            "a triplet loss has no class centres"),
    Refusal("distil_weight", lambda c: c.distil_weight != DISTIL_WEIGHT and not c.teacher, "there is no --teacher"),
    Refusal("centers_folder", lambda c: bool(c.centers_folder) and c.centers_on != "disk",
            "it is for --centres-on disk"),
    Refusal("centers_numbers", lambda c: c.triplets and c.centers_numbers != "float32",
            "a triplet loss has no class centres"),
    Refusal("states_on", lambda c: c.whole_head and c.states_on != "shared",
            "train.py has all class centres in each process, and the first one saves them"),
    Refusal("interclass_filtering_threshold",
            lambda c: c.interclass_filtering_threshold > 0 and c.loss_name != "margin_softmax",
            "only a margin loss has cosines with class centres"),
    Refusal("label_smoothing", lambda c: c.label_smoothing > 0 and c.triplets,
            "a triplet loss has no labels to smooth"),
    Refusal("label_smoothing", lambda c: c.label_smoothing > 0 and c.loss_K > 1,
            "with sub-centres only the nearest one of a class has a logit"),
    Refusal("label_smoothing", lambda c: c.label_smoothing > 0 and c.interclass_filtering_threshold > 0,
            "interclass_filtering_threshold leaves classes out, which have no logit"),
    Refusal("target_gradient", lambda c: c.target_gradient != "exact" and c.loss_name != "margin_softmax",
            "only a margin loss has a margin"),
    Refusal("loss_margin", lambda c: c.loss_margin != "same" and c.loss_name != "margin_softmax",
            "only a margin loss has margins"),
    Refusal("loss_margin", lambda c: c.loss_margin != "same" and c.target_gradient != "exact",
            "target_gradient is straight_through, which has the derivative of no margin"),
    Refusal("loss_margin", lambda c: c.loss_margin in ("adaface", "magface") and (c.loss_m1, c.loss_m3) != (1, 0),
            "loss_m1 and loss_m3 are not 1 and 0, which it expects"),
    Refusal("loss_margin", lambda c: c.loss_margin == "elastic" and not (c.loss_m2 or c.loss_m3),
            "loss_m2 and loss_m3 are both 0: there is no margin to vary"),
    Refusal("loss_K", lambda c: c.triplets and c.loss_K > 1, "a triplet loss has no class centres to have several of"),
    Refusal("lr_schedule", lambda c: c.lr_schedule != "steps" and not c.ends,
            "it needs an end to fall to: --max-steps, or, but not with triplets, --end-epoch"),
    Refusal("lr_steps", lambda c: c.triplets and any(isinstance(step, str) for step in c.lr_steps),
            "an epoch of triplets has no fixed number of batches; count batches"),
    Refusal("warmup", lambda c: c.triplets and isinstance(c.warmup, str),
            "an epoch of triplets has no fixed number of batches; count batches"),
    Refusal("freeze_steps", lambda c: c.freeze_steps > 0 and not c.freeze,
            "--freeze names no parameter to hold for them"),
    Refusal("lora", lambda c: c.lora > 0 and bool(c.freeze),
            "it holds all but the adapters already; leave --freeze out"),
    Refusal("drop_path", lambda c: c.drop_path > 0 and c.net_name == "vit",
            "a transformer misses blocks by net_drop_path"),
    Refusal("dataset_weights", lambda c: c.triplets and bool(c.dataset_weights),
            "a bag of triplets takes each identity once"),
    Refusal("flip_noise_prob", lambda c: c.flip_noise_prob > 0, "labels are not made wrong on purpose"),
)


def refuse_unsupported(config: Config) -> None:
    """Refuse a configuration that the trainer would otherwise ignore in part.

    :raises UserError: with the key and the reason, if one of REFUSALS applies.
    """
    for key, refused, reason in REFUSALS:
        if refused(config):
            raise UserError(f"{british(key)}: found {getattr(config, key)!r}, but {reason}")
