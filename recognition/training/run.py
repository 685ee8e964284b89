# SPDX-License-Identifier: Apache-2.0
"""From a checked configuration to a run: makes the parts that the loop works with, and puts them together."""
from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from recognition.config.differences import as_json, changes
from recognition.config.options import Config
from recognition.config.presets import about_own_keys
from recognition.data.augment import Augmentation
from recognition.data.dataset import FaceDataset, open_dataset
from recognition.data.loader import BatchLoader
from recognition.data.order import EpochOrder, Position
from recognition.data.triplets import Bags, Judge, TripletLoader, refuse
from recognition.engines.cpu.shard import CpuShard
from recognition.engines.mxnet.backbone import ReplicatedBackbone
from recognition.engines.mxnet.imports import check_gpu, mx
from recognition.engines.mxnet.passes.choose import introduction, make_loss_scale, prepare
from recognition.engines.mxnet.processes import LAUNCH, make_communicator
from recognition.engines.mxnet.shard import MxnetShard
from recognition.errors import UserError
from recognition.head.margin import margin_of
from recognition.head.sampling import ClassSampler
from recognition.head.shard import Shard, split_classes
from recognition.head.sharded import ShardedHead
from recognition.head.triplet_head import TripletHead
from recognition.head.triplet_loss import TripletLoss
from recognition.io.files import discard_temporaries
from recognition.networks import build_symbol, first_weights
from recognition.networks.initialise import initialise
from recognition.optim.adamw import adamw_of
from recognition.optim.factors import Rates
from recognition.optim.schedule import make_schedule, total_steps
from recognition.processes.alike import require_alike, require_shared, shared_options
from recognition.processes.communicator import Communicator, SingleProcess, largest
from recognition.training.bad_steps import BadBags, BadSteps
from recognition.training.checkpoints.first_centres import start_centres
from recognition.training.checkpoints.matching import advice
from recognition.training.checkpoints.pretrained import checkpoint_path, read_params, take_over
from recognition.training.checkpoints.save import own_shards, save_together
from recognition.training.run_folder import require_writable, sole_writer
from recognition.training.states.find import find_state
from recognition.training.states.folder import Retention, claim, discard_unfinished, set_aside
from recognition.training.states.save import save_state
from recognition.training.states.state import Progress, SavedState
from recognition.training.trainer import Trainer
from recognition.training.verify import Verifier, load_targets, shared
from recognition.training.watch.events import FOLDER, EventFile, require_tensorboard
from recognition.training.watch.history import History
from recognition.training.watch.lasting_output import LastingOutput
from recognition.training.watch.log import SilentLog, TrainingLog
from recognition.training.watch.report import make_report
from recognition.training.watch.run_record import note_end, note_start
from recognition.training.watch.timeline import NoTimeline, Timeline

PREFETCH = 3  # batches decoded ahead


def train(config: Config) -> int:
    """Run the training that ``config`` asks for; returns the exit status.

    :raises UserError: on anything that the user can mend.
    """
    with make_communicator(config.kvstore) as communicator, open(os.devnull, "w") as nowhere:
        first = communicator.rank == 0
        logging.basicConfig(level=logging.INFO if first else logging.WARNING)
        folder = Path(config.output_dir)
        if first:
            require_writable(folder)
        with contextlib.redirect_stdout(LastingOutput(sys.stdout) if first else nowhere), (
                sole_writer(folder) if first else contextlib.nullcontext()):
            return train_together(config, communicator)


def train_together(config: Config, communicator: Communicator) -> int:
    """What each process does. All verify, each its part of the images; the first says and saves what is not a shard."""
    folder, first = Path(config.output_dir), communicator.rank == 0
    if line := about_own_keys(config):
        print(line, flush=True)
    if first:
        discard_temporaries(folder)
        discard_unfinished(folder / "state")
        if config.tensorboard:
            require_tensorboard()
    require_alike(shared_options(config), communicator)
    require_shared(folder, communicator)
    launch = os.environ.get(LAUNCH, "")
    saved = find_state(folder / "state", config.resume, launch, communicator)
    contexts = make_contexts(config)
    dataset = make_dataset(config)
    require_alike(identity := identity_of(config, dataset), communicator)
    symbol = build_symbol(config)
    checkpoint = None if saved or not config.pretrained else checkpoint_path(config.pretrained, config.pretrained_epoch)
    backbone = make_backbone(config, symbol, dataset.image_shape, contexts, communicator, checkpoint)
    verifier = make_verifier(config, backbone, dataset, communicator)
    head = make_head(config, dataset.num_classes, contexts, communicator)
    progress = Progress(identity=identity)
    if saved:
        progress = go_on(saved, progress.identity, config, backbone, head)
    if line := "" if saved else start_centres(config, checkpoint, dataset, head.shards, backbone.embed, communicator):
        print(line, flush=True)
    progress.config = as_json(config)

    global_batch = config.per_batch_size * len(contexts) * communicator.size
    batches_an_epoch = math.inf if config.triplets else len(dataset) // global_batch
    schedule = make_schedule(config, batches_an_epoch)
    bad_steps = BadSteps(folder, communicator, backbone, head, config.on_nan == "skip")
    with make_loader(config, dataset, backbone, communicator, Position(progress.epoch, progress.offset),
                     saved.data() if saved else {}, BadBags(bad_steps, schedule, progress)) as batches:
        if first and not saved and config.state_every and (line := set_aside(folder / "state")):
            print(line, flush=True)
        if first and launch and config.state_every:
            claim(folder / "state", launch)
        log = SilentLog() if not first else TrainingLog(
            History(folder / "history.jsonl", progress.step), config.frequent, global_batch,
            total_steps(config, batches_an_epoch), progress.step, config.ce_loss,
            progress.since_line, EventFile(folder / FOLDER, progress.step) if config.tensorboard else None)
        if first:
            note_start(folder, config, progress.step, communicator.size)
        try:
            status = Trainer(
                backbone, head, batches, schedule, verifier,
                lambda number: save_together(config, number, progress.best_number, symbol, backbone, head,
                                             communicator),
                lambda now: save_state(folder / "state", now, backbone.state(), own_shards(head, communicator),
                                       batches.state(), communicator,
                                       Retention(config.keep_last, config.keep_every, bool(config.keep_best))),
                lambda number: largest(communicator, number),
                bad_steps, log, progress, config.verbose, config.state_every, bool(config.keep_best), config.ckpt,
                config.max_steps, config.end_epoch,
                Timeline(folder, config.profile) if first and config.profile else NoTimeline(),
                config.tensorboard_every if config.tensorboard else 0,
            ).run()
        finally:
            log.close()
            if dataset.bad:
                logging.warning("%s: %s", dataset.path, dataset.bad)
    if first:
        print(report_line(folder, progress, status), flush=True)
    return status


def report_line(folder: Path, progress: Progress, status: int) -> str:
    """Make the report of a run that has ended; says where it is, or why there is none. It must not break the run."""
    try:
        note_end(folder, progress.step, progress.epoch, status)
        return f"report: {make_report(folder)}"
    except Exception as error:
        return f"no report: {error}"


def make_dataset(config: Config) -> FaceDataset:
    """The training set, once it goes with the configuration."""
    dataset = open_dataset(config.dataset_path, config.is_shuffled_rec, config.data_images_filter,
                           config.on_bad_record, config.bad_record_share)
    if config.num_classes not in (0, dataset.num_classes):
        print(f"{dataset.path}: {dataset.num_classes} identities by its property file; the preset's "
              f"{config.num_classes} are not used", flush=True)
    require_same_size(config, dataset)
    dataset.check_labels()
    return dataset


def require_same_size(config: Config, dataset: FaceDataset) -> None:
    """:raises UserError: if the images of the set are not of the size that the network is built for."""
    if config.image_shape != dataset.image_shape:
        built, found = ("x".join(map(str, shape)) for shape in (config.image_shape, dataset.image_shape))
        raise UserError(f"image_shape: found {built}, but {dataset.path / 'property'} says {found}, expected the same; "
                        "set image_shape in the dataset preset or mend the property file")


def make_contexts(config: Config) -> list[Any]:
    """MXNet's contexts for the devices, once each GPU is known to be one that MXNet can use."""
    for kind, index in config.devices:
        if kind == "gpu":
            check_gpu(index)
    return [mx.Context(kind, index) for kind, index in config.devices]


def make_backbone(config: Config, symbol: mx.sym.Symbol, image_shape: tuple[int, int, int], contexts: list[Any],
                  communicator: Communicator, checkpoint: Path | None = None) -> ReplicatedBackbone:
    """The backbone on every device, with parameters drawn from the seed or taken from a checkpoint."""
    height, width, channels = image_shape
    for line in introduction(config, symbol, (channels, height, width)):
        print(line, flush=True)
    start = initialise(symbol, (channels, height, width), config.seed, first_weights(config.net_name))
    if checkpoint:
        print(take_over(checkpoint, read_params(checkpoint), start, lambda shapes: advice(shapes, config)), flush=True)
    rates = partial(Rates, freeze=config.freeze, freeze_steps=config.freeze_steps, factors=config.lr_factor,
                    needed=config.triplets or config.fc7_lr_mult == 0)
    return ReplicatedBackbone(prepare(symbol, config, (channels, height, width)), *start, contexts,
                              config.per_batch_size, (channels, height, width), communicator, mu=config.mom,
                              wd=config.wd, seed=config.seed, rates=rates, loss_scale=make_loss_scale(config),
                              adamw=adamw_of(config), leaves_out=config.on_nan == "skip")


def make_head(config: Config, num_classes: int, contexts: list[Any],
              communicator: Communicator) -> ShardedHead | TripletHead:
    """Class centres cut across the devices of all processes; a triplet loss has none.

    ``train.py`` has all of them in each process, cut across its devices, and a bias with softmax.
    """
    if config.triplets:
        loss = TripletLoss(config.triplet_alpha, angular=config.loss_name == "atriplet")
        return TripletHead(loss, config.per_batch_size, communicator)
    margin, whole = margin_of(config), config.entry == "train"
    across, replicas = (SingleProcess(), communicator) if whole else (communicator, SingleProcess())
    ranges = split_classes(num_classes, len(contexts) * across.size)[across.rank * len(contexts):]
    options: dict[str, Any] = {
        "normalised": margin.normalised, "scale": margin.scale, "sub_centres": config.loss_K, "seed": config.seed,
        "with_bias": has_bias(config),
        "ceiling": config.interclass_filtering_threshold * margin.scale or math.inf}
    on_host = config.centers_on == "cpu"
    shards: list[Shard] = [  # all of W would have to travel in each step: then the host computes, too
        CpuShard(start, stop, config.emb_size, **options)
        if place.device_type == "cpu" or (on_host and config.sample_ratio == 1) else
        MxnetShard(place, start, stop, config.emb_size, on_host=on_host, **options)
        for place, (start, stop) in zip(contexts, ranges)]
    return ShardedHead(shards, margin, across, config.mom, config.wd, config.fc7_lr_mult, config.fc7_wd_mult,
                       ClassSampler(config.sample_ratio, config.seed), replicas=replicas, adamw=adamw_of(config))


def make_loader(config: Config, dataset: FaceDataset, backbone: ReplicatedBackbone, communicator: Communicator,
                start: Position, saved: Mapping[str, np.ndarray],
                judge: Judge = refuse) -> BatchLoader | TripletLoader:
    """This process's part of every batch from ``start`` on; ``saved``: the state of the loader that stood there."""
    size = config.per_batch_size * len(config.devices)
    part = (communicator.rank * size, (communicator.rank + 1) * size)
    augmentation = Augmentation(config.data_rand_mirror, int(config.data_cutoff), config.data_color)
    if config.triplets:
        bags = Bags(dataset, config.images_per_identity, config.triplet_bag_size, config.seed)
        return TripletLoader(dataset, bags, backbone.embed, augmentation, config.triplet_alpha, config.triplet_max_ap,
                             size * communicator.size, config.per_batch_size, part, start, saved,
                             config.decode_threads, PREFETCH, communicator.all_gather, judge)
    order = EpochOrder(len(dataset), config.seed, shuffle=dataset.form != "shuffled")
    return BatchLoader(dataset, order, augmentation, size * communicator.size, part, start, config.decode_threads,
                       PREFETCH)


def make_verifier(config: Config, backbone: ReplicatedBackbone, dataset: FaceDataset,
                  communicator: Communicator) -> Verifier:
    sets = load_targets(dataset.path, config.val_targets, dataset.image_shape[:2])
    if not sets:
        looked_for = ", ".join(f"{target}.bin" for target in config.val_targets)
        print(f"{dataset.path}: no verification set there (looked for {looked_for})", flush=True)
    images = config.per_batch_size * len(config.devices) * communicator.size
    return Verifier(shared(backbone.embed, communicator), sets, images,
                    Path(config.output_dir) if communicator.rank == 0 else None)


def identity_of(config: Config, dataset: FaceDataset) -> dict[str, Any]:
    """What must not change when a run goes on: the shapes of its arrays and the order of its data."""
    return {"num_classes": dataset.num_classes, "images": len(dataset), "records": dataset.digest(),
            "network": config.network, "emb_size": config.emb_size, "loss_K": config.loss_K, "seed": config.seed,
            "loss_name": config.loss_name, "bias": has_bias(config), "optimizer": config.optimizer}


def has_bias(config: Config) -> bool:
    """Whether the class centres have a bias: softmax in ``train.py`` alone, as ever."""
    return config.entry == "train" and config.loss_name == "softmax" and not config.fc7_no_bias


def go_on(saved: SavedState, identity: dict[str, Any], config: Config, backbone: ReplicatedBackbone,
          head: ShardedHead | TripletHead) -> Progress:
    """Fill backbone and head from a saved state, whatever number of shards wrote it; returns where it stood."""
    progress = saved.progress
    saved.require_identity(identity)
    state = saved.backbone()
    if difference := backbone.difference(state):
        raise UserError(f"--resume: {saved.path} is of a network of other options than this run's: {difference}")
    backbone.load(state, progress.step)
    if isinstance(head, ShardedHead):
        head.steps = progress.step
    for shard in head.shards:
        saved.fill(shard, identity["loss_K"])
    print(f"going on after step {progress.step} from {saved.path}", flush=True)
    if changed := changes(progress.config, config):
        print(f"changed since then: {', '.join(changed)}", flush=True)
    return progress


