# SPDX-License-Identifier: Apache-2.0
"""The table of all options of a run: default, valid values, meaning, and the commands that have a flag for each.

:class:`Config` holds checked options. ``presets`` reads them from a config.py, ``cli`` from flags.
"""
from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple

from recognition.config import types
from recognition.config.command_line import british
from recognition.config.dataset_places import name_of_sets
from recognition.config.devices import CPU, Device
from recognition.errors import UserError

ENTRIES = PARALL, _ = ("train_parall", "train")
PARALL_ONLY = (PARALL,)
LARGEST = 1e37  # of factors in float32 arithmetic; 1 / LARGEST is a normal float32, too
DISTIL_WEIGHT = 10.0
NO_END = 10000  # the legacy default of end_epoch: such a run goes on until it is stopped
# Our networks. Any other net_name is a user's own network, which may give NETWORK_KEYS any values and meanings.
FAMILIES = ("fresnet", "fresnext", "fmobilefacenet", "fmobilenet", "fmnasnet", "fdensenet", "vargfacenet", "mbf", "vit")
_PRODUCTS = (("loss_s",), ("lr",), ("lr", "lr_factor"), ("lr", "fc7_lr_mult"), ("wd",), ("wd", "fc7_wd_mult"),
             ("lr", "wd"), ("lr", "fc7_lr_mult", "wd", "fc7_wd_mult"), ("adam_eps",), ("fp16_scale",),
             ("distil_weight",))
NETWORK_KEYS = ("num_layers", "net_se", "net_act", "net_unit", "net_input", "net_output", "net_blocks",
                "net_multiplier", "densenet_dropout", "net_drop_path", "net_mask_ratio")


def option(default: Any, option_type: types.OptionType, help: str, flag: tuple[str, ...] = ()) -> Any:
    """A field of :class:`Config`; ``flag``: the commands that have a flag of its name."""
    return field(default=default, metadata={"type": option_type, "help": help, "flag": flag})


@dataclass(frozen=True)
class Config:
    """The options of one run, checked one by one and together.

    Attributes have the names of the legacy keys. ``dataclasses.replace`` gives a changed copy, checked again;
    ``Config(**fields)`` reads the result of ``dataclasses.asdict``, also after JSON.

    :raises UserError: with its key, if an option is not valid.
    """

    entry: str = option(PARALL, types.choice(*ENTRIES), "the command")
    config_file: str = option("", types.text, "the file that the presets come from")

    # presets
    dataset: str = option("emore", types.filled_text, "dataset preset, or a folder of records or of folders of images, "
                          "or synthetic:N for N identities made up; several with commas between them", ENTRIES)
    network: str = option("r100", types.filled_text, "network preset; PREFIX-symbol.json: the network of a "
                          "checkpoint; checkpoint: that of --pretrained; timm:NAME: a model of timm", ENTRIES)
    loss: str = option("arcface", types.filled_text, "loss preset", ENTRIES)

    # data
    dataset_path: str | tuple[str, ...] = option(
        "", types.places, "the folder of train.rec, train.idx, property and TARGET.bin, or of folders of images; a "
        "list of several: their identities follow each other")
    dataset_weights: tuple[float, ...] = option(
        (), types.weights, "of several data sets, how often an epoch visits the images of each, such as 1,0.5; empty: "
        "once", ENTRIES)
    num_classes: int = option(0, types.integer(least=0), "identities; 0: as the property file says")
    image_shape: tuple[int, int, int] = option((112, 112, 3), types.square_rgb, "height, width, channels")
    val_targets: tuple[str, ...] = option(
        ("lfw", "cfp_fp", "agedb_30"), types.names, "verification sets, those of TARGET.bin that the data folder holds",
        ENTRIES)
    data_rand_mirror: bool = option(True, types.boolean, "mirror a random half of the images")
    data_cutoff: int = option(0, types.side, "side in pixels of a square greyed in half of the images")
    data_color: int = option(0, types.integer(least=0), "1: colour jitter; 2: recompression as well")
    data_mask_prob: float = option(0.0, types.real(least=0, most=1), "share of the images on which a mask is drawn "
                                   "over mouth and nose, by their landmarks if there are any beside the set, else "
                                   "where aligned faces have them")
    data_resize_prob: float = option(0.0, types.real(least=0, most=1), "share of the images that shrink to 0.5 to 0.8 "
                                     "of their sides and grow again")
    data_blur_prob: float = option(0.0, types.real(least=0, most=1), "share of the images that are blurred, by 3 or 5 "
                                   "pixels")
    data_hsv_prob: float = option(0.0, types.real(least=0, most=1), "share of the images whose hue turns by up to 20 "
                                  "degrees and whose saturation grows by up to a fifth")
    data_gray_prob: float = option(0.0, types.real(least=0, most=1), "share of the images that become grey")
    data_images_filter: int = option(0, types.integer(least=0), "leave out identities of fewer images")
    is_shuffled_rec: bool = option(False, types.boolean, "the record file is shuffled and read in its own order")
    on_bad_record: str = option("skip", types.choice("skip", "stop"), "a record that cannot be used: skip: the next "
                                "that can be stands in for it, in the same place; stop: it ends the run", ENTRIES)
    bad_record_share: float = option(0.01, types.real(least=0, most=1), "share of the records, rounded up, beyond which"
                                     " bad ones end the run, even to skip", ENTRIES)
    flip_noise_prob: float = option(0.0, types.real(least=0, most=1), "share of labels to make wrong")

    # network
    net_name: str = option("fresnet", types.filled_text,
                           "family of the network, a Python file of your own beside config.py, a -symbol.json, or "
                           "timm:NAME, a model of timm")
    num_layers: int = option(0, types.integer(least=0), "depth, for the families that have one")
    emb_size: int = option(512, types.integer(least=1), "length of an embedding")
    net_se: int = option(0, types.choice(0, 1), "1: squeeze and excitation")
    net_act: str = option("prelu", types.choice("prelu", "relu"), "activation")
    net_unit: int = option(3, types.choice(1, 2, 3), "version of the residual unit")
    net_input: int = option(1, types.choice(0, 1, 2), "version of the first layers")
    net_output: str = option("E", types.choice("E", "F", "G", "H", "I", "J", "Z", "FC", "SFC", "GAP", "GNAP", "GDC"),
                             "version of the last layers")
    net_blocks: tuple[int, ...] = option((1, 4, 6, 2), types.four_counts, "blocks in each stage")
    net_multiplier: float = option(1.0, types.real(above=0), "factor of the number of channels")
    densenet_dropout: float = option(0.0, types.real(least=0, below=1), "dropout in dense blocks")
    net_drop_path: float = option(0.0, types.real(least=0, below=1), "share of images that miss the last block of a "
                                  "transformer in training, of earlier ones fewer")
    net_mask_ratio: float = option(0.0, types.real(least=0, below=1), "share of an image's patches that a transformer "
                                   "does not see in training")
    own_keys: tuple[tuple[str, Any], ...] = option((), types.pairs, "keys of config.py that are not ours, with their "
                                                   "values: for a network of your own")
    bn_mom: float = option(0.9, types.real(least=0, most=1), "momentum of batch norm's running statistics")
    workspace: int = option(256, types.integer(least=0), "workspace of a convolution, in MB")
    memonger: bool = option(False, types.boolean, "recompute activations to save memory")
    count_flops: bool = option(True, types.boolean, "print the network's FLOPs at the start")
    fp16: bool = option(False, types.boolean, "float16 backbone; bfloat16 on a CPU that has it")

    # loss
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

    # run
    models_root: str = option("./models", types.filled_text, "folder of all checkpoints", ENTRIES)
    pretrained: str = option("", types.text, "checkpoint to start from: PREFIX, FOLDER, either with ,EPOCH, or "
                             "the .params file", ENTRIES)
    pretrained_epoch: int = option(1, types.integer(least=0), "its number, unless --pretrained names it", ENTRIES)
    centres_from: str = option("checkpoint", types.centres, "what the class centres start from: with --pretrained, "
                               "checkpoint: its own if the classes are as many; embeddings: the mean of each class; "
                               "random; with or without, those of another checkpoint, PREFIX,EPOCH, or of a folder",
                               ENTRIES)
    teacher: str = option("", types.text, "teacher of whose embeddings the network's are to come near: PREFIX,EPOCH of "
                          "a checkpoint, or a folder of embeddings that common.embed_set wrote", ENTRIES)
    distil_weight: float = option(DISTIL_WEIGHT, types.real(above=0), "with --teacher, factor of the mean squared "
                                  "distance of unit embeddings beside the loss", ENTRIES)
    freeze: tuple[str, ...] = option((), types.names, "parameters that stay as they are, by patterns of their names, "
                                     "such as 'conv0*,stage1*'", ENTRIES)
    freeze_steps: int = option(0, types.integer(least=0), "batches that they stay so; 0: always", ENTRIES)
    lr_factor: tuple[tuple[str, float], ...] = option(
        (), types.factors, "factors of the learning rate by patterns of parameters' names, such as "
        "'stage1*=0.1,pre_fc1*=10'; the last that matches counts", ENTRIES)
    layer_decay: float = option(1.0, types.real(above=0, most=1), "factor of the learning rate from each block of the "
                                "network to the one before it", ENTRIES)
    lora: int = option(0, types.integer(least=0), "rank of adapters on the linear layers of a transformer, which then "
                       "are all of the backbone that learns; 0: none", ENTRIES)
    ckpt: int = option(3, types.integer(least=0, most=3), "0 never save; 1 save when the verification is the best so "
                       "far; 2 save at each verification; 3 as 1 but always under number 1", ENTRIES)
    ckpt_embedding: bool = option(True, types.boolean, "leave the class centres out of the checkpoint")
    verbose: int = option(2000, types.integer(least=1), "batches between verifications", ENTRIES)
    frequent: int = option(20, types.integer(least=1), "batches between speed lines", ENTRIES)
    optimizer: str = option("sgd", types.choice("sgd", "adamw"), "optimiser of the backbone and of the class centres: "
                            "SGD with momentum; Adam with decoupled weight decay", ENTRIES)
    dropout: float = option(-1.0, types.real(least=-1, below=1), "share of the numbers before the embedding that "
                            "training drops; below 0: as the network has it, 0.4 or none", ENTRIES)
    drop_path: float = option(0.0, types.real(least=0, below=1), "share of the images that miss the last residual "
                              "branch in training, of earlier ones fewer", ENTRIES)
    lr: float = option(0.1, types.real(above=0), "learning rate", ENTRIES)
    lr_schedule: str = option("steps", types.choice("steps", "polynomial", "cosine"), "how the learning rate falls: by "
                              "lr_steps; to 0 at the end of the run, as a power of what is left, or as a half cosine",
                              ENTRIES)
    lr_steps: tuple[int | str, ...] = option((100000, 160000, 220000), types.spans,
                                             "batches, or epochs such as '10e,18e,22e', after which the learning rate "
                                             "falls to a tenth", ENTRIES)
    lr_power: float = option(2.0, types.real(above=0), "power of the polynomial schedule", ENTRIES)
    warmup: int | str = option(0, types.span, "batches, or epochs such as 2e, in which the learning rate rises from 0, "
                               "in proportion to the batches done", ENTRIES)
    wd: float = option(0.0005, types.real(least=0), "weight decay", ENTRIES)
    mom: float = option(0.9, types.real(least=0, below=1), "momentum of SGD", ENTRIES)
    adam_beta1: float = option(0.9, types.real(least=0, most=0.999999), "AdamW: decay of the first moment")
    adam_beta2: float = option(0.999, types.real(least=0, most=0.999999), "AdamW: decay of the second moment")
    adam_eps: float = option(1e-8, types.real(least=1e-20), "AdamW: added to the root of the second moment")
    per_batch_size: int = option(128, types.integer(least=1, most=1 << 20), "images per device and batch", ENTRIES)
    gradient_acc: int = option(1, types.integer(least=1, most=1 << 12), "times that a device computes per_batch_size "
                               "images for a batch, one after the other: a batch of so many times as many in the same "
                               "memory", ENTRIES)
    clip_norm: float = option(0.0, types.real(least=0), "largest norm of the backbone's gradient, all parameters that "
                              "move together; what is longer is made so long; 0: any", ENTRIES)
    ema: float = option(0.0, types.real(least=0, below=1), "decay of the moving average of the backbone's weights, "
                        "which is verified and saved beside them, such as 0.9999; 0: none", ENTRIES)
    max_steps: int = option(0, types.integer(least=0), "batches after which the run ends; 0: no limit", ENTRIES)
    end_epoch: int = option(NO_END, types.integer(least=1), "epochs after which the run ends", ENTRIES)
    kvstore: str = option("device", types.choice("local", "device", "dist_sync", "dist_device_sync"),
                          "where gradients are summed", ENTRIES)
    gradient_numbers: str = option("float32", types.choice("float32", "float16", "bfloat16"), "numbers that the "
                                   "backbone's gradients travel in between processes, and are added in", ENTRIES)
    devices: tuple[Device, ...] = option(
        CPU, types.devices, "cpu, cpu:N, gpu or gpu:I,J; if not given, as CUDA_VISIBLE_DEVICES says", ENTRIES)
    engine: str = option("auto", types.engine, "what computes: mxnet; torch, PyTorch; auto: what is installed and can "
                         "use the devices, of both the faster", ENTRIES)
    deterministic: bool = option(False, types.boolean, "the same bits each time on GPUs, too, in more time; CPUs give "
                                 "them always", ENTRIES)
    num_workers: int = option(1, types.integer(least=1), "worker processes, from DMLC_NUM_WORKER")
    worker_id: int = option(0, types.integer(least=0), "this worker's number, from 0", PARALL_ONLY)
    extra_model_name: str = option("", types.folder_part, "added to the name of the checkpoint's folder", PARALL_ONLY)
    fp16_scale: float = option(0.0, types.real(least=0), "loss scale; above 0 turns fp16 on", PARALL_ONLY)
    seed: int = option(0, types.integer(least=0, most=2**31 - 1), "seed of all that is random", ENTRIES)
    resume: str = option("", types.choice("", "yes", "auto"), "go on from the saved training state; auto: if there is "
                         "one, else from the start", ENTRIES)
    state_every: int = option(2000, types.integer(least=0), "batches between saved training states, 0 for never; if "
                              "not given, as --verbose, and 0 with --ckpt 0", ENTRIES)
    states_on: str = option("shared", types.choice("shared", "hosts"), "where training states go: to a folder that all "
                            "processes share; each host's shards to a folder of its own, where they share none",
                            PARALL_ONLY)
    keep_last: int = option(2, types.integer(least=1), "training states that stay: the last so many", ENTRIES)
    keep_every: int = option(0, types.integer(least=0), "training states of every so many batches stay, too; 0: none",
                             ENTRIES)
    keep_best: int = option(0, types.integer(least=0, most=1), "1: a training state is saved at each verification that "
                            "is the best so far, and that of the best stays, too", ENTRIES)
    keep_ckpt: int = option(0, types.integer(least=0), "numbered checkpoints of --ckpt 1 and 2 that stay: the last so "
                            "many, and the best; 0: all", ENTRIES)
    on_nan: str = option("stop", types.choice("stop", "skip"), "a step whose loss, features or gradients are not "
                         "finite: stop the run, or leave the step out and go on", ENTRIES)
    profile: int = option(0, types.integer(least=0), "steps to profile, from the fourth on: a trace for Chrome and a "
                          "table go to the folder of the checkpoints", ENTRIES)
    tensorboard: bool = option(False, types.boolean, "write TensorBoard's event files, to a folder beside the "
                               "checkpoints", ENTRIES)
    tensorboard_every: int = option(100, types.integer(least=1), "with --tensorboard, --wandb or --mlflow, batches "
                                    "between measures of angles and gradients", ENTRIES)
    wandb: str = option("", types.project, "PROJECT or ENTITY/PROJECT of Weights & Biases that the run's numbers go to",
                        ENTRIES)
    mlflow: str = option("", types.text, "MLflow that the run's numbers go to: the address of a server, or a folder",
                         ENTRIES)
    decode_threads: int = option(2, types.integer(least=1), "threads that decode images; if not given, one per "
                                 "processor, at most 8", ENTRIES)

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = check(item.name, getattr(self, item.name), british(item.name), self.net_name not in FAMILIES)
            object.__setattr__(self, item.name, value)
        if self.loss_name == "margin_softmax" and min(self.loss_s, self.loss_m1) <= 0:
            raise UserError(f"loss_s, loss_m1: found {self.loss_s:g}, {self.loss_m1:g}, expected numbers above 0")
        for keys in _PRODUCTS:
            factors = [self._largest(key) for key in keys]
            if math.prod(factors) > LARGEST:
                raise UserError(f"{', '.join(keys)}: found {' times '.join(f'{factor:g}' for factor in factors)}, "
                                f"expected at most {LARGEST:g}, as it is computed with in float32")
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
