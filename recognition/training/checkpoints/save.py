# SPDX-License-Identifier: Apache-2.0
"""Saving of a checkpoint by all processes: the first one saves the backbone, all of them save their class centres."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recognition.config.options import Config
from recognition.engines.mxnet.backbone import ReplicatedBackbone
from recognition.engines.mxnet.imports import mx
from recognition.head.shard import Shard
from recognition.head.sharded import ShardedHead
from recognition.head.triplet_head import TripletHead
from recognition.io.centres import begin_centres, disown_centres, pair_centres
from recognition.processes.communicator import Communicator, largest
from recognition.training.checkpoints.checkpoint import drop_checkpoints, save_centres, save_checkpoint

NUMBERED = (1, 2)  # values of --ckpt with which each checkpoint has a number of its own


def save_together(config: Config, number: int, best: int, symbol: mx.sym.Symbol, backbone: ReplicatedBackbone,
                  head: ShardedHead | TripletHead, communicator: Communicator) -> None:
    """Save a checkpoint: the backbone, and W under its legacy names if ``ckpt_embedding`` is False. Then remove the
    checkpoints that ``keep_ckpt`` does not keep, except number ``best``.

    A single process has all of W and writes it with the backbone; of several, each writes its rows, like Partial FC.
    """
    folder, first = Path(config.output_dir), communicator.rank == 0
    parameters, auxiliary = backbone.parameters()
    apart = bool(head.shards) and not config.ckpt_embedding and config.entry != "train" and communicator.size > 1
    if apart:
        if first:
            begin_centres(folder, communicator.size)
        largest(communicator, 0)  # a barrier: the old files are marked as belonging to no checkpoint
    if head.shards and not config.ckpt_embedding:
        states = [shard.state() for shard in head.shards]
        if config.entry == "train":
            parameters["fc7_weight"] = np.concatenate([state.centres for state in states])
            if head.shards[0].with_bias:
                parameters["fc7_bias"] = np.concatenate([state.bias for state in states])
        elif not apart:
            parameters.update({f"fc7_{i}_weight": state.centres for i, state in enumerate(states)})
        else:
            save_centres(folder, communicator.rank, np.concatenate([s.centres for s in states]),
                         np.concatenate([s.momentum for s in states]) if config.optimizer == "sgd" else None)
            largest(communicator, 0)  # a barrier: all have written
    if first:
        saved = save_checkpoint(Path(config.prefix), number, symbol, parameters, auxiliary)
        if apart:
            pair_centres(folder, saved)
        else:
            disown_centres(folder)
        if config.keep_ckpt and config.ckpt in NUMBERED and number:
            drop_checkpoints(Path(config.prefix), number, config.keep_ckpt, best)


def own_shards(head: ShardedHead | TripletHead, communicator: Communicator) -> Sequence[Shard]:
    """The shards that this process saves. If all processes hold the same ones, only the first saves them."""
    replicated = isinstance(head, ShardedHead) and head.replicas.size > 1
    return () if replicated and communicator.rank else head.shards
