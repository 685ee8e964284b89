# SPDX-License-Identifier: Apache-2.0
"""One run, from a checked configuration to the exit status."""
from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

from recognition.config.differences import as_json, changed_options
from recognition.config.options import Config
from recognition.config.presets import own_keys_line
from recognition.data.loader import BatchLoader
from recognition.data.order import Position
from recognition.data.triplets import TripletLoader
from recognition.engines.choose import choose_engine, decide_for
from recognition.engines.configured import build_network, with_own_size
from recognition.engines.interface import Backbone, Engine
from recognition.errors import UserError
from recognition.head.sharded import ShardedHead
from recognition.head.triplet_head import TripletHead
from recognition.io.files import discard_temporaries
from recognition.io.names import params_file
from recognition.networks.graph import Graph
from recognition.plan.this_run import memory_line
from recognition.processes.alike import (
    Sharing,
    find_sharing,
    first_line,
    gathered,
    one_folder,
    require_alike,
    require_shared,
    shared_options,
)
from recognition.processes.communicator import Communicator
from recognition.processes.environment import LAUNCH
from recognition.training.bad_steps import BadBags, BadSteps
from recognition.training.checkpoints.first_centres import start_centres
from recognition.training.checkpoints.save import NUMBERED, CheckpointSaver
from recognition.training.parts import (
    centres_source,
    identity_of,
    make_backbone,
    make_dataset,
    make_head,
    make_loader,
    make_log,
    make_schedule,
    make_teacher,
    make_verifier,
    places_of,
)
from recognition.training.run_folder import require_writable, sole_writer
from recognition.training.states.arcface_torch import ArcfaceTorchState, find_ranks
from recognition.training.states.find import find_state
from recognition.training.states.folder import Retention, claim, discard_unfinished, saved_states, set_aside
from recognition.training.states.save import save_state
from recognition.training.states.state import Progress, SavedState
from recognition.training.teacher import Distillation
from recognition.training.trainer import Trainer
from recognition.training.watch.lasting_output import LastingOutput
from recognition.training.watch.log import SilentLog
from recognition.training.watch.report import make_report
from recognition.training.watch.run_record import note_end, note_start
from recognition.training.watch.timeline import NoTimeline, Timeline


def train(config: Config) -> int:
    """Run the training that ``config`` asks for; returns the exit status.

    :raises UserError: on anything that the user can mend.
    """
    choice = decide_for(config)
    config, engine = with_own_size(replace(config, engine=choice.name)), choose_engine(choice.name)
    same_bits = engine.deterministic(config.devices) if config.deterministic else contextlib.nullcontext()
    with same_bits, engine.communicator(config.kvstore) as communicator, open(os.devnull, "w") as nowhere:
        first = communicator.rank == 0
        logging.basicConfig(level=logging.INFO if first else logging.WARNING)
        folder = Path(config.output_dir)
        if first or config.states_on == "hosts":
            require_writable(folder)
        with contextlib.redirect_stdout(LastingOutput(sys.stdout) if first else nowhere), (
                sole_writer(folder) if first else contextlib.nullcontext()):
            if choice.line:
                print(choice.line, flush=True)
            sharing = require_one_run(config, communicator)
            with sole_writer(folder) if sharing.keeper and not first else contextlib.nullcontext():
                return train_together(config, engine, communicator, sharing)


def train_together(config: Config, engine: Engine, communicator: Communicator, sharing: Sharing) -> int:
    """The work of each process. All verify, each its part of the images; the first logs, and saves all but shards."""
    folder, first = Path(config.output_dir), communicator.rank == 0
    saved = find_saved(config, communicator, sharing)
    engine.check_devices(config.devices)
    dataset = make_dataset(config, first)
    graph = build_network(config)
    teacher = make_teacher(config, engine, dataset)
    distillation = Distillation(teacher, config.distil_weight, communicator.size) if teacher else None
    require_alike(identity := identity_of(config, dataset, graph, teacher), communicator)

    if line := memory_line(config, graph, engine, dataset.num_classes, communicator.size):
        print(line, flush=True)
    file = params_file(config.pretrained, config.pretrained_epoch)
    checkpoint = Path(file) if config.pretrained and not saved else None
    backbone = make_backbone(config, graph, engine, communicator, checkpoint)
    verifier = make_verifier(config, backbone, dataset, communicator)
    head = make_head(config, dataset.num_classes, engine, communicator)
    progress = Progress(identity=identity)
    if saved:
        progress = go_on(saved, config, identity, backbone, head, communicator)
    elif line := start_centres(centres_source(config), checkpoint, dataset, head.shards, backbone.embed, communicator):
        print(line, flush=True)
    progress.config = as_json(config)

    global_batch = config.device_batch * len(config.devices) * communicator.size
    batches_an_epoch = math.inf if config.triplets else dataset.order(config.seed).num_images // global_batch
    schedule = make_schedule(config, batches_an_epoch)
    bad_steps = BadSteps(folder, communicator, backbone, head, config.on_nan == "skip")
    with make_loader(config, dataset, backbone, communicator, Position(progress.epoch, progress.offset),
                     saved.data() if saved else {}, BadBags(bad_steps, schedule, progress)) as batches:
        if sharing.keeper:
            begin_folder(folder, config.state_every > 0, anew=not saved)
        log = (make_log(config, progress, global_batch, batches_an_epoch, backbone.loss_scale,
                        distillation.measured if distillation else dict) if first else SilentLog())
        if first:
            note_start(folder, progress.config, progress.step, communicator.size)
        own = () if config.whole_head and not first else head.shards  # if all hold the same, the first saves

        def save(now: Progress) -> None:
            now.margin = head.running()
            save_state(folder / "state", now, backbone.state(), own, batches.state(), communicator,
                       Retention(config.keep_last, config.keep_every, bool(config.keep_best)), sharing)

        profiled, status = first and config.profile > 0, 1
        try:
            status = Trainer(
                backbone=backbone, head=head, batches=batches, schedule=schedule, verify=verifier,
                save_checkpoint=make_saver(config, graph, backbone, head, communicator, sharing, progress),
                save_state=save, communicator=communicator, bad_steps=bad_steps, log=log, progress=progress,
                verbose=config.verbose, state_every=config.state_every, keep_best=bool(config.keep_best),
                ckpt=config.ckpt, max_steps=config.max_steps, end_epoch=config.end_epoch,
                timeline=Timeline(folder, config.profile, engine.profiler()) if profiled else NoTimeline(),
                measure_every=config.measure_every, distillation=distillation,
                look_ahead=look_ahead(head, batches) if config.sample_ratio < 1 else None,
                copy_ahead=copy_ahead(backbone, batches),
            ).run()
        finally:
            log.close(status)
            if dataset.bad:
                logging.warning("%s: %s", dataset.path, dataset.bad)
    if first:
        print(report_line(folder, progress, status), flush=True)
    return status


def require_one_run(config: Config, communicator: Communicator) -> Sharing:
    """Check that all processes are of one run; returns which of them share its folder.

    :raises UserError: if processes differ, or do not share the folder and ``--states-on`` does not say so.
    """
    folder = Path(config.output_dir)
    if line := own_keys_line(config):
        print(line, flush=True)
    if communicator.rank == 0:
        places_of(config).require()
    require_alike(shared_options(as_json(config)), communicator)
    if config.states_on == "shared" or communicator.size == 1:
        require_shared(folder, communicator)
        return one_folder(communicator)
    sharing = find_sharing(folder, communicator)
    if not sharing.together:
        hosts = ", ".join(sharing.hosts[first] for first in sorted(set(sharing.firsts)))
        print(f"each of {hosts} keeps its own part of the states: python -m common.gather_states puts them together",
              flush=True)
    return sharing


def find_saved(config: Config, communicator: Communicator, sharing: Sharing) -> SavedState | ArcfaceTorchState | None:
    """Tidy the run's folder, and find the state to go on from, if any.

    :raises UserError: if no run can go on from the state.
    """
    folder, theirs = Path(config.output_dir), Path(config.models_root)
    if sharing.keeper:
        discard_temporaries(folder)
        discard_unfinished(folder / "state")
    if (config.resume and sharing.together and not saved_states(folder / "state")
            and (ranks := find_ranks(theirs))):
        return ArcfaceTorchState(theirs, ranks)
    return find_state(folder / "state", config.resume, os.environ.get(LAUNCH, ""), communicator, sharing)


def begin_folder(folder: Path, saves_states: bool, anew: bool) -> None:
    """Make room for the states of this run, in the first process: set those of an earlier run aside."""
    launch = os.environ.get(LAUNCH, "")
    if saves_states and anew and (line := set_aside(folder / "state")):
        print(line, flush=True)
    if saves_states and launch:
        claim(folder / "state", launch)


def go_on(saved: SavedState | ArcfaceTorchState, config: Config, identity: dict[str, Any], backbone: Backbone,
          head: ShardedHead | TripletHead, communicator: Communicator) -> Progress:
    """Fill backbone and head from a saved state of any number of shards; returns its progress.

    :raises UserError: if the state is of a run with another identity, or of another network, or if shards are missing.
    """
    progress = saved.progress
    saved.require_identity(identity)
    mine = [(shard.start, shard.stop) for shard in head.shards]
    if line := first_line(saved.absent(mine), communicator):
        raise UserError(f"--resume: {line}")
    shards = len({tuple(pair) for own in gathered(mine, communicator) for pair in own})
    if saved.shards != shards:
        print(f"W, saved in {saved.shards} shards, is cut anew into {shards}", flush=True)
    state = saved.backbone()
    if difference := backbone.difference(state):
        raise UserError(f"--resume: {saved.path} is of a network of other options than this run's: {difference}")
    backbone.load(state, progress.step)
    head.go_on(progress.step, progress.margin)
    for shard in head.shards:
        saved.fill(shard, identity["loss_K"])
    print(f"going on after step {progress.step} from {saved.path}", flush=True)
    if changed := changed_options(progress.config, config):
        print(f"changed since then: {', '.join(changed)}", flush=True)
    return progress


def make_saver(config: Config, graph: Graph, backbone: Backbone, head: ShardedHead | TripletHead,
               communicator: Communicator, sharing: Sharing, progress: Progress) -> CheckpointSaver:
    """The saver of checkpoints, which hold and keep what the configuration says."""
    return CheckpointSaver(
        Path(config.prefix), graph, backbone, head, communicator, sharing, progress,
        with_centres=not config.ckpt_embedding, whole=config.whole_head, with_momentum=config.optimizer == "sgd",
        with_average=config.ema > 0, kept=config.keep_ckpt if config.ckpt in NUMBERED else 0)


def look_ahead(head: ShardedHead | TripletHead,
               batches: BatchLoader | TripletLoader) -> Callable[[], None] | None:
    """A function that tells the head before a step the labels of the batch after that one; None if it needs none."""
    if not isinstance(head, ShardedHead) or not isinstance(batches, BatchLoader):
        return None
    known, loader = head, batches
    return lambda: known.expect(loader.labels_ahead())


def copy_ahead(backbone: Backbone, batches: BatchLoader | TripletLoader) -> Callable[[], None] | None:
    """A function that tells the backbone of the next batch's images, if they are decoded; None for triplets."""
    if not isinstance(batches, BatchLoader):
        return None
    loader = batches

    def tell() -> None:
        if (images := loader.coming()) is not None:
            backbone.coming(images)

    return tell


def report_line(folder: Path, progress: Progress, status: int) -> str:
    """Make the report of a run that has ended; returns a line with its place or the error. It never breaks the run."""
    try:
        note_end(folder, progress.step, progress.epoch, status)
        return f"report: {make_report(folder)}"
    except Exception as error:
        return f"no report: {error}"
