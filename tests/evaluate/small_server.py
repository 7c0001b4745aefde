"""A server of chat completions in a process of its own, which answers with the prompt, and fails as its options say.

python small_server.py MODEL --host HOST --port PORT [--fail] [--never] [--die-after N] [--child FILE] [--name NAME]
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--host", required=True)
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--fail", action="store_true", help="end with an error")
parser.add_argument("--killed", action="store_true", help="end by a signal")
parser.add_argument("--never", action="store_true", help="never become ready")
parser.add_argument("--deaf", action="store_true", help="ignore SIGTERM")
parser.add_argument("--die-after", type=int, metavar="N", help="end after N requests (default: $DIE_AFTER, or never)")
parser.add_argument("--child", type=Path, help="start a process in another session, and write its id and that of this")
parser.add_argument("--name", help="of the model, in place of its folder")
options = parser.parse_args()

if options.deaf:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if options.child:
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    options.child.write_text(f"{child.pid} {os.getpid()}")
print(f"loading {options.model}")
if options.fail:
    print("ValueError: unknown architecture", file=sys.stderr)
    print("\n".join(f"frame {number}" for number in range(50)), file=sys.stderr)
    sys.exit(1)
if options.killed:
    os.kill(os.getpid(), signal.SIGKILL)
if options.never:
    time.sleep(1000)
num_requests, die_after = 0, options.die_after or int(os.environ.get("DIE_AFTER") or 10**9)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._reply({"data": [{"id": options.name or options.model}]})

    def do_POST(self) -> None:
        global num_requests
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        num_requests += 1
        if num_requests > die_after:
            self.connection.shutdown(socket.SHUT_RDWR)
            time.sleep(0.3)  # the port is open a little longer than the connections
            os._exit(9)
        fields = {key: value for key, value in request.items() if key not in ("model", "messages")}
        text = json.dumps({"prompt": request["messages"][-1]["content"], **fields})
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        self._reply({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})

    def _reply(self, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


ThreadingHTTPServer.allow_reuse_address = False
ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()
