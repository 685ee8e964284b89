# SPDX-License-Identifier: Apache-2.0
"""The example of a server: real photographs and a real detector, over HTTP."""
from __future__ import annotations

import base64
import http.client
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from common.export_onnx import main as export
from common.faces.aligner import Aligner
from common.faces.face_detector import FaceDetector
from recognition.evaluation.trained_backbone import load_backbone
from scripts.serve import MOST_BYTES, Server, main

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
PHOTOGRAPHS = ("s1/1.pgm", "s2/1.pgm")


@pytest.fixture(scope="module")
def detector(shared: Path) -> Path:
    path = shared / "data" / "yunet" / "yunet_n_320_320.onnx"
    if not path.is_file():
        pytest.skip("the detector is not here")
    return path


@pytest.fixture(scope="module")
def network(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "small.onnx"
    assert export(["--model", f"{small_model},1", "--output", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def server(network: Path, detector: Path) -> Iterator[Server]:
    found = Server(0, network, detector, 0.01)
    thread = threading.Thread(target=found.serve_forever, args=(0.01,))
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def ask(server: Server, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request("POST", "/", body, headers)
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def request(*images: bytes) -> bytes:
    return json.dumps({"images": [base64.b64encode(image).decode() for image in images]}).encode()


def test_cosines_are_those_of_the_checkpoint(server: Server, shared: Path, detector: Path, small_model: Path) -> None:
    """Found, aligned and embedded by the parts of the commands; to 1e-5, the export's roundings."""
    paths = [shared / "data" / "orl" / name for name in PHOTOGRAPHS]
    aligner = Aligner(detector=FaceDetector(detector))
    rows = load_backbone(f"{small_model},1").embed([aligner(path.name, path).image for path in paths])
    status, found = ask(server, request(*(path.read_bytes() for path in paths)))
    assert status == 200
    assert found["cosine"] == pytest.approx(float(rows[0] @ rows[1]), abs=1e-5)
    assert found["distance"] == pytest.approx(2 - 2 * found["cosine"]) and found["same"] == (found["distance"] < 0.01)
    status, found = ask(server, request(*[paths[0].read_bytes()] * 2))
    assert status == 200 and found["cosine"] == pytest.approx(1, abs=1e-6) and found["same"] is True


def png(height: int, width: int) -> bytes:
    return cv2.imencode(".png", np.full((height, width, 3), 90, np.uint8))[1].tobytes()


@pytest.mark.parametrize("body, message", [
    (request(png(200, 200), png(200, 200)), "no face found"),
    (request(b"no image", b"no image"), "its 8 bytes are not an image"),
    (request(png(8192, 8192), b""), "the image is 8192 x 8192, expected at most 33554432 pixels"),
    (request(b"one"), "not an image"),
    (b'{"images": ["?", "?"]}', "expected"),
    (b'{"images": [1, 2]}', "expected"),
    (b'{"images": 7}', "expected"),
    (b'{"pictures": []}', "expected"),
    (b'{"images": []}', "expected"),
    (b"[" * 100_000, "expected"),
    (b"\xff\xfe", "expected"),
    (b"", "expected"),
])
def test_what_cannot_be_compared_gets_an_answer(server: Server, body: bytes, message: str, capfd) -> None:
    status, found = ask(server, body)
    assert status == 400 and list(found) == ["error"]
    assert message in found["error"] and "\n" not in found["error"] and len(found["error"]) < 300
    assert "Traceback" not in capfd.readouterr().err


def test_the_command_of_the_manual_sends_photographs_of_any_size(server: Server, tmp_path: Path) -> None:
    """A word of a command line has at most 128 KB."""
    manual = (Path(__file__).parents[2] / "docs" / "shipping.md").read_text()
    command = next(line for line in manual.splitlines() if "base64 -w0" in line).strip()
    noise = np.random.RandomState(0).randint(0, 256, (300, 300, 3), np.uint8)
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(cv2.imencode(".png", noise)[1].tobytes())
    if shutil.which("curl") is None or shutil.which("base64") is None:
        pytest.skip("no curl or base64 here")
    command = command.replace(":8000", f":{server.server_port}").replace("curl ", "curl -s --noproxy '*' ")
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["error"].startswith("no face found"), done.stderr


def test_requests_without_length_or_too_long(server: Server) -> None:
    assert ask(server, b"", **{"Content-Length": str(MOST_BYTES + 1)}) == (
        413, {"error": f"found {MOST_BYTES + 1} bytes, expected at most {MOST_BYTES}"})
    assert ask(server, b"", **{"Content-Length": "many"})[0] == 411


@pytest.mark.parametrize("change, message", [
    ({"model": "none.onnx"}, "none.onnx: not a network in ONNX"),
    ({"detector": "none.onnx"}, "none.onnx: not found, expected a YuNet model"),
    ({"port": 70000}, "--port: found 70000, expected 0 to 65535"),
    ({"threshold": "nan"}, "--threshold: found nan, expected 0 to 4"),
    ({"port": "TAKEN"}, "cannot be used: Address already in use"),
])
def test_a_server_that_cannot_start(change, message, network, detector, server, capsys) -> None:
    given = {"model": network, "detector": detector, "threshold": 1, "port": 0, **change}
    words = [str(word) for name, value in given.items() for word in (
        f"--{name}", server.server_port if value == "TAKEN" else value)]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
