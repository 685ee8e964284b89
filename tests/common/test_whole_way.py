# SPDX-License-Identifier: Apache-2.0
"""Detection, alignment, embedding and verification together, on real faces (Database of Faces, AT&T Laboratories
Cambridge, 1994) with a real detector."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.build_eval_pack import main as build_eval_pack
from common.embedding.gallery import load_gallery
from common.face_align import main as face_align
from common.inference import main as inference
from common.verification import main as verification
from recognition.data.verification_set import read_bin

PEOPLE, IMAGES = 5, 4


def test_from_photographs_to_accuracy(small_model: Path, shared: Path, tmp_path: Path) -> None:
    """The faces that one command aligns are, byte for byte, those that another packs; the embeddings of one give the
    distances that the other's accuracy comes from. Squared distances differ by 1e-4 at most: batches of other sizes."""
    detector = shared / "data" / "yunet" / "yunet_n_320_320.onnx"
    if not detector.is_file():
        pytest.skip("the detector is not here")
    photographs = tmp_path / "photographs"
    names = [f"s{person}/{image}.pgm" for person in range(1, PEOPLE + 1) for image in range(1, IMAGES + 1)]
    for name in names:
        (photographs / name).parent.mkdir(parents=True, exist_ok=True)
        (photographs / name).write_bytes((shared / "data" / "orl" / name).read_bytes())
    assert face_align([str(photographs), str(tmp_path / "aligned"), "--detector", str(detector)]) == 0
    report = json.loads((tmp_path / "aligned.json").read_text())
    assert report["aligned"] == len(names) and report["left_out"] == []

    same = [(IMAGES * p + i, IMAGES * p + i + 1) for p in range(PEOPLE) for i in (0, 2)]
    other = [(IMAGES * p + i, IMAGES * ((p + 1) % PEOPLE) + i) for p in range(PEOPLE) for i in (0, 1)]
    pairs = [pair for both in zip(same, other) for pair in both]
    (tmp_path / "pairs").write_text("".join(f"{names[a]} {names[b]} {1 - k % 2}\n" for k, (a, b) in enumerate(pairs)))
    (tmp_path / "sets").mkdir()
    assert build_eval_pack(["--data-dir", str(photographs), "--pairs", str(tmp_path / "pairs"), "--detector",
                            str(detector), "--output", str(tmp_path / "sets" / "orl.bin")]) == 0
    images, issame = read_bin(tmp_path / "sets" / "orl.bin")
    files = [(tmp_path / "aligned" / name).with_suffix(".jpg") for name in names]
    assert images == [files[i].read_bytes() for pair in pairs for i in pair] and issame.sum() == len(same)

    model = f"{small_model},1"
    assert inference(["--model", model, "--images", str(tmp_path / "aligned"), "--output",
                      str(tmp_path / "faces.npz")]) == 0
    gallery = load_gallery(tmp_path / "faces.npz")
    row = {path: i for i, path in enumerate(gallery.paths)}
    rows = [[row[str(files[i].relative_to(tmp_path / "aligned"))] for i in pair] for pair in pairs]
    distances = np.array([np.square(gallery.embeddings[a] - gallery.embeddings[b]).sum() for a, b in rows])
    assert verification(["--model", model, "--data", str(tmp_path / "sets"), "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())["targets"]["orl"]
    thresholds = np.array(found["thresholds"])
    folds = [distances[2 * fold : 2 * fold + 2] for fold in range(10)]
    right = [np.mean((fold < limit) == [True, False]) for fold, limit in zip(folds, thresholds)]
    near = min(np.abs(fold - limit).min() for fold, limit in zip(folds, thresholds))
    assert near < 1e-4 or found["accuracies"] == right
    assert found["auc"] > 0.5  # a network that never learnt tells people apart a little, by their looks
