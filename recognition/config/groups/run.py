# SPDX-License-Identifier: Apache-2.0
"""Options of the run: its start, updates, processes, states and records."""
from __future__ import annotations

from dataclasses import dataclass

from recognition.config import types
from recognition.config.devices import CPU, Device
from recognition.config.groups.option import ENTRIES, PARALL_ONLY, option

DISTIL_WEIGHT = 10.0
NO_END = 10000  # the legacy default of end_epoch: such a run goes on until it is stopped


@dataclass(frozen=True)
class RunOptions:
    """The options of training: devices, steps, optimiser, and what is kept."""

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
