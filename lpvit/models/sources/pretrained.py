"""Checks, without loading, whether timm's weights of a model are available on this machine."""

import functools
import urllib.error
import urllib.request
from pathlib import Path

import timm
import torch
from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

from lpvit.errors import LpvitError

_FILES = ("model.safetensors", "pytorch_model.bin")  # in timm's order
_SECONDS = 5


@functools.cache
def require_fetchable(name: str) -> None:
    """Checks that timm's weights of a model are cached or that their host responds.

    Raises:
        LpvitError: timm has no weights for the model, or they are not cached and there is no connection.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url or config.file):
        raise LpvitError(f"timm has no weights for '{name}'; name another model, or train this one")
    if config.file:
        return
    files = [config.hf_hub_filename] if config.hf_hub_filename else _FILES
    if config.hf_hub_id:
        place = hf_hub_url(config.hf_hub_id, files[0])
        found = any(isinstance(try_to_load_from_cache(config.hf_hub_id, file), str) for file in files)
    else:
        place = config.url
        found = Path(torch.hub.get_dir(), "checkpoints", Path(place).name).is_file()
    if not found and not _answers(place):
        raise LpvitError(
            f"the weights of '{name}' are not in the cache and cannot be fetched ({place} does not answer); connect "
            "once so that they are cached, or give a local file"
        )


def _answers(place: str) -> bool:
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(place, method="HEAD"), timeout=_SECONDS):
            return True
    except urllib.error.HTTPError:  # the host responds, though it may have the weights under another name
        return True
    except OSError:
        return False
