# SPDX-License-Identifier: Apache-2.0
"""Reader of arcface_torch's config files (``configs/ms1mv3_r50.py``): one EasyDict ``config``, laid over that of
``base.py`` beside it, as arcface_torch's ``get_config`` does. It becomes presets of our own form.

What its ``train_v2.py`` fixes is set, too: scale 64, no dropout, a polynomial of power 1, the backbone's gradients
clipped to a norm of 5, and a derivative of the target's logit that does not go through the margin.
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from recognition.config.easy_dict import EasyDict
from recognition.config.options import OPTIONS, check
from recognition.config.types import nearest
from recognition.config.user_code import run_file
from recognition.errors import UserError

# What arcface_torch's own configs/base.py sets, for files without one beside them.
BASE: dict[str, Any] = {
    "margin_list": (1.0, 0.5, 0.0), "network": "r50", "resume": False, "save_all_states": False,
    "output": "ms1mv3_arcface_r50", "embedding_size": 512, "sample_rate": 1, "interclass_filtering_threshold": 0,
    "fp16": False, "batch_size": 128, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4,
    "verbose": 2000, "frequent": 10, "dali": False, "dali_aug": False, "gradient_acc": 1, "seed": 2048,
    "num_workers": 2, "wandb_key": "X" * 40, "suffix_run_name": None, "using_wandb": False, "wandb_entity": "entity",
    "wandb_project": "project", "wandb_log_all": True, "save_artifacts": False, "wandb_resume": False,
}
# Keys that have another name here; what has the same name and meaning is taken as it is.
RENAMED = {"batch_size": "per_batch_size", "embedding_size": "emb_size", "momentum": "mom", "num_epoch": "end_epoch",
           "output": "models_root", "sample_rate": "sample_ratio", "weight_decay": "wd"}
SAME = ("fp16", "frequent", "interclass_filtering_threshold", "lr", "num_classes", "optimizer", "seed", "val_targets",
        "verbose")
READ = ("gradient_acc", "margin_list", "network", "num_epoch", "rec", "resume", "warmup_epoch", "num_workers",
        "save_all_states", "using_wandb", "wandb_entity", "wandb_project")
NEEDED = ("margin_list", "network", "rec", "num_epoch")
# Keys that change what is learnt and that nothing here does, with the value that asks for nothing, and what to do.
REFUSED = {
    "decay_epoch": (None, "of arcface_torch before PolynomialLRWarmup, whose rates are for 512 images: write the run "
                    "as flags, --lr-steps 10e,16e"),
    "loss": (None, "of arcface_torch before margin_list: (1.0, 0.5, 0.0) is arcface, (1.0, 0.0, 0.4) cosface"),
}
# What dali_aug does, which its DALI pipeline alone reads: shares of the images.
DALI_AUG = {"data_resize_prob": 0.1, "data_blur_prob": 0.2, "data_hsv_prob": 0.2, "data_gray_prob": 0.1}
SYNTHETIC = "synthetic"  # a value of rec: images of noise
SCALE = 64.0  # written in train_v2.py
CLIP = 5.0  # there, too: the largest norm of the backbone's gradients
LEAST_SHARE = 1e-12  # of class centres, for sample_rate 0: a step has those of its batch alone
# Its networks. IResNet is fresnet without dropout before the embedding.
NETWORKS: dict[str, dict[str, Any]] = {
    f"r{depth}": {"net_name": "fresnet", "num_layers": layers, "net_output": "FC"} for depth, layers in
    ((18, 18), (34, 34), (50, 50), (100, 100), (200, 198), (2060, 2060))
}
NETWORKS["mbf"] = {"net_name": "mbf", "net_multiplier": 2.0, "net_blocks": (1, 4, 6, 2)}
NETWORKS["mbf_large"] = {"net_name": "mbf", "net_multiplier": 4.0, "net_blocks": (2, 8, 12, 4)}


def _vit(width: int, blocks: int, drop_path: float, mask_ratio: float) -> dict[str, Any]:
    return {"net_name": "vit", "net_multiplier": width / 512, "num_layers": blocks, "net_drop_path": drop_path,
            "net_mask_ratio": mask_ratio}


# A mask is a tenth of the patches wherever there is one, also in those named after 0.05: vit.py does not hand it on.
NETWORKS.update({
    "vit_t": _vit(256, 12, 0.1, 0.1), "vit_t_dp005_mask0": _vit(256, 12, 0.05, 0.0),
    "vit_s": _vit(512, 12, 0.1, 0.1), "vit_s_dp005_mask_0": _vit(512, 12, 0.05, 0.0),
    "vit_b": _vit(512, 24, 0.1, 0.1), "vit_b_dp005_mask_005": _vit(512, 24, 0.05, 0.1),
    "vit_l_dp005_mask_005": _vit(768, 24, 0.05, 0.1), "vit_h": _vit(1024, 48, 0.1, 0.0),
})


def is_of_arcface_torch(module: ModuleType) -> bool:
    """True for the module of a file of arcface_torch's form: its ``config`` names the network, and there are no
    presets."""
    config = getattr(module, "config", None)
    presets = any(hasattr(module, name) for name in ("network", "dataset", "loss", "default", "generate_config"))
    return isinstance(config, Mapping) and not presets and bool({"network", "rec", "margin_list"} & config.keys())


def find_file(named: str) -> Path:
    """The path of a config file; arcface_torch's commands name theirs without the ending, too."""
    path = Path(named)
    return path.with_name(path.name + ".py") if not path.is_file() and path.suffix != ".py" else path


def as_presets(module: ModuleType, path: Path, name: str) -> Any:
    """The contents of a config.py of our form: ``config``, ``default``, ``network``, ``dataset``, ``loss`` and
    ``generate_config``. ``name`` is the file's name in messages.

    :raises UserError: if a key is missing, has no valid value, or asks for what is not here.
    """
    values = {**_base(path), **module.config}
    if values["sample_rate"] == 0:
        values["sample_rate"] = LEAST_SHARE
    if values.get("output") is None:
        values["output"] = str(Path("work_dirs") / path.stem)
    for key in NEEDED:
        if values.get(key) is None:
            raise UserError(f"{name}: found no {key}, expected one, as arcface_torch's configs/ms1mv3_r50.py has it")
    for key, (nothing, reason) in REFUSED.items():
        if values.get(key, nothing) != nothing:
            raise UserError(f"{name}: {key}: found {values[key]!r}, but {reason}")
    default = {ours: _checked(name, theirs, ours, values[theirs])
               for theirs, ours in {**RENAMED, **{key: key for key in SAME}}.items() if theirs in values}
    default.update(_schedule(values, name), **_updates(default, values, name),
                   resume="yes" if values["resume"] else "")
    if values["using_wandb"]:
        owner = [values["wandb_entity"]] if values["wandb_entity"] not in (None, BASE["wandb_entity"]) else []
        default["wandb"] = "/".join(map(str, [*owner, values["wandb_project"]]))
    if values["num_workers"] != BASE["num_workers"]:
        default["decode_threads"] = _checked(name, "num_workers", "decode_threads", values["num_workers"])
    loss, margin = _loss(values["margin_list"], name)
    if values["dali"] and values["dali_aug"]:
        default.update(DALI_AUG)
    dataset, place = _dataset(values, name)
    presets = SimpleNamespace(
        default=EasyDict(default, network=_network(values["network"], name), dataset=dataset, loss=loss),
        network=EasyDict(NETWORKS), dataset=EasyDict({dataset: place}), loss=EasyDict({loss: margin}),
        config=EasyDict(_left(values)))

    def generate_config(network: str, dataset: str, loss: str) -> None:
        for preset in (presets.loss[loss], presets.network[network], presets.dataset[dataset]):
            presets.config.update(preset)

    presets.generate_config = generate_config
    return presets


def _base(path: Path) -> dict[str, Any]:
    """The values that a file is laid over: those of the base.py beside it, else of arcface_torch's own."""
    base = path.parent / "base.py"
    if not base.is_file() or base.samefile(path):
        return dict(BASE)
    found = getattr(run_file(base, str(base)), "config", None)
    if not isinstance(found, Mapping):
        raise UserError(f"{base}: found no EasyDict named config, expected the defaults of the files beside it")
    return {**BASE, **found}


def _checked(name: str, theirs: str, ours: str, value: Any) -> Any:
    return check(ours, value, f"{name}: {theirs}")


def _dataset(values: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """The name and the preset of the data set: a folder of records or of folders of images, or what is made up."""
    rec = _checked(name, "rec", "dataset_path", values["rec"])
    if rec != SYNTHETIC:
        return Path(rec).name, {"dataset_path": rec}
    classes = _checked(name, "num_classes", "num_classes", values.get("num_classes", 0))
    if not classes:
        raise UserError(f"{name}: num_classes: found none, expected the number of identities that rec 'synthetic' "
                        "makes up")
    return f"{SYNTHETIC}-{classes}", {"dataset_path": f"{SYNTHETIC}:{classes}"}


def _network(network: Any, name: str) -> str:
    if network in NETWORKS:
        return str(network)
    raise UserError(f"{name}: network: found {network!r}, expected one of {', '.join(NETWORKS)}"
                    f"{nearest(network, NETWORKS)}")


def _loss(margins: Any, name: str) -> tuple[str, dict[str, Any]]:
    """The name and the preset of a loss by (m1, m2, m3). arcface_torch computes two forms, and knows no other: with m3
    above 0 it leaves out m1 and m2."""
    try:
        m1, m2, m3 = (float(margin) for margin in margins)
    except (TypeError, ValueError):
        m1 = m2 = m3 = -1.0
    preset = {"loss_name": "margin_softmax", "loss_s": SCALE, "loss_m1": 1.0, "loss_m2": m2, "loss_m3": m3,
              "target_gradient": "straight_through"}
    if m1 == 1 and m2 >= 0 and m3 == 0:
        return "arcface", preset
    if m1 == 1 and m2 == 0 and m3 > 0:
        return "cosface", preset
    raise UserError(f"{name}: margin_list: found {margins!r}, expected (1.0, m2, 0.0) or (1.0, 0.0, m3), which "
                    "arcface_torch computes; others are presets of sample_config.py, such as combined")


def _schedule(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """PolynomialLRWarmup. A warm-up of less than no epoch, as in 3millions.py, is none."""
    warmup = values.get("warmup_epoch", 0)
    if isinstance(warmup, (int, float)):
        warmup = f"{warmup:g}e" if warmup > 0 else 0
    return {"lr_schedule": "polynomial", "lr_power": 1.0, "warmup": _checked(name, "warmup_epoch", "warmup", warmup)}


def _updates(default: Mapping[str, Any], values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Accumulation and clipping. There the gradients of ``gradient_acc`` batches are added, here their mean is taken:
    the same updates need the other numbers so much larger or smaller."""
    times = _checked(name, "gradient_acc", "gradient_acc", values["gradient_acc"])
    found = {"gradient_acc": times, "clip_norm": CLIP / times}
    if default["optimizer"] == "sgd":
        return {**found, "lr": default["lr"] * times, "wd": default["wd"] / times}
    return {**found, "adam_eps": OPTIONS["adam_eps"].default / times}


def _left(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ours that arcface_torch has not, and keys that nothing here reads and that ask for something: for another
    value than that of arcface_torch's base."""
    known = {*RENAMED, *SAME, *READ, *REFUSED, *(["dali_aug"] if values["dali"] else [])}
    return {key: value for key, value in values.items()
            if key not in known and not (key in BASE and value == BASE[key])}
