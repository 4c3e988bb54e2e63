"""Serves the list of files in a model folder over HTTP, until it is told to stop."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from look import look

parser = argparse.ArgumentParser()
parser.add_argument("--model-dir", type=Path, required=True)
parser.add_argument("--port", type=int, required=True)
given = parser.parse_args()


class Models(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps(sorted(path.name for path in given.model_dir.iterdir())).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


look()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
HTTPServer(("127.0.0.1", given.port), Models).serve_forever()
