# SPDX-License-Identifier: Apache-2.0
"""Makes a verification set, <target>.bin, from a list of pairs of images.

    python -m common.build_eval_pack --data-dir photographs --detector yunet.onnx --output datasets/mine/mine.bin
    python -m common.build_eval_pack --data-dir lfw --pairs pairs.txt --landmarks points.txt --output lfw.bin
    python -m common.build_eval_pack --data-dir aligned --pairs pairs_label.txt --output mine.bin

Pairs are lines 'image image 1' (one identity) or 'image image 0' (two), LFW's pairs.txt, the lists of CALFW and CPLFW,
or CFP's folder Protocol/Split/FP or FF; folds follow the order of the list. An image that is there under another ending
than in the list is found. With landmarks or a detector images are aligned. Without, they count as aligned, and JPEGs of
the right size are copied byte for byte. An image that several pairs name is read, aligned and stored once. The .bin is
(images, issame), as in the recipes. Beside it are a .json with a report and a .png of some pairs.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import cv2
import numpy as np

from common.drawing.contact_sheet import draw_sheet
from common.evaluation.results import table, write_json
from common.faces.aligner import Aligner, add_alignment_flags, open_aligner
from common.pack_folder import FITS, encode_image
from common.sets.cfp_pairs import read_cfp
from common.sets.image_files import tell_scaled, tried_in_order
from common.sets.left_out import tell
from common.sets.named_images import with_other_endings
from common.sets.pair_lists import PairList, read_pairs
from recognition.config.command_line import Parser
from recognition.data.images.image import decode_rgb
from recognition.data.verification_set import MAX_IMAGES, read_bin, save_bin
from recognition.errors import UserError, command, one_line
from recognition.evaluation.verification import FOLDS, folds_of_one_kind
from recognition.io.files import require_new, writing
from recognition.progress import progress

SHOWN_PAIRS = 16  # in the picture
Encode = Callable[[str, Path], bytes]


def encoder(aligner: Aligner | None, size: int = 112, fit: str = "pad", quality: int = 95,
            scaled: list[Path] | None = None) -> Encode:
    """A function from the name and path of an image to its encoded bytes, aligned if there is an aligner.

    :param scaled: gets the paths of images of another size, if there is none
    """
    if aligner is None:
        return lambda name, path: encode_image(path, size, fit, quality, scaled)

    def encode(name: str, path: Path) -> bytes:
        pixels = cv2.cvtColor(aligner(name, path).image, cv2.COLOR_RGB2BGR)
        return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()

    return encode


def build_eval_pack(folder: Path, pairs: PairList, output: Path, encode: Encode,
                    skip_broken: bool = False) -> tuple[np.ndarray, list[str]]:
    """Write ``output``. Returns a mask of the pairs in it, bool ``(P,)``, and a line for each unusable image.

    :param skip_broken: leave out pairs with unusable images
    :raises UserError: at the first unusable image without ``skip_broken``, or if no pair is left
    """
    names = list(dict.fromkeys(name for pair in zip(pairs.first, pairs.second) for name in pair))
    if 2 * len(pairs.issame) > MAX_IMAGES:
        raise UserError(f"{output}: {len(pairs.issame)} pairs, a verification set holds {MAX_IMAGES // 2} at most")

    encoded: dict[str, bytes] = {}
    broken: list[str] = []
    images = tried_in_order(lambda name: encode(name, folder / name), names)
    for name, found in progress(images, "images", len(names), unit=" images"):
        if isinstance(found, bytes):
            encoded[name] = found
        elif skip_broken:
            broken.append(str(found))
        else:
            raise found
    kept = np.array([a in encoded and b in encoded for a, b in zip(pairs.first, pairs.second)], bool)
    if not kept.any():
        raise UserError(f"{folder}: none of the {len(kept)} pairs can be used: {broken[0]}")
    wanted = [encoded[name] for i in np.flatnonzero(kept) for name in (pairs.first[i], pairs.second[i])]
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        save_bin(output, wanted, pairs.issame[kept].tolist())
    return kept, broken


def draw_pairs(pack: Path, path: Path) -> None:
    """Draw some pairs of one identity and of two, evenly from the list, each as two images side by side."""
    images, issame = read_bin(pack)
    both = (np.flatnonzero(issame), np.flatnonzero(~issame))
    chosen = sorted(pairs[i] for pairs in both if len(pairs)
                    for i in set(np.linspace(0, len(pairs) - 1, SHOWN_PAIRS // 2).astype(int).tolist()))
    shown = [decode_rgb(images[2 * i + side]) for i in chosen for side in (0, 1)]
    captions = [text for i in chosen for text in (f"pair {i}", "one identity" if issame[i] else "two identities")]
    draw_sheet(path, shown, captions, title=pack.name)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m common.build_eval_pack", description=__doc__)
    add = parser.add_argument
    add("--data-dir", type=Path, required=True, metavar="DIR", help="the folder that the list's paths count from")
    add("--pairs", type=Path, metavar="FILE", help="the list of pairs, or CFP's Protocol/Split/FP (default: "
        "pairs_label.txt in DIR)")
    add("--output", type=Path, required=True, metavar="FILE.bin", help="the verification set to write")
    add_alignment_flags(parser)
    add("--det-prefix", metavar="FILE.onnx", help="the recipes' name of --detector; RetinaFace is not here")
    add("--gpu", type=int, metavar="N", help="known from the recipes: here the detector runs on the CPU")
    add("--align-mode", default="arcface", help="arcface (the default), or five: of five templates the one that fits")
    add("--image-size", type=int, default=112, choices=(112, 224), help="side of the images (default 112)")
    add("--fit", choices=FITS, default="pad", help="images of another shape, where nothing aligns them: scaled whole "
        "onto black (pad, the default), the middle cut out (crop), or scaled out of shape (stretch)")
    add("--quality", type=int, default=95, help="of JPEGs written (default 95)")
    add("--skip-broken", action="store_true", help="leave pairs out whose images are broken or have no face, with a "
        "line each, instead of stopping at the first: folds shift then")
    parser.add_overwrite()
    args = parser.parse_args(argv)
    args.pairs = args.pairs or args.data_dir / "pairs_label.txt"
    if args.det_prefix:
        if args.detector or not args.det_prefix.endswith(".onnx"):
            raise UserError(f"--det-prefix: found {args.det_prefix!r}, expected a YuNet model, FILE.onnx, as "
                            "--detector takes it: RetinaFace of MXNet is not here; or --landmarks FILE")
        args.detector = Path(args.det_prefix)
    if args.gpu is not None and args.gpu >= 0:
        print("--gpu: the detector runs on the CPU")
    if args.output.suffix != ".bin":
        raise UserError(f"--output: found {args.output}, expected a name that ends in .bin")
    if not 1 <= args.quality <= 100:
        raise UserError(f"--quality: found {args.quality}, expected 1 to 100")
    require_new([args.output.with_suffix(suffix) for suffix in (".bin", ".json", ".png")],
                [args.data_dir, args.pairs, args.landmarks, args.detector], args.overwrite)
    return args


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    pairs = read_cfp(args.pairs) if args.pairs.is_dir() else read_pairs(args.pairs, args.data_dir)
    others = with_other_endings(args.data_dir, dict.fromkeys((*pairs.first, *pairs.second)))
    if others:
        name, other = next(iter(others.items()))
        print(one_line(f"{len(others)} images have another ending than in the list, such as {name}: {other}"))
        first, second = ([others.get(name, name) for name in names] for names in (pairs.first, pairs.second))
        pairs = PairList(first, second, pairs.issame)
    aligner = open_aligner(args, args.image_size, args.align_mode) if args.landmarks or args.detector else None
    scaled: list[Path] = []
    encode = encoder(aligner, args.image_size, args.fit, args.quality, scaled)
    kept, broken = build_eval_pack(args.data_dir, pairs, args.output, encode, args.skip_broken)
    tell(broken)
    tell_scaled(scaled, args.image_size, args.image_size)
    issame = pairs.issame[kept]
    of_images = len({name for i in np.flatnonzero(kept) for name in (pairs.first[i], pairs.second[i])})
    report = {"pairs": len(issame), "pairs_of_one_identity": int(issame.sum()), "images": of_images,
              "left_out_pairs": int((~kept).sum()), "left_out_images": broken, "list": str(args.pairs),
              "aligned": "as they are" if aligner is None else args.align_mode, "size": args.image_size}
    write_json(args.output.with_suffix(".json"), report)
    draw_pairs(args.output, args.output.with_suffix(".png"))
    print(table(["set", "pairs", "of one identity", "of two", "images", "left out"],
                [[args.output.name, str(len(issame)), str(issame.sum()), str((~issame).sum()), str(of_images),
                  str((~kept).sum())]]))
    if len(issame) % FOLDS or broken:
        print(f"mind: {len(issame)} pairs in the protocol's {FOLDS} folds, in the order of the list")
    if one_sided := folds_of_one_kind(issame):
        print(f"mind: {one_sided} of the protocol's {FOLDS} folds, which follow the order of the list, hold pairs of "
              "one kind only: mix both kinds in the list")
    print(f"what was done, and some pairs as a picture: {args.output.with_suffix('.json')}, .png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
