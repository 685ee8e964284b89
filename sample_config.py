# SPDX-License-Identifier: Apache-2.0
"""Presets and defaults of train.py and train_parall.py: copy this file to config.py and edit the copy.

--loss, --network and --dataset choose presets; generate_config lays them, in this order, over ``config``, and over
``default`` for the keys that it has. Flags go over all. Other keys that you may set: docs/options.md.
"""
import os

from easydict import EasyDict as edict

# Options of every run that a preset does not change.
config = edict()

config.bn_mom = 0.9                # momentum of batch norm's running mean and variance
config.workspace = 256             # MB a convolution may use
config.emb_size = 512              # length of an embedding
config.net_se = 0                  # 1: squeeze and excitation
config.net_act = "prelu"           # or relu
config.net_unit = 3                # version of the residual unit: 1, 2, 3
config.net_input = 1               # version of the first layers: 0, 1, 2
config.net_blocks = [1, 4, 6, 2]   # blocks in each stage of fmobilefacenet
config.net_output = "E"            # version of the last layers: E F G H I J Z FC SFC GAP GNAP GDC
config.net_multiplier = 1.0        # factor of the number of channels
config.memonger = False            # recompute activations to save memory
config.fp16 = False                # float16 backbone
config.count_flops = True          # print the network's FLOPs at the start

config.loss_K = 1                  # sub-centres a class; 3 to find wrong labels
config.sample_ratio = 1.0          # share of the class centres in a step, 0.1 for millions of identities
config.ce_loss = True              # report the cross entropy
config.fc7_lr_mult = 1.0           # learning-rate factor of the class centres
config.fc7_wd_mult = 1.0           # weight-decay factor of the class centres
config.fc7_no_bias = False         # softmax without a bias

config.data_rand_mirror = True     # mirror a random half of the images
config.data_cutoff = False         # side in pixels of a square greyed in half of them
config.data_color = 0              # 1: colour jitter, 2: recompression as well
config.data_resize_prob = 0.0      # share of the images that shrink and grow again; arcface_torch's dali_aug: 0.1,
config.data_blur_prob = 0.0        # that are blurred; 0.2,
config.data_hsv_prob = 0.0         # of other colours; 0.2,
config.data_gray_prob = 0.0        # grey; 0.1
config.data_mask_prob = 0.0        # with a mask over mouth and nose
config.data_images_filter = 0      # leave out identities of fewer images
config.is_shuffled_rec = False     # the record file is shuffled and read in its own order

config.val_targets = ["lfw", "cfp_fp", "agedb_30"]
config.ckpt_embedding = True       # leave the class centres out of the checkpoint
config.max_steps = 0               # batches after which the run ends, 0 for no limit

# Networks. fresnet also comes in depths 49 74 90 98 99 101 124 134 136 140 152 160 200 269; r200 is arcface_torch's.
network = edict()

network.r100 = edict(net_name="fresnet", num_layers=100)
network.r100fc = edict(net_name="fresnet", num_layers=100, net_output="FC")
network.r50 = edict(net_name="fresnet", num_layers=50)
network.r50v1 = edict(net_name="fresnet", num_layers=50, net_unit=1)
network.r34 = edict(net_name="fresnet", num_layers=34)
network.r18 = edict(net_name="fresnet", num_layers=18)
network.d169 = edict(net_name="fdensenet", num_layers=169, per_batch_size=64, densenet_dropout=0.0)
network.d201 = edict(net_name="fdensenet", num_layers=201, per_batch_size=64, densenet_dropout=0.0)
network.y1 = edict(net_name="fmobilefacenet", emb_size=128, net_output="GDC")
network.y2 = edict(net_name="fmobilefacenet", emb_size=256, net_output="GDC", net_blocks=[2, 8, 16, 4])
network.m1 = edict(net_name="fmobilenet", emb_size=256, net_output="GDC", net_multiplier=1.0)
network.m05 = edict(net_name="fmobilenet", emb_size=256, net_output="GDC", net_multiplier=0.5)
network.mnas = edict(net_name="fmnasnet", emb_size=256, net_output="GDC", net_multiplier=1.0)
network.mnas05 = edict(net_name="fmnasnet", emb_size=256, net_output="GDC", net_multiplier=0.5)
network.mnas025 = edict(net_name="fmnasnet", emb_size=256, net_output="GDC", net_multiplier=0.25)
network.vargfacenet = edict(net_name="vargfacenet", emb_size=512, net_output="J", net_multiplier=1.25)
network.mbf = edict(net_name="mbf", emb_size=512, net_multiplier=2.0)   # as arcface_torch has it
network.mbf_large = edict(net_name="mbf", emb_size=512, net_multiplier=4.0, net_blocks=[2, 8, 12, 4])
network.r200 = edict(net_name="fresnet", num_layers=198, net_output="FC")
network.r2060 = edict(net_name="fresnet", num_layers=2060, net_output="FC")
network.rx50 = edict(net_name="fresnext", num_layers=50, net_output="FC")
network.rx101 = edict(net_name="fresnext", num_layers=101, net_output="FC")
network.vit_t = edict(net_name="vit", num_layers=12, net_multiplier=0.5, net_drop_path=0.1, net_mask_ratio=0.1)
network.vit_s = edict(net_name="vit", num_layers=12, net_multiplier=1.0, net_drop_path=0.1, net_mask_ratio=0.1)
network.vit_b = edict(net_name="vit", num_layers=24, net_multiplier=1.0, net_drop_path=0.1, net_mask_ratio=0.1)
network.vit_l = edict(net_name="vit", num_layers=24, net_multiplier=1.5, net_drop_path=0.05, net_mask_ratio=0.1)
network.vit_h = edict(net_name="vit", num_layers=48, net_multiplier=2.0, net_drop_path=0.1)
network.demo = edict(net_name="fmobilefacenet", emb_size=128, net_output="GDC", net_multiplier=0.25,
                     net_blocks=[1, 2, 2, 1], net_act="relu")  # for two CPU cores

# Datasets: folders of train.rec, train.idx, property, and <target>.bin for verification. --dataset also takes a folder
# that has no preset here, one of folders of images, synthetic:N, and several with commas between them.
dataset = edict()


def _dataset(folder, num_classes, val_targets=("lfw", "cfp_fp", "agedb_30")):
    """A preset of 112 x 112 images under ./datasets; 0 classes: as many as its property file says."""
    return edict(dataset_path="./datasets/" + folder, num_classes=num_classes, image_shape=(112, 112, 3),
                 val_targets=list(val_targets))


dataset.emore = _dataset("faces_emore", 85742)                  # MS1MV2
dataset.retina = _dataset("ms1m-retinaface-t1", 93431)          # MS1MV3
dataset.glint360k = _dataset("glint360k", 360232)
dataset.webface = _dataset("faces_webface_112x112", 10575)      # CASIA-WebFace
dataset.webface42m = _dataset("webface42m", 2059906)
dataset.demo = _dataset("demo", 0, ["demo"])                    # synthetic faces, drawn by make demo
dataset.demo.loss_s = 32.0                                      # 64 is for many thousands of identities

# Losses. Glint360K recipes take cosface with loss_m3 = 0.4.
loss = edict()

loss.softmax = edict(loss_name="softmax")
loss.nsoftmax = edict(loss_name="margin_softmax", loss_s=64.0, loss_m1=1.0, loss_m2=0.0, loss_m3=0.0)
loss.arcface = edict(loss_name="margin_softmax", loss_s=64.0, loss_m1=1.0, loss_m2=0.5, loss_m3=0.0)
loss.cosface = edict(loss_name="margin_softmax", loss_s=64.0, loss_m1=1.0, loss_m2=0.0, loss_m3=0.35)
loss.combined = edict(loss_name="margin_softmax", loss_s=64.0, loss_m1=1.0, loss_m2=0.3, loss_m3=0.2)
loss.adaface = edict(loss_name="margin_softmax", loss_margin="adaface", loss_s=64.0, loss_m2=0.4)
loss.magface = edict(loss_name="margin_softmax", loss_margin="magface", loss_s=64.0)
loss.elastic_arc = edict(loss.arcface, loss_margin="elastic")
loss.elastic_arc_plus = edict(loss.elastic_arc, elastic_deviation=0.0175, elastic_sorted=True)
loss.elastic_cos = edict(loss.cosface, loss_margin="elastic")
loss.elastic_cos_plus = edict(loss.elastic_cos, elastic_deviation=0.025, elastic_sorted=True)
loss.triplet = edict(loss_name="triplet", images_per_identity=5, triplet_alpha=0.3, triplet_bag_size=7200,
                     triplet_max_ap=0.0, per_batch_size=60, lr=0.05)
loss.atriplet = edict(loss_name="atriplet", images_per_identity=5, triplet_alpha=0.35, triplet_bag_size=7200,
                      triplet_max_ap=0.0, per_batch_size=60, lr=0.05)

# What a flag that is not given stands for.
default = edict()

default.network = "r100"
default.dataset = "emore"
default.loss = "arcface"
default.models_root = "./models"
default.pretrained = ""
default.pretrained_epoch = 1
default.ckpt = 3                   # 0 never save, 1 save the best, 2 save always, 3 as 1 but under number 1
default.verbose = 2000             # batches between verifications
default.frequent = 20              # batches between speed lines
default.kvstore = "device"
default.per_batch_size = 128       # images per device
default.lr = 0.1
default.lr_steps = "100000,160000,220000"   # batches after which the learning rate falls to a tenth
default.wd = 0.0005
default.mom = 0.9
default.end_epoch = 10000


def generate_config(_network, _dataset, _loss):
    """Lay the named presets over ``config`` and ``default``."""
    for preset in (loss[_loss], network[_network], dataset[_dataset]):
        for key, value in preset.items():
            config[key] = value
            if key in default:
                default[key] = value
    config.network, config.dataset, config.loss = _network, _dataset, _loss
    config.num_workers = int(os.environ.get("DMLC_NUM_WORKER", 1))
