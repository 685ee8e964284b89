# SPDX-License-Identifier: Apache-2.0
"""Says over HTTP, on this machine alone, whether two photographs show the same person. An example to start from.

    python -m scripts.serve --model r50.onnx --detector face_detection_yunet_2023mar.onnx --threshold 1.25
    printf '{"images": ["%s", "%s"]}' "$(base64 -w0 a.jpg)" "$(base64 -w0 b.jpg)" | curl -d @- http://127.0.0.1:8000

Of each photograph the large and central face is aligned and embedded, image plus mirror. The answer is JSON: cosine,
distance (2 - 2 cosine), and ``same``, by the threshold: a distance, as verification prints its best. What cannot be
compared gets an ``error``, and HTTP's status 400, 411 or 413.
"""
from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from common.embedding.foreign_models import OnnxNetwork
from common.faces.alignment import BASE, align
from common.faces.face_detector import FaceDetector, choose_face
from recognition.config.command_line import Parser, check_ranges
from recognition.config.devices import CPU
from recognition.data.images.image import decode_rgb
from recognition.errors import UserError, command
from recognition.evaluation.embed_images import with_mirrors
from recognition.evaluation.trained_backbone import unit_rows

MOST_BYTES, MOST_PIXELS, SECONDS = 32 << 20, 1 << 25, 10  # of a request, of a photograph, for a request


class Server(HTTPServer):
    def __init__(self, port: int, model: Path, detector: Path, threshold: float) -> None:
        self.embedder, self.detect = OnnxNetwork(model, CPU, (3, BASE, BASE)), FaceDetector(detector)
        self.threshold = threshold
        super().__init__(("127.0.0.1", port), Request)

    def embed(self, encoded: str) -> np.ndarray:
        """The embedding of a photograph in base64, float32 (D,), of length 1.

        :raises ValueError: if it is no image, or shows no face.
        """
        image = decode_rgb(base64.b64decode(encoded, validate=True), MOST_PIXELS)
        found = self.detect(image)
        chosen = choose_face(found, *image.shape[:2])
        if chosen is None:
            raise ValueError("no face found")
        planes = align(image, found.landmarks[chosen]).transpose(2, 0, 1)[np.newaxis]
        return unit_rows(with_mirrors(self.embedder)(planes))[0]


class Request(BaseHTTPRequestHandler):
    server: Server
    timeout = SECONDS

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            return self.answer(411, {"error": "found no Content-Length"})
        if int(length) > MOST_BYTES:
            return self.answer(413, {"error": f"found {length} bytes, expected at most {MOST_BYTES}"})
        try:
            first, second = map(self.server.embed, json.loads(self.rfile.read(int(length)))["images"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return self.answer(400, {"error": f"{error}; expected {{\"images\": [BASE64, BASE64]}} of two photographs"})
        cosine = float(first @ second)
        self.answer(200, {"cosine": cosine, "distance": 2 - 2 * cosine, "same": 2 - 2 * cosine < self.server.threshold})

    def answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m scripts.serve", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, metavar="FILE.onnx", help="the network")
    parser.add_argument("--detector", type=Path, required=True, metavar="FILE.onnx", help="a YuNet model of yours")
    parser.add_argument("--threshold", type=float, required=True, help="a distance: below it two are the same person")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default 8000)")
    args = parser.parse_args(argv)
    check_ranges(args, port=(0, 65535), threshold=(0, 4))
    try:
        server = Server(args.port, args.model, args.detector, args.threshold)
    except OSError as error:
        raise UserError(f"--port: {args.port} cannot be used: {error.strerror}") from error
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
