# SPDX-License-Identifier: MIT
"""Make tiny models that complete no text, with random weights, for tests with a real vLLM server.

Run by the Python of the venv that tools/real_vllm.sh builds, as real_vllm_models.py is:

    python tools/real_vllm_kinds.py FOLDER KIND [KIND ...]

KIND is `embedding` (a BERT that gives vectors) or `score` (a BERT that gives a number for two texts). Each goes to
FOLDER/KIND, seeded by that folder's name: two folders of other names give two different vectors. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

import torch
from real_vllm_models import VOCABULARY, build_tokenizer  # type: ignore[import-not-found]  # beside this file
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
# Larger than usual: with the default the vectors of all texts lie close together.
SPREAD = 0.4


def build_bert_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the text models, with the special tokens that a BERT has."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>"})
    return tokenizer


def build_bert(folder: Path, kind: str) -> None:
    """Write a BERT and its tokenizer."""
    config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=512, initializer_range=SPREAD, **SIZES)
    config.num_labels = 1
    config.pad_token_id = 300
    made = BertModel(config) if kind == "embedding" else BertForSequenceClassification(config)
    made.save_pretrained(folder)
    build_bert_tokenizer().save_pretrained(folder)


def main() -> None:
    """Read the command line and build every model asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("kinds", nargs="+", choices=["embedding", "score"])
    args = parser.parse_args()
    for kind in args.kinds:
        torch.manual_seed(zlib.crc32(f"{args.folder.name}/{kind}".encode()))
        build_bert(args.folder / kind, kind)


if __name__ == "__main__":
    main()
