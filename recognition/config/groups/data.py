# SPDX-License-Identifier: Apache-2.0
"""Options of the command, its presets, and the data."""
from __future__ import annotations

from dataclasses import dataclass

from recognition.config import types
from recognition.config.groups.option import ENTRIES, PARALL, option


@dataclass(frozen=True)
class DataOptions:
    """The options of the images: their sets, and augmentation."""

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
