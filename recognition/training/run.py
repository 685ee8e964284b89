# SPDX-License-Identifier: Apache-2.0
"""From a checked configuration to a run: makes the parts that the loop works with, and puts them together."""
from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recognition.config import Config
from recognition.data.augment import Augmentation
from recognition.data.dataset import FaceDataset, open_dataset
from recognition.data.loader import BatchLoader
from recognition.data.order import EpochOrder, Position
from recognition.data.triplets import Bags, TripletLoader
from recognition.loss.margin import margin_of
from recognition.loss.triplet import TripletLoss
from recognition.mxnet_compat import check_gpu, mx
from recognition.parallel.backbone import ReplicatedBackbone
from recognition.parallel.communicator import Communicator, SingleProcess
from recognition.parallel.cpu_shard import CpuShard
from recognition.parallel.head import ShardedHead
from recognition.parallel.mxnet_shard import MxnetShard
from recognition.parallel.sampling import ClassSampler
from recognition.parallel.shard import Shard, split_classes
from recognition.parallel.triplet_head import TripletHead
from recognition.symbol import build_symbol
from recognition.symbol.initialise import initialise
from recognition.symbol.passes import fast_prelu
from recognition.training.checkpoint import save_checkpoint
from recognition.training.history import History
from recognition.training.log import TrainingLog
from recognition.training.pretrained import read_params, take_over
from recognition.training.schedule import StepSchedule
from recognition.training.state import Progress, SavedState, find_state, save_state, set_aside
from recognition.training.trainer import Trainer
from recognition.training.verify import Verifier, load_targets

PREFETCH = 3  # batches decoded ahead


def train(config: Config) -> int:
    """Run the training that ``config`` asks for; returns the exit status.

    :raises UserError: on anything that the user can mend.
    """
    logging.basicConfig(level=logging.INFO)
    communicator = SingleProcess()
    folder = Path(config.output_dir)
    saved = find_state(folder / "state", config.resume)
    contexts = make_contexts(config)
    dataset = open_dataset(config.dataset_path, config.is_shuffled_rec, config.data_images_filter)
    if config.num_classes not in (0, dataset.num_classes):
        print(f"{dataset.path}: {dataset.num_classes} identities by its property file; the preset's "
              f"{config.num_classes} are not used", flush=True)

    symbol = build_symbol(config)
    backbone = make_backbone(config, symbol, dataset.image_shape, contexts, communicator)
    head = make_head(config, dataset.num_classes, contexts, communicator)
    progress = Progress(identity=identity_of(config, dataset))
    if saved:
        progress = go_on(saved, progress.identity, backbone, head)
    elif kept := set_aside(folder / "state"):
        print(f"starting anew; the training state of the run before is kept in {kept}", flush=True)
    progress.config = dataclasses.asdict(config)

    global_batch = config.per_batch_size * len(contexts) * communicator.size
    with make_loader(config, dataset, backbone, communicator, Position(progress.epoch, progress.offset),
                     saved.data() if saved else {}) as batches:
        log = TrainingLog(History(folder / "history.jsonl", progress.step), config.frequent, global_batch,
                          total_steps(config, math.inf if config.triplets else len(dataset) // global_batch),
                          progress.step)
        try:
            return Trainer(
                backbone, head, batches, StepSchedule(config.lr, config.lr_steps),
                make_verifier(config, backbone, dataset, len(contexts)),
                lambda number: save_checkpoint(Path(config.prefix), number, symbol,
                                               *with_centres(config, backbone, head)),
                lambda now: save_state(folder / "state", now, backbone.state(), head.shards, batches.state()),
                log, progress, config.verbose, config.state_every, config.ckpt, config.max_steps, config.end_epoch,
            ).run()
        finally:
            log.close()


def make_contexts(config: Config) -> list[Any]:
    """MXNet's contexts for the devices, once each GPU is known to be one that MXNet can use."""
    for kind, index in config.devices:
        if kind == "gpu":
            check_gpu(index)
    return [mx.Context(kind, index) for kind, index in config.devices]


def make_backbone(config: Config, symbol: mx.sym.Symbol, image_shape: tuple[int, int, int], contexts: list[Any],
                  communicator: Communicator) -> ReplicatedBackbone:
    """The backbone on every device, with parameters drawn from the seed or taken from ``--pretrained``."""
    height, width, channels = image_shape
    start = initialise(symbol, (channels, height, width), config.seed)
    if config.pretrained:
        path = f"{config.pretrained}-{config.pretrained_epoch:04d}.params"
        print(take_over(path, read_params(path), start), flush=True)
    if all(context.device_type == "cpu" for context in contexts):
        symbol = fast_prelu(symbol, (channels, height, width))
    return ReplicatedBackbone(symbol, *start, contexts, config.per_batch_size, (channels, height, width),
                              communicator, mu=config.mom, wd=config.wd, seed=config.seed)


def make_head(config: Config, num_classes: int, contexts: list[Any],
              communicator: Communicator) -> ShardedHead | TripletHead:
    """Class centres cut across the devices of all processes; ``train.py`` has them whole, softmax with a bias.

    A triplet loss has none.
    """
    if config.triplets:
        loss = TripletLoss(config.triplet_alpha, angular=config.loss_name == "atriplet")
        return TripletHead(loss, config.per_batch_size, communicator)
    margin, whole = margin_of(config), config.entry == "train"
    places = contexts[:1] if whole else contexts
    ranges = split_classes(num_classes, len(places) * communicator.size)[communicator.rank * len(places):]
    options: dict[str, Any] = {
        "normalised": margin.normalised, "scale": margin.scale, "sub_centres": config.loss_K, "seed": config.seed,
        "with_bias": whole and config.loss_name == "softmax" and not config.fc7_no_bias}
    shards: list[Shard] = [
        CpuShard(start, stop, config.emb_size, **options) if place.device_type == "cpu" else
        MxnetShard(place, start, stop, config.emb_size, **options) for place, (start, stop) in zip(places, ranges)]
    return ShardedHead(shards, margin, communicator, config.mom, config.wd, config.fc7_lr_mult, config.fc7_wd_mult,
                       ClassSampler(config.sample_ratio, config.seed))


def make_loader(config: Config, dataset: FaceDataset, backbone: ReplicatedBackbone, communicator: Communicator,
                start: Position, saved: Mapping[str, np.ndarray]) -> BatchLoader | TripletLoader:
    """This process's part of every batch from ``start`` on; ``saved``: the state of the loader that stood there."""
    size = config.per_batch_size * len(config.devices)
    part = (communicator.rank * size, (communicator.rank + 1) * size)
    augmentation = Augmentation(config.data_rand_mirror, int(config.data_cutoff), config.data_color)
    if config.triplets:
        bags = Bags(dataset, config.images_per_identity, config.triplet_bag_size, config.seed)
        return TripletLoader(dataset, bags, backbone.embed, augmentation, config.triplet_alpha, config.triplet_max_ap,
                             size * communicator.size, config.per_batch_size, part, start, saved,
                             config.decode_threads, PREFETCH, communicator.all_gather)
    order = EpochOrder(len(dataset), config.seed, shuffle=dataset.form != "shuffled")
    return BatchLoader(dataset, order, augmentation, size * communicator.size, part, start, config.decode_threads,
                       PREFETCH)


def make_verifier(config: Config, backbone: ReplicatedBackbone, dataset: FaceDataset, replicas: int) -> Verifier:
    sets = load_targets(dataset.path, config.val_targets, dataset.image_shape[:2])
    if not sets:
        print(f"{dataset.path}: no verification set there ({', '.join(config.val_targets)}: .bin)", flush=True)
    return Verifier(backbone.embed, sets, config.per_batch_size * replicas, Path(config.output_dir))


def with_centres(config: Config, backbone: ReplicatedBackbone,
                 head: ShardedHead | TripletHead) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What a checkpoint holds: the backbone, and W by its legacy names if ``ckpt_embedding`` is False."""
    parameters, auxiliary = backbone.parameters()
    if not config.ckpt_embedding:
        for i, shard in enumerate(head.shards):
            centres, _, bias, _ = shard.state()
            parameters["fc7_weight" if config.entry == "train" else f"fc7_{i}_weight"] = centres
            if config.entry == "train" and config.loss_name == "softmax" and not config.fc7_no_bias:
                parameters["fc7_bias"] = bias
    return parameters, auxiliary


def identity_of(config: Config, dataset: FaceDataset) -> dict[str, Any]:
    """What must not change when a run goes on: the shapes of its arrays and the order of its data."""
    return {"num_classes": dataset.num_classes, "images": len(dataset), "network": config.network,
            "emb_size": config.emb_size, "loss_K": config.loss_K, "seed": config.seed,
            "loss_name": config.loss_name}


def go_on(saved: SavedState, identity: dict[str, Any], backbone: ReplicatedBackbone,
          head: ShardedHead | TripletHead) -> Progress:
    """Fill backbone and head from a saved state, whatever number of shards wrote it; returns where it stood."""
    progress = saved.progress
    saved.require_identity(identity)
    backbone.load(saved.backbone(), progress.step)
    if isinstance(head, ShardedHead):
        head.steps = progress.step
    for shard in head.shards:
        shard.load(saved.rows(shard.start, shard.stop, identity["loss_K"]))
    print(f"going on after step {progress.step} from {saved.path}", flush=True)
    return progress


def total_steps(config: Config, batches_an_epoch: float) -> int | None:
    """Steps until the run ends; None if nobody knows, as with the legacy default, which never does."""
    by_epochs = config.end_epoch * batches_an_epoch if config.end_epoch < 10000 else math.inf
    total = min(config.max_steps or math.inf, by_epochs)
    return None if total == math.inf else int(total)
