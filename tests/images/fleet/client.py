# SPDX-License-Identifier: MIT
"""A client of one host: asks its active model for completions until it is ended, and writes down how each went.

    python3 client.py FILE SECONDS_BETWEEN PORT ...

A line for each request: when it began and ended, the port, and what went wrong ("" when nothing did). It asks the
first server of those that says it is awake; where none is, the last that was.
"""

from __future__ import annotations

import http.client
import json
import sys
import time


def call(port, method, path, body=None):
    """Return the status and the parsed answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")
    finally:
        connection.close()


def awake(port):
    """Return whether the server says so."""
    try:
        return call(port, "GET", "/is_sleeping")[1] == {"is_sleeping": False}
    except (OSError, ValueError, http.client.HTTPException):
        return False


def ask(port):
    """Return what went wrong with a completion."""
    try:
        name = call(port, "GET", "/v1/models")[1]["data"][0]["id"]
        status, answer = call(port, "POST", "/v1/completions", {"model": name, "prompt": "Hello", "max_tokens": 4})
        return "" if status == 200 and answer["choices"][0]["text"] else "%s: %s" % (status, answer)
    except (OSError, ValueError, KeyError, http.client.HTTPException) as problem:
        return repr(problem)


def main():
    """Ask for ever."""
    file, pause, ports = sys.argv[1], float(sys.argv[2]), [int(port) for port in sys.argv[3:]]
    port = ports[0]
    with open(file, "a", buffering=1) as lines:
        while True:
            port = next((each for each in ports if awake(each)), port)
            began = time.time()
            problem = ask(port)
            lines.write(json.dumps([began, time.time(), port, problem]) + "\n")
            time.sleep(pause)


if __name__ == "__main__":
    main()
