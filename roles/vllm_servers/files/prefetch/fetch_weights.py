# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""Fetch a model of the Hugging Face Hub into the cache that vLLM reads. Runs in a container of the model's own image.

    python3 fetch_weights.py ID REPO REVISION LOAD_FORMAT MARKER SECONDS CACHE look|fetch|force

What is fetched is what vLLM would fetch, so that a server finds all it wants and needs no network. How far it is, and
in the end what came of it, is told in ID.json beside this script; MARKER, in the model's folder of the cache, says that
everything is there. A run that was cut short goes on with the files that are missing. CACHE is where the cache has to
be; `look` fetches nothing, `force` asks the Hub also where the marker is. A cache that can't be written gets no marker:
there the files are looked at each time.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import fcntl
import fnmatch
import json
import os
import pathlib
import re
import shutil
import signal
import sys
from collections.abc import Callable

# Told to huggingface_hub by the environment, which it reads once, when it is imported. Servers may well be kept offline
# by their environment; this is the one who is not.
os.environ.update(HF_HUB_OFFLINE="0", HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_TELEMETRY="1")
os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "30")

try:
    import huggingface_hub
except ImportError:
    # vLLM may live in an environment of its own, whose Python stands in the first line of its command.
    command = shutil.which("vllm")
    first = pathlib.Path(command).read_bytes().splitlines()[:1] if command else []
    python = first[0][2:].decode(errors="replace").strip() if first and first[0].startswith(b"#!/") else ""
    if "python" not in python or os.environ.get("HOMEGPT_PREFETCH_AGAIN"):
        note = "its image has no huggingface_hub: set `image` or vllm_image to an image of vLLM, which contains it"
        pathlib.Path(__file__).with_name(f"{sys.argv[1]}.json").write_text(
            json.dumps({"state": "failed", "done": 0, "total": 0, "note": note}), encoding="utf-8"
        )
        sys.exit(note)
    os.environ["HOMEGPT_PREFETCH_AGAIN"] = "1"
    os.execv(python, [python, *sys.argv])  # noqa: S606

from huggingface_hub import constants, errors

# The same as in vLLM's loader, in its order: the first pattern that matches any file is the one that is used.
WEIGHTS = {
    "safetensors": ["*.safetensors"],
    "fastsafetensors": ["*.safetensors"],
    "instanttensor": ["*.safetensors"],
    "runai_streamer": ["*.safetensors"],
    "mistral": ["consolidated*.safetensors"],
    "npcache": ["*.bin"],
    "pt": ["*.pt"],
    "dummy": [],
}
ANY_WEIGHTS = ["*.safetensors", "*.bin", "*.pt"]
INDEX = "model.safetensors.index.json"
# What a server never reads: weights in other forms, and what is for people.
USELESS = (
    *(
        ".safetensors",
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
        ".gguf",
        ".ggml",
        ".onnx",
        ".onnx_data",
        ".h5",
        ".msgpack",
        ".ot",
    ),
    *(".tflite", ".mlmodel", ".npz", ".npy", ".tensors", ".nemo", ".llamafile", ".zip", ".tar", ".gz", ".parquet"),
    *(".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".mp4", ".webm", ".wav", ".mp3", ".pdf", ".md", ".ipynb"),
    ".gitattributes",
)
WORKERS = 4


class Problem(Exception):
    """Why a model can't be fetched, and what to do about it, for people."""


def wanted_files(names: list[str], load_format: str, read_index: Callable[[], str]) -> list[str]:
    """Return the names of those files that vLLM loads; `read_index` gives the text of INDEX. Raises Problem."""
    patterns = WEIGHTS.get(load_format, ANY_WEIGHTS)
    if load_format == "auto" and any(fnmatch.fnmatch(os.path.basename(n), "consolidated*.safetensors") for n in names):
        patterns = WEIGHTS["mistral"]
    weights: set[str] = set()
    if "*.safetensors" in patterns and INDEX in names:
        weights = set(json.loads(read_index())["weight_map"].values())
    top = [name for name in names if "/" not in name]
    for pattern in patterns:
        weights = weights or set(fnmatch.filter(top, pattern))
    if not weights <= set(names):
        raise Problem(f"{INDEX} names files that do not exist: {', '.join(sorted(weights - set(names))[:3])}")
    if patterns and not weights:
        raise Problem(f"it has no weights that vLLM loads ({', '.join(patterns)}): check `model` and args.load_format")
    return [
        name
        for name in names
        if name in weights or not (name.startswith("original/") or name.lower().endswith(USELESS))
    ]


class Fetch:
    """One model's way into the cache, and what is told about it meanwhile."""

    def __init__(
        self, model: str, repo: str, revision: str, load_format: str, marker: str, seconds: str, cache: str, mode: str
    ) -> None:
        self.wanted_cache = cache
        self.mode = mode
        self.marked = False
        self.repo = repo
        self.revision = revision
        self.load_format = load_format
        self.seconds = int(seconds)
        self.status = pathlib.Path(__file__).with_name(f"{model}.json")
        self.cache = pathlib.Path(constants.HF_HUB_CACHE)
        self.folder = self.cache / ("models--" + repo.replace("/", "--"))
        self.marker = self.folder / marker
        self.files: dict[pathlib.Path, int] = {}  # those that are wanted, and their sizes

    def run(self) -> None:
        """Fetch everything, and tell what came of it."""
        try:
            signal.signal(signal.SIGTERM, self.end)
            signal.signal(signal.SIGALRM, self.end)
            signal.alarm(self.seconds)
            self.tell("fetching")
            self.check_cache()
            if self.mode == "look" or not is_writable(self.folder):
                if self.is_here():
                    self.complete("the cache is not written")
                    return
                if self.mode == "look":
                    raise Problem(
                        f"not all files are in {self.cache}, which is read-only or not in a volume: put them there, or "
                        "mount a writable volume (vllm_volumes)"
                    )
            if self.mode != "force" and self.marker.exists():
                self.is_here()  # what is told of their size
                self.tell("complete")
                return
            try:
                info = huggingface_hub.HfApi().model_info(self.repo, revision=self.revision, files_metadata=True)
            except Exception as error:
                if not is_unreachable(error) or not self.is_here():
                    raise
                self.complete("the Hub can't be reached, but all files are present from an earlier download")
                return
            self.fetch(str(info.sha), {file.rfilename: file.size or 0 for file in info.siblings or []})
        except Exception as error:
            problem = str(error) if isinstance(error, Problem) else explain(error, self.repo, self.revision, self.cache)
            self.tell("failed", problem)
            print(f"failed: {problem}", flush=True)
            os._exit(1)  # other files may still be on their way

    def fetch(self, commit: str, sizes: dict[str, int]) -> None:
        """Fetch what is missing of a commit's files, the large ones first."""

        def read_index() -> str:
            path = huggingface_hub.hf_hub_download(self.repo, INDEX, revision=commit)
            return pathlib.Path(path).read_text(encoding="utf-8")

        snapshot = self.folder / "snapshots" / commit
        self.files = {snapshot / name: sizes[name] for name in wanted_files(list(sizes), self.load_format, read_index)}
        missing = sorted((path for path in self.files if not path.exists()), key=lambda path: -self.files[path])
        self.drop_left_overs()
        self.check_space(sum(self.files[path] for path in missing))
        # File by file and not by snapshot_download: that one remembers every file of the repository, and what is left
        # out on purpose would make the model incomplete for a server that is offline.
        pool = concurrent.futures.ThreadPoolExecutor(WORKERS)
        running = {
            pool.submit(huggingface_hub.hf_hub_download, self.repo, str(path.relative_to(snapshot)), revision=commit)
            for path in missing
        }
        while running:
            done, running = concurrent.futures.wait(running, timeout=1, return_when="FIRST_EXCEPTION")
            for future in done:
                future.result()
            self.tell("fetching")
        if commit != self.revision:
            # The name by which servers look for it, now that all is there.
            ref = self.folder / "refs" / self.revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            write(ref, commit)
        self.complete()

    def is_here(self) -> bool:
        """Whether an earlier download, by whomever, left all that is wanted."""
        ref = self.folder / "refs" / self.revision
        commit = ref.read_text(encoding="utf-8").strip() if ref.exists() else self.revision
        snapshot = self.folder / "snapshots" / commit
        names = [str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()]
        try:
            wanted = wanted_files(names, self.load_format, (snapshot / INDEX).read_text)
        except Problem:
            return False
        # Without its index it is unknown whether all shards are there.
        sharded = INDEX not in names and any("-of-" in name for name in wanted)
        self.files = {snapshot / name: (snapshot / name).stat().st_size for name in wanted}
        return "config.json" in names and not sharded

    def drop_left_overs(self) -> None:
        """Remove the parts of files whose download was killed; they can't be continued."""
        for part in self.folder.glob("blobs/*.incomplete"):
            parsed = re.fullmatch(r"(.+)\.[0-9a-f]{8}\.incomplete", part.name)
            lock = self.cache / ".locks" / self.folder.name / f"{parsed[1]}.lock" if parsed else None
            # Whoever is downloading it holds its lock.
            if lock and lock.exists():
                with contextlib.suppress(OSError), lock.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    part.unlink()

    def check_space(self, wanted: int) -> None:
        """Raise Problem when the disk can't hold so many bytes more."""
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if wanted > free:
            raise Problem(
                f"the disk of the cache is too small: {wanted / 1e9:.1f} GB must be fetched, but {free / 1e9:.1f} GB "
                "are free: free space, or set vllm_cache_dir to a larger disk"
            )

    def check_cache(self) -> None:
        """Raise Problem if the image itself puts the cache elsewhere: what is fetched there would be lost."""
        if os.path.normpath(self.cache) != os.path.normpath(self.wanted_cache):
            names = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME")
            said = ", ".join(f"{name}={os.environ[name]}" for name in names if os.environ.get(name))
            raise Problem(
                f"its image has the cache in {self.cache} ({said}) and not in {self.wanted_cache}: set HF_HOME in "
                "vllm_env to a folder that a volume of vllm_volumes has, such as /root/.cache/huggingface"
            )

    def complete(self, note: str = "") -> None:
        """Leave the marker, where that can be."""
        if self.mode != "look" and is_writable(self.folder):
            write(self.marker, f"{self.repo} {self.revision} was fetched by homegpt.vllm\n")
            self.marked = True
        self.tell("complete", note)
        print("complete", flush=True)

    def tell(self, state: str, note: str = "") -> None:
        """Say for the watcher how far it is."""
        done = 0
        with contextlib.suppress(OSError):  # files are moved meanwhile
            done = sum(size for path, size in self.files.items() if path.exists())
            done += sum(part.stat().st_size for part in self.folder.glob("blobs/*.incomplete"))
        total = sum(self.files.values())
        write(
            self.status,
            json.dumps({"state": state, "done": min(done, total), "total": total, "note": note, "marked": self.marked}),
        )

    def end(self, number: int, *_frame: object) -> None:
        """Time is over, or somebody stops the container."""
        if number == signal.SIGALRM:
            why = f"it was not fetched within {self.seconds} s (vllm_servers_prefetch_timeout_seconds)"
        else:
            why = "its download was stopped"
        self.tell("failed", f"{why}: run prefetch.yml again, which continues with the missing files")
        os._exit(1)


def is_writable(folder: pathlib.Path) -> bool:
    """Whether the folder can be written, or made."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return os.access(there, os.W_OK)


def is_unreachable(error: BaseException) -> bool:
    """Whether the Hub could not be asked at all. The kinds of error differ with the version of huggingface_hub."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return int(status) >= 500
    kinds = {"TransportError", "ConnectionError", "Timeout", "ProxyError", "OfflineModeIsEnabled"}
    return any(kind.__name__ in kinds for kind in type(error).__mro__)


def explain(error: BaseException, repo: str, revision: str, cache: pathlib.Path) -> str:
    """The cause and the remedy in one line."""
    endpoint = constants.ENDPOINT
    token = bool(huggingface_hub.get_token())
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = " ".join(str(error).split())
    if isinstance(error, errors.GatedRepoError):
        whose = "the account of the token vllm_hf_token" if token else "an account and give its token as vllm_hf_token"
        return f"{repo} is gated ({status}): accept its conditions at {endpoint}/{repo} with {whose}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision} ({status}): correct args.revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        private = "whose account may read it" if token else "if it is a private one"
        return f"{endpoint} knows no {repo} ({status}): correct `model`, or give a token as vllm_hf_token {private}"
    if status in (401, 403):
        return (
            f"{endpoint} refuses {repo} ({status}): check the token vllm_hf_token and what it may read (site.yml hands "
            "a changed one over)"
        )
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of the cache is full ({cache} in the container): free space, or set vllm_cache_dir"
    if getattr(error, "errno", None) in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"the cache can't be written ({said}): check the owner of vllm_cache_dir"
    if is_unreachable(error):
        return (
            f"{endpoint} can't be reached ({said[:200]}): check the host's network, or set HF_ENDPOINT or HTTPS_PROXY "
            "in vllm_env; then run prefetch.yml again, which continues with the missing files"
        )
    return f"{type(error).__name__}: {said[:300]}"


def write(path: pathlib.Path, text: str) -> None:
    """Replace the file as a whole: there are readers."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


if __name__ == "__main__":
    Fetch(*sys.argv[1:]).run()
