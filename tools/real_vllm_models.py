# SPDX-License-Identifier: MIT
"""Make tiny models with random weights for tests with a real vLLM server.

Run by the Python of the venv that tools/real_vllm.sh builds: needs torch,
transformers and tokenizers, none of which the project itself depends on.

    python tools/real_vllm_models.py FOLDER NAME [NAME ...]

Each model is a random Llama, seeded by its name: two names give two different
answers to the same greedy prompt, so a test can tell which server answered.
Nothing is downloaded; one model takes less than a megabyte.
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


def build_model(folder: Path, name: str) -> None:
    """Write model and tokenizer to FOLDER/NAME; a half-written folder never gets the final name."""
    target = folder / name
    partial = folder / f".{name}.partial"
    for path in (target, partial):
        shutil.rmtree(path, ignore_errors=True)
    torch.manual_seed(zlib.crc32(name.encode()))
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        bos_token_id=0,
        eos_token_id=1,
        # Larger than usual: with the default the logits of a random model are so close
        # together that rounding could change a greedy answer.
        initializer_range=0.4,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(partial)
    build_tokenizer().save_pretrained(partial)
    partial.rename(target)


def main() -> None:
    """Read the command line and build every model asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        build_model(args.folder, name)


if __name__ == "__main__":
    main()
