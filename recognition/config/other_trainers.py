# SPDX-License-Identifier: Apache-2.0
"""Keys that people bring from other trainers' configurations, and what is here instead."""
from __future__ import annotations

from collections.abc import Iterable

SECRETS = ("wandb_key",)  # keys whose values are neither kept nor shown
INSTEAD = {
    "batch_size": "per_batch_size, images of a device", "clip_gradient": "clip_norm, of all gradients together",
    "dali": "nothing, threads decode: decode_threads",
    "dali_aug": "data_resize_prob, data_blur_prob, data_hsv_prob, data_gray_prob", "embedding_size": "emb_size",
    "lr_step": "lr_steps, in batches or as 10e in epochs",
    "margin_list": "loss_m1, loss_m2 and loss_m3", "momentum": "mom", "num_epoch": "end_epoch",
    "num_image": "nothing, images are counted in the set", "output": "models_root", "rec": "dataset_path",
    "sample_rate": "sample_ratio", "save_all_states": "state_every",
    "save_artifacts": "nothing, checkpoints stay in the folder of the run",
    "step": "lr_steps, in batches or as 10e in epochs", "suffix_run_name": "extra_model_name",
    "using_wandb": "wandb, PROJECT or ENTITY/PROJECT",
    "wandb_key": "`wandb login`, or WANDB_API_KEY in the environment",
    "wandb_log_all": "nothing, the first process logs",
    "wandb_resume": "nothing, a run that goes on goes on there, too",
    "warmup_epoch": "warmup, as 2e in epochs", "weight_decay": "wd",
}


def instead(keys: Iterable[str]) -> str:
    """A text that names what stands here for those of ``keys`` that other trainers have; empty if there are none."""
    return "; ".join(f"instead of {key}: {INSTEAD[key]}" for key in keys if key in INSTEAD)
