# SPDX-License-Identifier: Apache-2.0
"""Saving of a checkpoint by all processes: the first one of those that share a folder saves the backbone, all of them
save their class centres."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recognition.engines.interface import Arrays, Backbone
from recognition.head.sharded import Head
from recognition.io.centres import begin_centres, disown_centres, named_centres, pair_centres, save_centres
from recognition.networks.graph import Graph
from recognition.networks.lora import merged
from recognition.processes.alike import Sharing
from recognition.processes.communicator import Communicator, barrier
from recognition.training.checkpoints.checkpoint import drop_checkpoints, save_checkpoint
from recognition.training.states.state import Progress

AVERAGE = "ema"  # the prefix of the average's checkpoints, beside the others
NUMBERED = (1, 2)  # values of --ckpt with which each checkpoint has a number of its own


@dataclass
class CheckpointSaver:
    """A callable that saves the checkpoint of a number; all processes call it together.

    A checkpoint holds the backbone, and W under its legacy names if ``with_centres``. A single process has all of W and
    writes it with the backbone; of several, each writes its rows, like Partial FC.
    """

    prefix: Path
    graph: Graph
    backbone: Backbone
    head: Head
    communicator: Communicator
    sharing: Sharing
    progress: Progress
    with_centres: bool
    whole: bool  # each process has all of W
    with_momentum: bool  # save the momentum of SGD beside W
    with_average: bool  # save the moving average of the backbone's weights, too, as a checkpoint of its own
    kept: int  # numbered checkpoints to keep beside the best; 0: all

    def __call__(self, number: int) -> None:
        folder, keeper, shards = self.prefix.parent, self.sharing.keeper, self.head.shards
        parameters, auxiliary = self._weights()
        with_centres = self.with_centres and bool(shards)
        apart = with_centres and not self.whole and self.communicator.size > 1
        if apart:
            if keeper:
                begin_centres(folder, self.communicator.size)
            barrier(self.communicator)  # the old files are marked as belonging to no checkpoint
        if with_centres:
            states = [shard.state() for shard in shards]
            centres = [state.centres for state in states]
            if apart:
                momentum = np.concatenate([state.momentum for state in states]) if self.with_momentum else None
                save_centres(folder, self.communicator.rank, np.concatenate(centres), momentum)
                barrier(self.communicator)  # all have written
            else:
                biases = [state.bias for state in states] if shards[0].with_bias else []
                parameters.update(named_centres(centres, biases, joined=self.whole))
        if keeper:
            saved = save_checkpoint(self.prefix, number, self.graph, parameters, auxiliary)
            if apart:
                pair_centres(folder, saved)
            else:
                disown_centres(folder)
            self._drop(self.prefix, number)
        if self.with_average:
            self._save_average(number)

    def _weights(self) -> tuple[Arrays, Arrays]:
        """Parameters of the checkpoint's network, into whose weights adapters are merged, and auxiliary states."""
        parameters, auxiliary = self.backbone.parameters()
        return merged(parameters), auxiliary

    def _save_average(self, number: int) -> None:
        prefix = self.prefix.with_name(AVERAGE)
        with self.backbone.averaged():
            parameters, auxiliary = self._weights()
        if self.sharing.keeper:
            save_checkpoint(prefix, number, self.graph, parameters, auxiliary)
            self._drop(prefix, number)

    def _drop(self, prefix: Path, number: int) -> None:
        if self.kept and number:
            drop_checkpoints(prefix, number, self.kept, self.progress.best_number)
