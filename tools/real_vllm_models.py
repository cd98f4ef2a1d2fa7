# SPDX-License-Identifier: MIT
"""Make tiny models with random weights for tests with a real vLLM server.

Run by the Python of the venv that tools/real_vllm.sh builds: needs torch,
transformers and tokenizers, none of which the project itself depends on.

    python tools/real_vllm_models.py [--large] FOLDER NAME [NAME ...]

Each model is a random Llama, seeded by its name: two names give two different
answers to the same greedy prompt, so a test can tell which server answered.
Nothing is downloaded; one model takes less than a megabyte, a large one 2.3 GB in
shards: it says nothing sensible, and is for measuring how long weights take to load.
"""

from __future__ import annotations

import argparse
import shutil
import zlib
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

POSITIONS = 16384  # enough for one completion that runs for many seconds
VOCABULARY = 320
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
LARGE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 26,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
CHAT_TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer of about 300 entries on a few lines of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["the model sleeps and the model wakes up", "one host, many models"] * 8, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(folder: Path, name: str, large: bool = False) -> None:
    """Write model and tokenizer to FOLDER/NAME; a half-written folder never gets the final name."""
    target = folder / name
    partial = folder / f".{name}.partial"
    for path in (target, partial):
        shutil.rmtree(path, ignore_errors=True)
    torch.manual_seed(zlib.crc32(name.encode()))
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        **(LARGE if large else TINY),
        max_position_embeddings=POSITIONS,
        bos_token_id=0,
        eos_token_id=1,
        # Larger than usual: with the default the logits of a random model are so close
        # together that rounding could change a greedy answer.
        initializer_range=0.02 if large else 0.4,
        tie_word_embeddings=False,
    )
    if large:
        torch.set_default_dtype(torch.bfloat16)  # half the memory, and half the time
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(partial, max_shard_size="600MB")
    build_tokenizer().save_pretrained(partial)
    partial.rename(target)


def main() -> None:
    """Read the command line and build every model asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--large", action="store_true", help="with weights of 2.3 GB")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        build_model(args.folder, name, args.large)


if __name__ == "__main__":
    main()
