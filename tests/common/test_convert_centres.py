# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.convert_centres import convert, main
from recognition.engines.mxnet.imports import mx
from recognition.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CLASSES, K, DIM = 11, 3, 4
W = np.random.RandomState(0).rand(CLASSES * K, DIM).astype(np.float32)


def save(path: Path, **arrays: np.ndarray) -> Path:
    mx.nd.save(str(path), {name.replace("__", ":"): mx.nd.array(value) for name, value in arrays.items()})
    return path


def load(path: Path) -> dict[str, np.ndarray]:
    return {name: array.asnumpy() for name, array in mx.nd.load(str(path)).items()}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return save(tmp_path / "model-0001.params", arg__conv_weight=np.ones(5), arg__fc7_weight=W, aux__mean=np.zeros(2))


def test_there_and_back_through_every_form(whole: Path, tmp_path: Path) -> None:
    convert([whole], tmp_path / "four-0001.params", shards=4, sub_centres=K)
    cut = load(tmp_path / "four-0001.params")
    assert [len(cut[f"arg:fc7_{i}_weight"]) for i in range(4)] == [9, 9, 9, 6]
    assert np.array_equal(cut["arg:fc7_1_weight"], W[9:18]) and cut["arg:conv_weight"].shape == (5,)
    convert([tmp_path / "four-0001.params"], tmp_path / "seven", shards=7, sub_centres=K)
    assert sorted(p.name for p in (tmp_path / "seven").glob("*.param")) == [f"{i}_centers.param" for i in range(7)]
    (first,) = mx.nd.load(str(tmp_path / "seven" / "0_centers.param"))
    assert np.array_equal(first.asnumpy(), W[: 2 * K])
    line = convert([tmp_path / "seven", save(tmp_path / "backbone.params", arg__conv_weight=np.ones(5))],
                   tmp_path / "back-0001.params", sub_centres=K)
    assert "fc7_weight and 1 other arrays, 11 classes, 3 x 4 numbers each, from" in line
    back = load(tmp_path / "back-0001.params")
    assert set(back) == {"arg:conv_weight", "arg:fc7_weight"} and np.array_equal(back["arg:fc7_weight"], W)


def test_rows_of_no_class_are_left_out(tmp_path: Path) -> None:
    """Four shards of ceil(11 / 4) classes, as the recipes write them."""
    padded = np.concatenate([W, np.full((K, DIM), 9, np.float32)]).reshape(4, -1, DIM)
    parts = {f"arg__fc7_{i}_weight": part for i, part in enumerate(padded)}
    line = convert([save(tmp_path / "in.params", **parts)], tmp_path / "out.params", num_classes=CLASSES, sub_centres=K)
    assert "3 rows behind the last class left out" in line
    assert np.array_equal(load(tmp_path / "out.params")["arg:fc7_weight"], W)


def test_bias_and_momentum_go_where_they_can(tmp_path: Path) -> None:
    biased = save(tmp_path / "in.params", arg__fc7_weight=W, arg__fc7_bias=W[:, 0])
    convert([biased], tmp_path / "out.params", shards=2)
    assert np.array_equal(load(tmp_path / "out.params")["arg:fc7_bias"], W[:, 0])
    assert main([str(biased), str(tmp_path / "folder")]) == 2 and not (tmp_path / "folder").exists()
    (tmp_path / "fc").mkdir()
    for i in range(2):
        for name, add in (("centers", 0), ("centers_mom", 1)):
            mx.nd.save(str(tmp_path / "fc" / f"{i}_{name}.param"), mx.nd.array(W[i * 15 : i * 15 + 15 + i * 3] + add))
    convert([tmp_path / "fc"], tmp_path / "folder", shards=3)
    momentum = [mx.nd.load(str(tmp_path / "folder" / f"{i}_centers_mom.param"))[0].asnumpy() for i in range(3)]
    assert [len(part) for part in momentum] == [11, 11, 11] and np.array_equal(np.concatenate(momentum), W + 1)
    line = convert([tmp_path / "fc"], tmp_path / "out.params", overwrite=True)
    assert "momentum, which no checkpoint holds, left out" in line


def test_a_file_that_is_there_is_replaced_only_when_asked(whole: Path, tmp_path: Path,
                                                          capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out.params"
    assert main([str(whole), str(out)]) == 0
    before = out.read_bytes()
    assert main([str(whole), str(out), "--shards", "3"]) == 2
    assert "out.params: exists already, expected a new name; --overwrite replaces it" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main([str(whole), str(out), "--shards", "3", "--overwrite"]) == 0 and "arg:fc7_2_weight" in load(out)


def test_w_that_is_there_twice_is_refused(whole: Path, tmp_path: Path) -> None:
    """A folder with its backbone's checkpoint, which holds W too, would give twice the classes."""
    convert([whole], tmp_path / "folder", shards=2)
    convert([whole], tmp_path / "cut-0001.params", shards=2)
    for inputs in ([tmp_path / "folder", whole], [whole, tmp_path / "cut-0001.params"],
                   [tmp_path / "cut-0001.params", tmp_path / "folder"]):
        with pytest.raises(UserError, match=r" and .*: found W more than once, expected it in one input, or in shards"):
            convert(inputs, tmp_path / "out.params")
    with pytest.raises(UserError, match="found an input twice"):
        convert([whole, tmp_path / "folder" / ".." / whole.name], tmp_path / "out.params")
    assert not (tmp_path / "out.params").exists()
    parts = [save(tmp_path / f"host{i}.params", arg__fc7_0_weight=W[i * 12 : i * 12 + 12]) for i in range(3)]
    convert(parts, tmp_path / "out.params")
    assert np.array_equal(load(tmp_path / "out.params")["arg:fc7_weight"], W)


def test_a_training_state_is_an_input(tmp_path: Path) -> None:
    for i, part in enumerate(np.split(W, [15])):
        for name, array in (("centres", part), ("momentum", part + 1), ("bias", part[:, 0] * 0)):
            np.save(tmp_path / f"{name}-{i}.npy", array)
    (tmp_path / "manifest.json").write_text("{}")
    convert([tmp_path], tmp_path / "out.params")
    assert {name: a.shape for name, a in load(tmp_path / "out.params").items()} == {"arg:fc7_weight": (33, 4)}
    assert convert([tmp_path], tmp_path / "sgd").startswith(f"{tmp_path / 'sgd'}: 1 x <rank>_centers.param with momen")
    np.save(tmp_path / "second_moment-0.npy", W[:15] ** 2)
    np.save(tmp_path / "second_moment-1.npy", W[15:] ** 2)
    line = convert([tmp_path], tmp_path / "adamw")
    assert "with momentum" not in line and line.endswith("(moments of AdamW left out)")
    assert [path.name for path in (tmp_path / "adamw").glob("*.param")] == ["0_centers.param"]


def test_bad_input_ends_in_one_line_and_status_2(whole: Path, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "text.params").write_text("not arrays, a text of some length")
    gap = save(tmp_path / "gap.params", arg__fc7_0_weight=W, arg__fc7_2_weight=W)
    out = str(tmp_path / "out.params")
    (tmp_path / "empty").mkdir()
    for arguments, words in [
            ([str(save(tmp_path / "none.params", arg__x=W)), out], "found no class centres"),
            ([str(tmp_path / "text.params"), out], "text.params: not a file of MXNet's arrays"),
            ([str(tmp_path / "absent.params"), out], "No such file"), ([str(gap), out], "found no fc7_1_weight"),
            ([str(tmp_path / "empty"), out], "found no <rank>_centers.param"),
            ([str(whole), out, "--shards", "x"], "argument --shards: invalid int value: 'x'"),
            ([str(whole), out, "--classes", "12"], "found 33 rows in 1 shard, expected 12 for 12 classes"),
            ([str(whole), out, "--sub-centres", "2"], "a multiple of --sub-centres 2"),
            ([str(whole), out, "--shards", "34"], "--shards: found 34, expected 1 to 33"),
            ([str(whole), str(tmp_path)], "exists already"), ([str(whole), str(whole)], "is an input")]:
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert words in err and len(err.splitlines()) == 1
        assert not Path(out).exists()


def test_the_command_takes_no_memory_for_what_it_copies(tmp_path: Path) -> None:
    """128 MB of W under a limit that 128 MB of private memory beside the interpreter's would break."""
    rows = np.zeros((1 << 16, 512), np.float32)
    rows[:, 0] = np.arange(len(rows))
    path = save(tmp_path / "big.params", arg__fc7_weight=rows)
    code = ("import resource, sys; from common.convert_centres import main\n"
            "kb = [int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmData')][0]\n"
            "resource.setrlimit(resource.RLIMIT_DATA, ((kb << 10) + (64 << 20),) * 2)\n"
            "sys.exit(main(sys.argv[1:]))")
    subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / "out.params"), "--shards", "3"], check=True,
                   cwd=ROOT)
    last = load(tmp_path / "out.params")["arg:fc7_2_weight"]
    assert last[-1, 0] == len(rows) - 1 and len(last) == len(rows) // 3
