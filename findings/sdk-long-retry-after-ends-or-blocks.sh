#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# openai 3.57.0 and anthropic 2.14.0: both SDKs obey the `Retry-After` of a busy server's 503, and their `timeout` does not bound that wait: with
# `timeout=1`, a call takes as long as the server says. Above 120 s they part. openai then makes no second request at all, whatever `max_retries`
# says, and raises the error at once; anthropic sleeps for that time, without a sign, up to `max_retries` times. So a queue that tells its true
# waiting time ends one client's call and blocks the other's for minutes. openai's README speaks of "2 times by default, with a short exponential
# backoff", and of no limit.
#
# Seen, with timeout=1 and max_retries=1, for a server that answers the first request with 503 and the second with 200:
#                        openai                      anthropic
#     Retry-After: 3     answered after 3 s          answered after 3 s
#     Retry-After: 120   waits, after 6 s still      waits, after 6 s still
#     Retry-After: 121   failed at once, 1 request   waits, after 6 s still
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check openai==3.57.0 anthropic==2.14.0 httpx2==2.16.2
cat >ask.py <<'PYTHON'
import http.server
import json
import os
import sys
import threading
import time

if sys.argv[1] == "openai":
    import openai as sdk
else:
    import anthropic as sdk

OPENAI = {
    "id": "a",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
}
ANTHROPIC = {
    "id": "a",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}
requests = []


class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        requests.append(self.path)
        first = len(requests) == 1
        answer = {"error": {"message": "busy"}} if first else ANTHROPIC if "messages" in self.path else OPENAI
        body = json.dumps(answer).encode()
        self.send_response(503 if first else 200)
        if first:
            self.send_header("Retry-After", sys.argv[2])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = "http://127.0.0.1:%d" % server.server_address[1]
question = [{"role": "user", "content": "hi"}]
ended = []


def ask():
    began = time.monotonic()
    try:
        if sys.argv[1] == "openai":
            client = sdk.OpenAI(base_url=url + "/v1", api_key="key", timeout=1, max_retries=1)
            client.chat.completions.create(model="m", messages=question)
        else:
            client = sdk.Anthropic(base_url=url, api_key="key", timeout=1, max_retries=1)
            client.messages.create(model="m", messages=question, max_tokens=9)
        ended.append("answered, after %d s" % (time.monotonic() - began))
    except sdk.APIStatusError as error:
        ended.append("failed with %d" % error.status_code)


asking = threading.Thread(target=ask, daemon=True)
asking.start()
while not requests:
    time.sleep(0.05)
asking.join(6)
print(sys.argv[1], sys.argv[2] + ":", *ended or ["still waiting"], "(requests: %d)" % len(requests), flush=True)
os._exit(0)
PYTHON
said=$(for seconds in 3 120 121; do
    for sdk in openai anthropic; do
        env -i PATH="$PATH" HOME="$work" LC_ALL=C.UTF-8 venv/bin/python ask.py "$sdk" "$seconds"
    done
done)
echo "$said"
grep -qx 'openai 3: answered, after [345] s (requests: 2)' <<<"$said"
grep -qx 'anthropic 3: answered, after [345] s (requests: 2)' <<<"$said"
grep -qx 'openai 120: still waiting (requests: 1)' <<<"$said"
grep -qx 'anthropic 120: still waiting (requests: 1)' <<<"$said"
grep -qx 'openai 121: failed with 503 (requests: 1)' <<<"$said"
grep -qx 'anthropic 121: still waiting (requests: 1)' <<<"$said"
echo "as stated"
