"""Checkpoints from the model hub (huggingface.co), kept in its local cache."""

import re
from pathlib import Path

from groupvit.checkpoints.native import CONFIG, WEIGHTS
from groupvit.checkpoints.transformers import PICKLE
from groupvit.checkpoints.trunks import PROCESSOR
from groupvit.errors import InputError


def is_hub_id(source: str) -> bool:
    """Return True if `source` is spelt `owner/name` or `owner/name@revision`."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?", source) is not None


_REASONS = {
    "GatedRepoError": "it is gated: accept its terms on its page, and log in (hf auth login, or HF_TOKEN)",
    "RepositoryNotFoundError": "there is no such repository, or it is private: log in (hf auth login, or HF_TOKEN)",
    "RevisionNotFoundError": "it has no such revision",
}
"""What the hub's errors mean, whose first lines are those of HTTP."""


def download(repo_id: str, revision: str | None = None, *, allow_pickle: bool = False) -> Path:
    """Download a repository's configuration, image statistics and `model.safetensors`, and return their folder.

    `revision` (or `owner/name@revision`) pins a branch, tag or commit. Without a connection the cache is used.
    `allow_pickle` also takes `pytorch_model.bin`; no code in it runs.
    """
    from huggingface_hub import snapshot_download

    repo_id, _, pinned = repo_id.partition("@")
    if pinned and revision and pinned != revision:
        raise InputError(f"{repo_id} is asked for at two revisions, {pinned} and {revision}: name one")
    patterns = [CONFIG, WEIGHTS, f"{WEIGHTS}.index.json", "model-*-of-*.safetensors"]
    patterns += [PICKLE] if allow_pickle else []
    try:
        wanted = [*patterns, PROCESSOR]
        folder = Path(snapshot_download(repo_id, revision=pinned or revision, allow_patterns=wanted))
    except Exception as error:  # the library's own errors and those of the HTTP client it happens to use
        known = {name: why for name, why in _REASONS.items() if name in [each.__name__ for each in type(error).__mro__]}
        why = next(iter(known.values()), (str(error).strip() or type(error).__name__).splitlines()[0])
        raise InputError(f"{repo_id} cannot be downloaded from the hub and is not in its cache: {why}") from error
    if not any(any(folder.glob(name)) for name in patterns[1:]):
        if allow_pickle:
            raise InputError(f"{repo_id} has neither {WEIGHTS} nor {PICKLE}")
        raise InputError(
            f"{repo_id} has no {WEIGHTS}, and pickled weights are not read unasked: name a revision that has it (the "
            "hub's own conversions are at refs/pr/N), or use `groupvit convert --allow-pickle`"
        )
    return folder
