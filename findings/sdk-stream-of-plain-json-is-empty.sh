#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# openai 3.57.0 and anthropic 2.14.0: whoever asks for a stream and is answered by JSON with status 200 gets an empty stream. Neither SDK
# looks at the Content-Type; read as server-sent events, a text of JSON is a field with an unknown name, which is passed over. No event, no
# exception, no warning: the loop ends as if the model had said nothing. It makes no difference whether the JSON is a whole answer, as of
# a server or a cache that can't stream, or an error that came with 200. Without `stream`, the same answer is read.
#
# Seen:
#     openai, without stream: hello           anthropic, without stream: hello
#     openai, chunks: 0                       anthropic, events: 0
#     openai, chunks of an error: 0           anthropic, events of an error: 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check openai==3.57.0 anthropic==2.14.0 httpx2==2.16.2
cat >ask.py <<'PYTHON'
import http.server
import json
import threading

import anthropic
import openai

ANSWERS = {
    "/v1/chat/completions": {
        "id": "a",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    },
    "/v1/messages": {
        "id": "a",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    },
}
ERRORS = {
    "/v1/chat/completions": {"error": {"message": "the engine died", "type": "InternalServerError", "code": 500}},
    "/v1/messages": {"type": "error", "error": {"type": "api_error", "message": "the engine died"}},
}


class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps((ERRORS if body["model"] == "broken" else ANSWERS)[self.path]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = "http://127.0.0.1:%d" % server.server_address[1]
chat = openai.OpenAI(base_url=url + "/v1", api_key="key").chat.completions
messages = anthropic.Anthropic(base_url=url, api_key="key").messages
question = [{"role": "user", "content": "hi"}]

print("openai, without stream:", chat.create(model="m", messages=question).choices[0].message.content)
print("openai, chunks:", len(list(chat.create(model="m", messages=question, stream=True))))
print("openai, chunks of an error:", len(list(chat.create(model="broken", messages=question, stream=True))))
print("anthropic, without stream:", messages.create(model="m", messages=question, max_tokens=9).content[0].text)
print("anthropic, events:", len(list(messages.create(model="m", messages=question, max_tokens=9, stream=True))))
print("anthropic, events of an error:", len(list(messages.create(model="broken", messages=question, max_tokens=9, stream=True))))
PYTHON
said=$(env -i PATH="$PATH" HOME="$work" LC_ALL=C.UTF-8 venv/bin/python ask.py)
echo "$said"
[ "$said" = "openai, without stream: hello
openai, chunks: 0
openai, chunks of an error: 0
anthropic, without stream: hello
anthropic, events: 0
anthropic, events of an error: 0" ]
echo "as stated"
