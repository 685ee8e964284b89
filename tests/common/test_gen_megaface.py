# SPDX-License-Identifier: Apache-2.0
"""MegaFace's features from images, on real faces (Database of Faces, AT&T Laboratories Cambridge, 1994): against plain
MXNet, and through the protocol that reads them."""
from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from common.evaluation.megaface_files import read_feature
from common.gen_megaface import main
from common.megaface import main as megaface

PROBES = [f"Person_{p}/Person_{p}_{i}.png" for p in range(1, 5) for i in range(1, 4)]
OTHERS = [f"{p}/{p}7@N0/{i}.jpg" for p in range(11, 16) for i in range(1, 4)]


@pytest.fixture(scope="module")
def sets(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photographs of four people as FaceScrub, fifteen of five others as MegaFace, and lists of both kinds."""
    folder = tmp_path_factory.mktemp("sets")
    for kind, names in (("facescrub", PROBES), ("megaface", OTHERS)):
        for name in names:
            person, image = (name.split("/")[0].rsplit("_")[-1], Path(name).stem.rsplit("_")[-1])
            photograph = cv2.imread(str(shared / "data" / "orl" / f"s{person}" / f"{image}.pgm"))
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / kind / name), cv2.resize(photograph, (112, 112)))
        (folder / f"{kind}_lst").write_text("".join(f"{name}\n" for name in names))
        (folder / f"{kind}.json").write_text(json.dumps({"id": names, "path": names}))
    return folder


def run(sets: Path, model: str, output: Path, *flags: Any) -> int:
    return main(["--model", model, "--facescrub-root", f"{sets}/facescrub", "--megaface-root", f"{sets}/megaface",
                 "--output", str(output), *map(str, flags)])


def features(folder: Path, names: list[str], ending: str = "_insightface.bin") -> np.ndarray:
    return np.stack([read_feature(folder / f"{name}{ending}") for name in names])


def by_mxnet(model: Path, folder: Path, names: list[str]) -> np.ndarray:
    """The features of the recipes' script: image plus mirror in plain MXNet, normalised."""
    mx = pytest.importorskip("mxnet")
    symbol, arguments, auxiliary = mx.model.load_checkpoint(str(model), 1)
    images = np.stack([cv2.imread(str(folder / name))[:, :, ::-1].transpose(2, 0, 1) for name in names])
    bound = symbol.get_internals()["fc1_output"].bind(
        mx.cpu(), {**arguments, "data": mx.nd.array(np.concatenate([images, images[..., ::-1]]))},
        aux_states=auxiliary, grad_req="null")
    found = bound.forward(is_train=False)[0].asnumpy().astype(np.float64)
    rows = found[: len(names)] + found[len(names) :]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("lists", [None, "_lst", ".json"])
def test_features_are_those_of_plain_mxnet(lists: str | None, sets: Path, small_model: Path, tmp_path: Path) -> None:
    """Within 1e-5: numbers below 1 that float32 sums in other orders."""
    flags = [part for kind in ("facescrub", "megaface") for part in (f"--{kind}-lst", sets / f"{kind}{lists}")]
    assert run(sets, f"{small_model},1", tmp_path / "out", "--batch-size", 4, *(flags if lists else [])) == 0
    for kind, names in (("facescrub", PROBES), ("megaface", OTHERS)):
        expected = by_mxnet(small_model, sets / kind, names)
        np.testing.assert_allclose(features(tmp_path / "out" / kind, names), expected, atol=1e-5)
        assert len(list((tmp_path / "out" / kind).rglob("*.*"))) >= len(names)
    first = (tmp_path / "out" / "facescrub" / f"{PROBES[0]}_insightface.bin").read_bytes()
    assert struct.unpack("4i", first[:16]) == (64, 1, 4, 5) and len(first) == 16 + 4 * 64


def test_round_trip_through_the_protocol_with_noise_lists(sets: Path, small_model: Path, tmp_path: Path,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    """What the protocol finds is what brute force finds among plain MXNet's features."""
    (tmp_path / "fs_noises").write_text(f"# names alone\n{Path(PROBES[4]).name}\nof_no_feature.png\n")
    (tmp_path / "mf_noises").write_text(f"1\t{OTHERS[2]}\n")
    assert run(sets, f"{small_model},1", tmp_path / "f", "--algo", "r100") == 0
    assert f"{tmp_path}/f/facescrub: features of 12 images\n" in capsys.readouterr().out
    assert megaface(["--probes", f"{tmp_path}/f/facescrub", "--distractors", f"{tmp_path}/f/megaface", "--suffix",
                     "_r100.bin", "--probe-list", f"{sets}/facescrub_lst", "--distractor-list", f"{sets}/megaface.json",
                     "--probe-noises", f"{tmp_path}/fs_noises", "--distractor-noises", f"{tmp_path}/mf_noises",
                     "--far", "0.1", "--output", f"{tmp_path}/out"]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/fs_noises: 1 images left out; it names 2\n" in said and "mf_noises: 1 images left out" in said
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (found["probes"], found["people"], found["distractors"]) == (11, 4, 14)
    probes = np.delete(by_mxnet(small_model, sets / "facescrub", PROBES), 4, axis=0)
    people = np.delete(np.arange(12) // 3, 4)
    others = np.delete(by_mxnet(small_model, sets / "megaface", OTHERS), 2, axis=0)
    ranks = [1 + int((probes[p] @ others.T >= probes[p] @ probes[g]).sum())
             for p in range(11) for g in range(11) if p != g and people[p] == people[g]]
    assert found["searches"] == len(ranks)
    assert found["rank"]["1"] == np.mean(np.array(ranks) <= 1) and found["rank"]["5"] == np.mean(np.array(ranks) <= 5)


def test_several_networks_give_their_features_behind_each_other(sets: Path, small_model: Path, model: str,
                                                                tmp_path: Path) -> None:
    for number, networks in enumerate((f"{small_model},1", f"{model},1", f"{small_model},1|{model},1")):
        assert run(sets, networks, tmp_path / str(number)) == 0
    one, two, both = (features(tmp_path / str(number) / "megaface", OTHERS) for number in range(3))
    np.testing.assert_allclose(both, np.concatenate([one, two], axis=1) / np.sqrt(2), atol=1e-6)
    report = json.loads((tmp_path / "2" / "features.json").read_text())
    assert report["models"] == [f"{small_model}-0001.params", f"{model}-0001.params"]


def test_what_cannot_be_used_has_no_feature_and_is_named(sets: Path, model: str, tmp_path: Path,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    """Images under another ending than in the list are found; the feature has the list's name."""
    for name in ("a/1.png", "a/2.png", "b/1.jpg", "b/2.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes((sets / "facescrub" / PROBES[0]).read_bytes())
    (tmp_path / "images" / "a" / "2.png").write_bytes(b"no image")
    cv2.imwrite(f"{tmp_path}/images/b/2.png", np.zeros((92, 112, 3), np.uint8))
    (tmp_path / "lst").write_text(f"a/1.png\na/2.png\n{tmp_path}/images/b/1.png\nb/2.png\nb/3.png\n")
    assert main(["--model", f"{model},1", "--facescrub-root", f"{tmp_path}/images", "--facescrub-lst",
                 f"{tmp_path}/lst", "--output", f"{tmp_path}/out"]) == 0
    out = capsys.readouterr().out
    for line in ("images/a/2.png: ", "images/b/2.png: the image is 92 x 112", "images/b/3.png: cannot be read"):
        assert f"left out: {tmp_path}/{line}" in out
    assert f"{tmp_path}/out/facescrub: features of 2 images; 3 left out" in out
    report = json.loads((tmp_path / "out" / "features.json").read_text())
    assert report["facescrub"]["images"] == 2 and len(report["facescrub"]["left_out"]) == 3
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.bin"))
    assert written == ["facescrub/a/1.png_insightface.bin", "facescrub/b/1.png_insightface.bin"]


@pytest.mark.parametrize("flags, found", [
    (["--megaface-lst", "IN/megaface_lst"], "--facescrub-root, --megaface-root: found neither"),
    (["--facescrub-root", "IN/facescrub", "--megaface-lst", "IN/megaface_lst"], "--megaface-lst: goes with --megaf"),
    (["--facescrub-root", "IN/nowhere"], "nowhere: not found, expected a folder of images"),
    (["--facescrub-root", "IN/facescrub", "--facescrub-lst", "IN/megaface_lst"], "none of its 15 images can be used"),
    (["--facescrub-root", "IN/facescrub", "--facescrub-lst", "IN/out.txt"], "line 1: found '../a.png', expected"),
    (["--facescrub-root", "IN/facescrub", "--algo", "a/b"], "--algo: found 'a/b', expected a part of a file's name"),
    (["--facescrub-root", "IN/facescrub", "--output", "IN"], "exists already, expected a new folder"),
    (["--facescrub-root", "IN/facescrub", "--model", "IN/nothing,1|IN/nothing,2"], "IN/nothing"),
    (["--facescrub-root", "IN/black"], "IN/black/a/1.png: its embedding has the norm 0, expected a direction"),
])
def test_what_cannot_be_run(flags: list[str], found: str, sets: Path, model: str, tmp_path: Path,
                            capsys: pytest.CaptureFixture[str]) -> None:
    (sets / "out.txt").write_text("../a.png\n")
    (sets / "black" / "a").mkdir(parents=True, exist_ok=True)
    cv2.imwrite(f"{sets}/black/a/1.png", np.full((112, 112, 3), 127.5).astype(np.uint8))
    words = ["--model", f"{model},1", "--output", str(tmp_path / "out"), *flags]
    if "IN/black" in flags:  # a network without a bias, and grey that it does not see
        words[1] = zero_network(tmp_path)
    assert main([word.replace("IN", str(sets)) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and found.replace("IN", str(sets)) in error
    assert not (tmp_path / "out").exists()


def zero_network(folder: Path) -> str:
    """A network whose embeddings are all zero."""
    from recognition.networks import sym
    from recognition.training.checkpoints.checkpoint import save_checkpoint

    pooled = sym.Pooling(sym.Variable("data"), global_pool=True, pool_type="avg", kernel=(1, 1))
    symbol = sym.FullyConnected(sym.Flatten(pooled), num_hidden=3, name="fc1").graph()
    save_checkpoint(folder / "zero", 1, symbol, {"fc1_weight": np.zeros((3, 3), np.float32),
                                                 "fc1_bias": np.zeros(3, np.float32)}, {})
    return f"{folder}/zero,1"
