# SPDX-License-Identifier: MIT
"""A stand-in for the parts of huggingface_hub that fetch weights: the cache looks as after the real one.

STANDIN_DOWNLOAD_SECONDS is how long a download takes (default 0), STANDIN_DOWNLOAD_FAULT what it fails with.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from types import SimpleNamespace

FILES = {"config.json": b"{}\n", "model.safetensors": b"weights\n"}
HOME = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
constants = SimpleNamespace(
    HF_HUB_CACHE=os.environ.get("HF_HUB_CACHE") or str(HOME / "hub"), ENDPOINT="https://huggingface.co"
)


class HfHubHTTPError(OSError):
    """The family of what goes wrong."""


class RepositoryNotFoundError(HfHubHTTPError):
    """As its name says."""


class GatedRepoError(RepositoryNotFoundError):
    """As its name says."""


class RevisionNotFoundError(HfHubHTTPError):
    """As its name says."""


errors = SimpleNamespace(
    HfHubHTTPError=HfHubHTTPError,
    RepositoryNotFoundError=RepositoryNotFoundError,
    GatedRepoError=GatedRepoError,
    RevisionNotFoundError=RevisionNotFoundError,
)


def get_token() -> None:
    """There is none."""


class HfApi:
    """What the Hub answers."""

    def model_info(self, repo: str, **_options: object) -> SimpleNamespace:
        """Every model has the same files."""
        fault = os.environ.get("STANDIN_DOWNLOAD_FAULT")
        if fault:
            raise HfHubHTTPError(fault)
        files = [SimpleNamespace(rfilename=name, size=len(content)) for name, content in FILES.items()]
        return SimpleNamespace(sha=hashlib.sha1(repo.encode()).hexdigest(), siblings=files)


def hf_hub_download(repo: str, name: str, *, revision: str) -> str:
    """Write the file into the snapshot."""
    time.sleep(float(os.environ.get("STANDIN_DOWNLOAD_SECONDS") or 0) if name.endswith(".safetensors") else 0)
    folder = Path(constants.HF_HUB_CACHE) / ("models--" + repo.replace("/", "--"))
    path = folder / "snapshots" / revision / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(FILES[name])
    return str(path)
