# SPDX-License-Identifier: Apache-2.0
"""Makers of the parts of a run from a checked configuration: data, network, head, verification, log."""
from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Callable

import numpy as np

from recognition.config.groups.run import NO_END
from recognition.config.options import Config
from recognition.config.user_code import is_symbol_file
from recognition.data.augment import Augmentation
from recognition.data.loader import BatchLoader
from recognition.data.order import Position
from recognition.data.sets.image_set import ImageSet
from recognition.data.sets.landmarks import landmarks_of
from recognition.data.sets.open_set import Opening, open_sets
from recognition.data.triplets import Bags, Judge, TripletLoader, refuse
from recognition.engines.configured import computing_of
from recognition.engines.interface import Backbone, Engine, Updating
from recognition.engines.numbers import describe_numbers
from recognition.engines.shards import make_shard
from recognition.errors import UserError
from recognition.head.image_margins import AdaFace, ElasticFace, ImageMargins, MagFace
from recognition.head.margin import Margin
from recognition.head.sampling import ClassSampler
from recognition.head.shard import split_classes
from recognition.head.sharded import ShardedHead
from recognition.head.triplet_head import TripletHead
from recognition.head.triplet_loss import TripletLoss
from recognition.networks import first_weights
from recognition.networks.dropped import as_trained
from recognition.networks.flops import count_flops, describe
from recognition.networks.graph import Graph
from recognition.networks.initialise import initialise
from recognition.networks.lora import is_adapter
from recognition.optim.adamw import AdamW
from recognition.optim.factors import LearningRateFactors
from recognition.optim.layer_decay import layer_factors
from recognition.optim.loss_scale import LossScale
from recognition.optim.schedule import CosineSchedule, PolynomialSchedule, Schedule, StepSchedule, WarmUp, in_batches
from recognition.processes.alike import require_alike
from recognition.processes.communicator import Communicator, SingleProcess
from recognition.training.checkpoints.first_centres import CentresSource
from recognition.training.checkpoints.matching import advice
from recognition.training.checkpoints.pretrained import read_params, take_over
from recognition.training.checkpoints.renamed import renamed
from recognition.training.states.state import Progress
from recognition.training.teacher import CheckpointTeacher, StoredTeacher, Teacher
from recognition.training.verify import Verifier, load_targets, shared
from recognition.training.watch.history import History
from recognition.training.watch.log import TrainingLog
from recognition.training.watch.text_log import FILE as TEXT_LOG
from recognition.training.watch.text_log import TextLog
from recognition.training.watch.watchers import Places

PREFETCH_BATCHES = 3  # decoded ahead


def make_dataset(config: Config, first: bool = True) -> ImageSet:
    """Open the training set and compare it with the configuration; ``first``: whether this is the first process.

    :raises UserError: if it cannot be read, or if its images are not of the size that the network is built for.
    """
    how = Opening(config.image_shape[0], config.num_classes, config.is_shuffled_rec, config.data_images_filter,
                  config.on_bad_record, config.bad_record_share, seed=config.seed,
                  index_folder=Path(config.output_dir), writes=first)
    dataset = open_sets(config.dataset_path, config.dataset_weights, how)
    if config.num_classes not in (0, dataset.num_classes):
        by = "there" if dataset.form in ("folder", "several", "synthetic") else "by its property file"
        print(f"{dataset.path}: {dataset.num_classes} identities {by}; the preset's "
              f"{config.num_classes} are not used", flush=True)
    if config.image_shape != dataset.image_shape:
        built, found = ("x".join(map(str, shape)) for shape in (config.image_shape, dataset.image_shape))
        raise UserError(f"image_shape: found {built}, but {dataset.parts[0].path / 'property'} says {found}, expected "
                        "the same; set image_shape in the dataset preset or mend the property file")
    dataset.check_labels()
    if len(dataset.parts) > 1:
        print(f"{len(dataset.parts)} data sets, {dataset.num_classes} identities: " + ", ".join(
            f"{part.path} {part.num_classes}" for part in dataset.parts), flush=True)
    return dataset


def make_backbone(config: Config, graph: Graph, engine: Engine, communicator: Communicator,
                  checkpoint: Path | None = None) -> Backbone:
    """The network on every device, with parameters from the seed or from a checkpoint.

    :raises UserError: if the checkpoint belongs to another network, or if a device cannot compute in 16 bits.
    """
    height, width, channels = config.image_shape
    image_shape, computing = (channels, height, width), computing_of(config)
    if config.count_flops:
        print(describe(count_flops(graph, image_shape)), flush=True)
    if line := describe_numbers(computing):
        print(line, flush=True)
    start = initialise(graph, image_shape, config.seed, first_weights(config.net_name))
    if checkpoint:
        symbol = Path(f"{config.pretrained}-symbol.json")
        print(take_over(checkpoint, read_params(checkpoint), start, partial(advice, config=config),
                        partial(renamed, graph, symbol, image_shape)), flush=True)
    trained, held = as_trained(graph, config), tuple(start[0]) if config.lora else config.freeze
    if config.lora:
        adapters = initialise(trained, image_shape, config.seed, first_weights(config.net_name))[0]
        start[0].update({name: array for name, array in adapters.items() if is_adapter(name)})
    by_layer = layer_factors([name for name in trained.list_arguments() if name in start[0]], config.layer_decay)
    factors = partial(LearningRateFactors, freeze=held, freeze_steps=config.freeze_steps,
                      factors=config.lr_factor, by_layer=by_layer, tables=graph.tables(),
                      needed=config.triplets or config.fc7_lr_mult == 0)
    updating = Updating(config.mom, config.wd, adamw_of(config), factors, config.seed, config.on_nan == "skip",
                        gradient_numbers=config.gradient_numbers, micro_batches=config.gradient_acc,
                        ema=config.ema, clip_norm=config.clip_norm)
    backbone = engine.backbone(trained, start, image_shape, computing, updating, communicator)
    if backbone.startup_line:
        print(backbone.startup_line, flush=True)
    return backbone


def make_head(config: Config, num_classes: int, engine: Engine,
              communicator: Communicator) -> ShardedHead | TripletHead:
    """The head. Its class centres are cut across the devices of all processes; a triplet loss has none.

    In ``train.py`` each process has all centres, cut across its devices, and a bias with softmax.
    """
    if config.triplets:
        loss = TripletLoss(config.triplet_alpha, angular=config.loss_name == "atriplet")
        return TripletHead(loss, config.device_batch, communicator)
    margin, devices = margin_of(config), config.devices
    across, replicas = (SingleProcess(), communicator) if config.whole_head else (communicator, SingleProcess())
    ranges = split_classes(num_classes, len(devices) * across.size)[across.rank * len(devices):]
    make = partial(make_shard, engine, dim=config.emb_size, on_host=config.centers_on != "device",
                   folder=Path(config.centers_folder or config.output_dir) if config.centers_on == "disk" else None,
                   sampled=config.sample_ratio < 1, low_products=config.low_products,
                   numbers=config.centers_numbers, normalised=margin.normalised, scale=margin.scale,
                   sub_centres=config.loss_K, seed=config.seed, with_bias=config.has_bias,
                   ceiling=config.interclass_filtering_threshold * margin.scale or math.inf)
    shards = [make(device, classes) for device, classes in zip(devices, ranges)]
    for line in sorted({shard.startup_line for shard in shards if shard.startup_line}):
        print(line, flush=True)
    return ShardedHead(shards, margin, across, config.mom, config.wd, config.fc7_lr_mult, config.fc7_wd_mult,
                       ClassSampler(config.sample_ratio, config.seed), replicas=replicas, adamw=adamw_of(config),
                       smoothing=config.label_smoothing, of_images=image_margins_of(config))


def make_loader(config: Config, dataset: ImageSet, backbone: Backbone, communicator: Communicator,
                start: Position, saved: Mapping[str, np.ndarray],
                judge: Judge = refuse) -> BatchLoader | TripletLoader:
    """The loader of this process's part of every batch from ``start`` on; ``saved``: the loader's state at ``start``.
    """
    size = config.device_batch * len(config.devices)
    part = (communicator.rank * size, (communicator.rank + 1) * size)
    points, about = landmarks_of(dataset) if config.data_mask_prob else (None, "")
    if about:
        digest = "none" if points is None else sha256(points.tobytes()).hexdigest()[:16]
        require_alike({"landmarks": digest}, communicator)
        if communicator.rank == 0:
            print(about, flush=True)
    augmentation = Augmentation(config.data_rand_mirror, int(config.data_cutoff), config.data_color,
                                mask=config.data_mask_prob, resize=config.data_resize_prob, blur=config.data_blur_prob,
                                hsv=config.data_hsv_prob, grey=config.data_gray_prob, landmarks=points)
    common: dict[str, Any] = {"augmentation": augmentation, "global_batch": size * communicator.size, "part": part,
                              "start": start, "threads": config.decode_threads, "prefetch": PREFETCH_BATCHES,
                              "buffer": backbone.buffer}
    if config.triplets:
        bags = Bags(dataset, config.images_per_identity, config.triplet_bag_size, config.seed)
        return TripletLoader(dataset, bags, backbone.embed, alpha=config.triplet_alpha, max_ap=config.triplet_max_ap,
                             device_batch=config.device_batch, saved=saved, gather=communicator.all_gather,
                             judge=judge, **common)
    return BatchLoader(dataset, dataset.order(config.seed), **common)


def make_verifier(config: Config, backbone: Backbone, dataset: ImageSet, communicator: Communicator) -> Verifier:
    """The verifier on the sets of ``val_targets`` that are in the folder of the training set."""
    sets = load_targets([part.path for part in dataset.parts], config.val_targets, dataset.image_shape[:2])
    if not sets:
        looked_for = ", ".join(f"{target}.bin" for target in config.val_targets) or "none"
        print(f"{dataset.path}: no verification set there (looked for {looked_for})", flush=True)
    elif missing := [f"{target}.bin" for target in config.val_targets if target not in {found.name for found in sets}]:
        print(f"{dataset.path}: no {', '.join(missing)} there, verification without", flush=True)
    images = config.per_batch_size * len(config.devices) * communicator.size
    return Verifier(shared(backbone.embed, communicator), sets, images,
                    Path(config.output_dir) if communicator.rank == 0 else None,
                    backbone.averaged if config.ema else None)


def make_teacher(config: Config, engine: Engine, dataset: ImageSet) -> Teacher | None:
    """The teacher, on the devices of the run; None if there is none. In a run of 16 bits its network computes in
    bfloat16, where the engine has it.

    :raises UserError: if it cannot be read, or if its embeddings are not of the length of the network's.
    """
    if not config.teacher:
        return None
    folder, (height, width, channels) = Path(config.teacher), config.image_shape
    teacher: Teacher = StoredTeacher(folder, dataset, not config.dataset_weights) if folder.is_dir() else (
        CheckpointTeacher(config.teacher, engine, config.devices, config.per_batch_size, (channels, height, width),
                          config.in_16_bits and engine.has_bfloat16(config.devices)))
    if teacher.dim != config.emb_size:
        raise UserError(f"--teacher: the embeddings of {config.teacher} have {teacher.dim} numbers, those of the "
                        f"network {config.emb_size} (emb_size), expected the same")
    print(f"teacher: {config.teacher}, weight {config.distil_weight:g}", flush=True)
    return teacher


def centres_source(config: Config) -> CentresSource:
    """The source of the first class centres, for a run that starts from a checkpoint."""
    return CentresSource(config.centres_from, config.loss_K, config.emb_size,
                         config.per_batch_size * len(config.devices), config.decode_threads)


def make_log(config: Config, progress: Progress, global_batch: int, batches_an_epoch: float,
             loss_scale: LossScale | None, also: Callable[[], dict[str, float]] = dict) -> TrainingLog:
    """The log of the first process, in the folder of the run.

    :param loss_scale: that of float16; ``also``: further numbers of a speed line, for the history.
    """
    folder, step, end = Path(config.output_dir), progress.step, total_steps(config, batches_an_epoch)
    return TrainingLog(History(folder / "history.jsonl", step), config.frequent, global_batch, end, step,
                       config.ce_loss, progress.since_line,
                       watchers=places_of(config).open(folder, progress.config, step),
                       text=TextLog(folder / TEXT_LOG, step, end, progress.config, loss_scale),
                       batches_an_epoch=batches_an_epoch, also=also)


def places_of(config: Config) -> Places:
    """The destinations of a run's numbers beside its history."""
    return Places(config.tensorboard, config.wandb, config.mlflow)


def identity_of(config: Config, dataset: ImageSet, graph: Graph, teacher: Teacher | None = None) -> dict[str, Any]:
    """The options and facts that must be the same in a resumed run: they determine shapes and the order of data.

    Of a network from a ``-symbol.json`` also the checksum of the graph: another may have layers of the same shapes. And
    that of the teacher, if there is one.
    """
    symbol = is_symbol_file(config.net_name)
    own = {"network_sha256": sha256(graph.to_json().encode()).hexdigest()} if symbol else {}
    own.update({"teacher": teacher.fingerprint} if teacher else {})
    return {**own, "num_classes": dataset.num_classes, "images": len(dataset), "records": dataset.digest(),
            "network": config.network, "emb_size": config.emb_size, "loss_K": config.loss_K, "seed": config.seed,
            "loss_name": config.loss_name, "bias": config.has_bias, "optimizer": config.optimizer}


def margin_of(config: Config) -> Margin:
    """The margin of a checked configuration (``loss_name``, ``loss_s``, ``loss_m1`` .. ``loss_m3``)."""
    if config.loss_name == "softmax":
        return Margin(normalised=False)
    return Margin(config.loss_s, config.loss_m1, config.loss_m2, config.loss_m3,
                  straight_through=config.target_gradient == "straight_through",
                  easy=config.loss_margin == "magface", bounded=config.loss_margin == "adaface")


def image_margins_of(config: Config) -> ImageMargins | None:
    """The rule that gives each image its own margin (``loss_margin``); None if all have the same."""
    if config.loss_margin == "adaface":
        return AdaFace(config.loss_m2, config.adaface_h, config.adaface_share)
    if config.loss_margin == "magface":
        return MagFace(config.magface_norms, config.magface_margins, config.magface_weight)
    if config.loss_margin == "elastic":
        return ElasticFace(config.loss_m2, config.loss_m3, config.elastic_deviation, config.seed, config.elastic_sorted)
    return None


def adamw_of(config: Config) -> AdamW | None:
    """The AdamW of a configuration; None for SGD."""
    return AdamW(config.adam_beta1, config.adam_beta2, config.adam_eps) if config.optimizer == "adamw" else None


def make_schedule(config: Config, batches_an_epoch: float) -> Schedule:
    """The schedule of a run.

    :param batches_an_epoch: infinite if unknown, as with triplets.
    :raises UserError: if the rate must fall until the end of the run, and the warm-up is as long as the run.
    """
    warmup, end = in_batches(config.warmup, batches_an_epoch), total_steps(config, batches_an_epoch)
    if config.lr_schedule == "steps":
        after: Schedule = StepSchedule(config.lr, tuple(in_batches(s, batches_an_epoch) for s in config.lr_steps))
    elif end is None or warmup >= end:
        raise UserError(f"warmup: found {config.warmup}, {warmup} batches, but the run ends after {end}; expected less")
    elif config.lr_schedule == "polynomial":
        after = PolynomialSchedule(config.lr, warmup, end, config.lr_power)
    else:
        after = CosineSchedule(config.lr, warmup, end)
    return WarmUp(config.lr, warmup, after) if warmup else after


def total_steps(config: Config, batches_an_epoch: float) -> int | None:
    """The number of steps of the run; None if it is unknown, as with the legacy default, which never ends."""
    by_epochs = config.end_epoch * batches_an_epoch if config.end_epoch < NO_END else math.inf
    total = min(config.max_steps or math.inf, by_epochs)
    return None if total == math.inf else int(total)
