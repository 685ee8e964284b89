# SPDX-License-Identifier: Apache-2.0
"""A small IJB, of drawn images in the official layout, with a real network, against the published flow in loops."""
from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from common.evaluation.ijb_meta import read_faces
from common.faces.alignment import ARCFACE, align
from common.ijb import main
from recognition.errors import UserError
from recognition.evaluation.templates import Templates, aggregate

SUBJECTS, PER_SUBJECT = 12, 5
FARS = (0.001, 0.01, 0.1)


class Drawn(NamedTuple):
    folder: Path
    rows: list[tuple[str, np.ndarray, float, int, int]]  # image, landmarks, score, template, medium
    subject_of: dict[int, int]  # of templates
    pairs: list[tuple[int, int, int]]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Drawn:
    """Each subject a pattern of colours; images of it with noise, at some place and scale of a larger picture."""
    folder = tmp_path_factory.mktemp("ijb") / "IJBX"
    for name in ("loose_crop", "meta"):
        (folder / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    patterns = random.uniform(60, 200, (SUBJECTS, 2, 2, 3))
    rows: list[tuple[str, np.ndarray, float, int, int]] = []
    subject_of = {100 + 7 * t: t % SUBJECTS for t in range(SUBJECTS * PER_SUBJECT)}
    for template, subject in subject_of.items():
        for medium in random.choice(50, random.integers(1, 4), replace=False).tolist():
            for _ in range(random.integers(1, 3)):
                pattern = np.clip(patterns[subject] + random.normal(0, 30, (2, 2, 3)), 0, 255)
                face = cv2.resize(pattern.astype(np.uint8), (112, 112), interpolation=cv2.INTER_NEAREST)
                turn = random.uniform(0.6, 0.9) * np.exp(1j * random.normal(0, 0.2))
                away = np.array([[turn.real, -turn.imag, 40], [turn.imag, turn.real, 30]])
                name = f"{len(rows) + 1}.png"
                cv2.imwrite(str(folder / "loose_crop" / name), cv2.warpAffine(face, away, (170, 160)))
                rows.append((name, np.float32(ARCFACE @ away[:, :2].T + away[:, 2]), float(random.uniform(0.3, 1)),
                             template, medium))
    order = random.permutation(len(rows))
    rows = [rows[i] for i in order]
    pairs = [(a, b, int(subject_of[a] == subject_of[b])) for a in subject_of for b in subject_of if a < b]
    meta = folder / "meta"
    (meta / "ijbx_name_5pts_score.txt").write_text("".join(
        f"{name} {' '.join(repr(float(value)) for value in points.ravel())} {score!r}\n"
        for name, points, score, _, _ in rows))
    (meta / "ijbx_face_tid_mid.txt").write_text("".join(f"{row[0]} {row[3]} {row[4]}\n" for row in rows))
    (meta / "ijbx_template_pair_label.txt").write_text("".join(f"{a} {b} {label}\n" for a, b, label in pairs))
    templates = list(subject_of)
    for name, chosen in (("gallery_G1", [t for t in templates[:SUBJECTS] if subject_of[t] < 6]),
                         ("gallery_G2", [t for t in templates[:SUBJECTS] if subject_of[t] >= 6]),
                         ("probe_mixed", templates[SUBJECTS:])):
        lines = "".join(f"{t},{subject_of[t]},img/x.jpg,1\n" * 2 for t in chosen)  # a line an image
        (meta / f"ijbx_1N_{name}.csv").write_text("TEMPLATE_ID,SUBJECT_ID,FILENAME,FACE_X\n" + lines)
    return Drawn(folder, rows, subject_of, pairs)


def views(image):
    return (image.astype(np.float64).reshape(2, 56, 2, 56, 3).mean(axis=(1, 3)) - 127.5).transpose(2, 0, 1)


def by_loops(drawn: Drawn, flip=True, weighted=True, unit=False) -> dict[int, np.ndarray]:
    """Templates by the published flow: float64, dictionaries, no sorting."""
    media: dict[int, dict[int, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for name, landmarks, score, template, medium in drawn.rows:
        image = cv2.imread(str(drawn.folder / "loose_crop" / name))[..., ::-1]
        quarters = views(align(np.ascontiguousarray(image), landmarks))
        embedding = (quarters + quarters[..., ::-1] if flip else quarters).ravel()
        if unit:
            embedding = embedding / np.linalg.norm(embedding)
        media[template][medium].append(embedding * np.float64(np.float32(score)) if weighted else embedding)
    sums = {t: sum(np.mean(found, axis=0) for found in of_media.values()) for t, of_media in media.items()}
    return {t: total / np.linalg.norm(total) for t, total in sums.items()}


def tar(far, same, different):
    """The best of all thresholds."""
    return max((np.mean(same > t) for t in (*same, *different, -np.inf) if np.mean(different > t) <= far), default=0)


def run(model, folder, output, *flags) -> int:
    return main(["--model", f"{model},1", "--data", str(folder), "--output", str(output), "--far",
                 ",".join(map(str, FARS)), "--batch-size", "16", *flags])


@pytest.mark.parametrize("flags, options", [
    ((), {}),
    (("--no-flip", "--no-detector-score"), {"flip": False, "weighted": False}),
    (("--unit-images",), {"unit": True}),
])
def test_verification_against_loops(model, drawn, tmp_path, flags, options):
    assert run(model, drawn.folder, tmp_path, *flags) == 0
    written = json.loads((tmp_path / "results.json").read_text())
    templates = by_loops(drawn, **options)
    scores = np.array([float(templates[a] @ templates[b]) for a, b, _ in drawn.pairs])
    labels = np.array([label for _, _, label in drawn.pairs]) == 1
    assert (written["pairs_of_one_subject"], written["pairs_of_two"]) == (labels.sum(), (~labels).sum())
    expected = [tar(far, scores[labels], scores[~labels]) for far in FARS]
    assert [rate["tar"] for rate in written["verification"]] == expected
    assert [rate["false_accepts"] for rate in written["verification"]] == [1, 16, 165]  # of 1650, as allowed
    assert 0.05 < expected[0] < 0.95 and expected[0] < expected[-1]  # hard enough to tell one flow from another


def test_identification_against_loops(model, drawn, tmp_path, capsys):
    assert run(model, drawn.folder, tmp_path, "--far", "1e-4,1e-2") == 0
    written = json.loads((tmp_path / "results.json").read_text())["identification"]
    templates, subject_of = by_loops(drawn), drawn.subject_of
    gallery_of = {"gallery 1": [t for t in list(subject_of)[:SUBJECTS] if subject_of[t] < 6],
                  "gallery 2": [t for t in list(subject_of)[:SUBJECTS] if subject_of[t] >= 6]}
    gallery_of["both as one"] = gallery_of["gallery 1"] + gallery_of["gallery 2"]
    probes = list(subject_of)[SUBJECTS:]
    for name, gallery in gallery_of.items():
        ranks, hits, strangers = [], [], []
        for probe in probes:
            ordered = sorted(gallery, key=lambda t: -float(templates[probe] @ templates[t]))
            best = float(templates[probe] @ templates[ordered[0]])
            place = [subject_of[t] for t in ordered].index(subject_of[probe]) + 1 if any(
                subject_of[t] == subject_of[probe] for t in ordered) else 0
            if place:
                ranks.append(place)
                hits.append(best if place == 1 else -np.inf)
            else:
                strangers.append(best)
        assert written[name]["probes_in_it"] == len(ranks) and written[name]["probes_not_in_it"] == len(strangers)
        assert written[name]["rank"] == {str(k): np.mean(np.array(ranks) <= k) for k in (1, 5, 10)}
        if strangers:
            assert written[name]["tpir"] == {str(f): tar(f, np.array(hits), np.array(strangers)) for f in (0.01, 0.1)}
    for kind, key in (("rank", "1"), ("tpir", "0.1")):
        one, two = (written[f"gallery {i}"][kind][key] for i in (1, 2))
        assert written["mean"][kind][key] == pytest.approx((one + two) / 2)
    printed = capsys.readouterr().out
    assert "TPIR % at FPIR 0.01" in printed and "both as one" in printed
    assert "*: fewer pairs of two identities" in printed  # 60 x 59 / 2 pairs: less than one in 1e-4 of them
    image = cv2.imread(str(tmp_path / "roc.png")).astype(int)
    assert (image.max(axis=2) - image.min(axis=2) > 60).sum() > 300


def test_templates_over_many_blocks(monkeypatch):
    random = np.random.default_rng(2)
    rows = random.normal(size=(500, 6)).astype(np.float32)
    templates, media = random.integers(0, 90, 500), random.integers(0, 4, 500)
    whole = aggregate(rows, templates, media)
    monkeypatch.setattr("recognition.evaluation.templates.IMAGES_AT_ONCE", 7)
    np.testing.assert_array_equal(aggregate(rows, templates, media).embeddings, whole.embeddings)
    for number, found in zip(*whole):
        means = [rows[(templates == number) & (media == medium)].astype(np.float64).mean(axis=0)
                 for medium in np.unique(media[templates == number])]
        np.testing.assert_allclose(found, np.sum(means, axis=0) / np.linalg.norm(np.sum(means, axis=0)), atol=1e-6)


def test_templates_without_images_or_direction():
    templates = Templates(np.array([3, 5, 9]), np.eye(3, dtype=np.float32))
    assert templates.rows(np.array([9, 3, 9]), "pairs").tolist() == [2, 0, 2]
    with pytest.raises(UserError, match=r"^pairs: found template 4 in place 2, expected one of the 3 templates"):
        templates.rows(np.array([3, 4]), "pairs")
    with pytest.raises(UserError, match=r"^template 8 has the norm 0, expected a direction$"):
        aggregate(np.array([[1, 0], [-1, 0]], np.float32), np.array([8, 8]), np.array([1, 2]))


LANDMARKS = "1.jpg 1 2 3 4 5 6 7 8 9 10 0.9\n"


@pytest.mark.parametrize("ending, lines, found", [
    ("name_5pts_score", LANDMARKS + "2.jpg 1 2 3 4 5 6 7 8 9 10\n", "line 2: found '2.jpg 1 2 3 4 5 6 7 8 9 10', "
     "expected an image's name, ten coordinates and a score"),
    ("name_5pts_score", LANDMARKS.replace("10 0.9", "ten 0.9"), "line 1: found '1.jpg 1 2 3"),
    ("name_5pts_score", LANDMARKS.replace("1.jpg", "../1.jpg"), "line 1: found '../1.jpg"),
    ("name_5pts_score", LANDMARKS.replace("0.9", "nan"), "line 1: found"),
    ("name_5pts_score", LANDMARKS.replace("1.jpg", "1\0.jpg"), r"line 1: found '1\x00.jpg"),
    ("face_tid_mid", f"1.jpg 1 {'9' * 5000}\n", "line 1: found '1.jpg 1 999"),
    ("1N_gallery_G1", f"1,{'9' * 5000}\n", "line 1: found '1,999"),
    ("name_5pts_score", "", "found no lines"),
    ("face_tid_mid", "1.jpg 1 1\n2.jpg 1 1\n", "found 2 lines, expected 1, as ijbx_name_5pts_score.txt has"),
    ("face_tid_mid", "2.jpg 1 1\n", "line 1: found '2.jpg 1 1', expected '1.jpg TEMPLATE MEDIA', as line 1 of "),
    ("face_tid_mid", "1.jpg 1\n", "line 1: found '1.jpg 1'"),
    ("template_pair_label", "1 1 1\n1 1\n", "line 2: found '1 1', expected two templates and 1 or 0"),
    ("template_pair_label", "1 1 1\n\n1 1 0\n", "line 2: found ''"),
    ("template_pair_label", "1 1 1\n1 1\n1 1 1 0\n", "line 2: found '1 1'"),
    ("template_pair_label", "1 1 1\n1 1 1.5\n", "line 2: found '1 1 1.5'"),
    ("template_pair_label", "1 1 1\n1 x 0\n", "line 2: found '1 x 0'"),
    ("template_pair_label", "1 1 1\n1 1 2\n", "line 2: found '1 1 2', expected two templates and 1 or 0"),
    ("1N_gallery_G1", "TEMPLATE_ID,SUBJECT_ID\n1,2\n1,3\n", "line 3: found '1,3', expected subject 2 for template 1"),
    ("1N_gallery_G1", "1,2\n1\n", "line 2: found '1', expected TEMPLATE,SUBJECT"),
    ("1N_gallery_G1", "TEMPLATE_ID,SUBJECT_ID\n", "found no templates"),
])
def test_meta_files_with_a_bad_line(model, tmp_path, capsys, ending, lines, found):
    files = {"name_5pts_score.txt": LANDMARKS, "face_tid_mid.txt": "1.jpg 1 1\n",
             "template_pair_label.txt": "1 1 1\n", "1N_gallery_G1.csv": "1,1\n", "1N_gallery_G2.csv": "2,2\n",
             "1N_probe_mixed.csv": "1,1\n"}
    for name in ("loose_crop", "meta"):
        (tmp_path / "IJBX" / name).mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / "IJBX" / "meta" / f"ijbx_{name}").write_text(lines if name.startswith(ending) else content)
    assert run(model, tmp_path / "IJBX", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"ijbx_{ending}" in error and found in error
    assert not (tmp_path / "out").exists()


def test_what_is_not_there(model, drawn, tmp_path, capsys):
    assert run(model, tmp_path, tmp_path / "out") == 2
    assert "loose_crop, expected loose_crop and meta" in capsys.readouterr().err
    for name in ("loose_crop", "meta"):
        (tmp_path / name).mkdir()
    assert run(model, tmp_path, tmp_path / "out") == 2
    assert "found no file for *_name_5pts_score.txt, expected one" in capsys.readouterr().err
    for path in (drawn.folder / "meta").glob("*.txt"):
        (tmp_path / "meta" / path.name).write_bytes(path.read_bytes())
    assert run(model, tmp_path, tmp_path / "out") == 2
    assert f"{tmp_path / 'loose_crop' / read_faces(tmp_path / 'meta').names[0]}: cannot" in capsys.readouterr().err


def test_from_saved_embeddings_and_from_saved_scores(model, drawn, tmp_path, capsys):
    """Embeddings and scores that a run saved give its tables again, without a network; scores the 1:1 table alone."""
    rows, scores, far = tmp_path / "rows.npy", tmp_path / "scores.npy", ("--far", ",".join(map(str, FARS)))
    assert run(model, drawn.folder, tmp_path / "all", "--save-embeddings", str(rows), "--save-scores", str(scores)) == 0
    folder = ("--data", str(drawn.folder))
    assert main(["--embeddings", str(rows), *folder, "--output", str(tmp_path / "rows"), *far]) == 0
    assert main(["--scores", str(scores), *folder, "--output", str(tmp_path / "scores"), *far]) == 0
    whole, of_rows, of_scores = (json.loads((tmp_path / name / "results.json").read_text())
                                 for name in ("all", "rows", "scores"))
    assert of_rows["verification"] == of_scores["verification"] == whole["verification"]
    assert of_rows["identification"] == whole["identification"] and of_scores["identification"] is None
    assert np.load(rows).shape == (len(drawn.rows), 12) and np.load(scores).shape == (len(drawn.pairs),)
    np.save(tmp_path / "as_theirs.npy", np.load(scores).astype(np.float64))  # the published script's are float64
    assert main(["--scores", str(tmp_path / "as_theirs.npy"), *folder, "--output", str(tmp_path / "x")]) == 0
    capsys.readouterr()
    np.save(tmp_path / "short.npy", np.load(rows)[1:])
    for words, message in ((["--embeddings", str(tmp_path / "short.npy")], f"expected {len(drawn.rows)} embeddings"),
                           (["--scores", str(rows)], f"expected {len(drawn.pairs)} scores of pairs"),
                           (["--scores", str(scores), "--embeddings", str(rows)], "expected one"),
                           ([], "expected one")):
        assert main([*words, *folder, "--output", str(tmp_path / "none")]) == 2
        assert message in capsys.readouterr().err
    assert main(["--scores", str(scores), *folder]) == 2
    assert "--output: not given" in capsys.readouterr().err
