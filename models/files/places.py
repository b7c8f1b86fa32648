"""Places of a saved model: a file, the folder that holds it, or a repository on the hub."""

import re
from pathlib import Path

from prunezoo.models.errors import ModelError
from prunezoo.models.options import shown

MODEL = "model.safetensors"  # in a run's folder, a release's folder and a repository
HUB = "hf://"
FORM = "write hf://owner/name or hf://owner/name@revision"
ADDRESS = re.compile(r"hf:/{1,2}([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?")  # pathlib drops a slash


def is_hub(where: str | Path) -> bool:
    """Return True for `hf://owner/name`, False for a path."""
    return str(where).startswith("hf:/")


def located(where: str | Path) -> Path:
    """The model file itself; a repository's is fetched, or taken from the cache.

    Raises:
        ModelError: an address that is none, or a repository that cannot be reached.
    """
    if is_hub(where):
        return from_hub(where, MODEL)
    return Path(where) / MODEL if Path(where).is_dir() else Path(where)


def from_hub(where: str | Path, file: str) -> Path:
    """A file of `hf://owner/name` or `hf://owner/name@revision`, in the local cache.

    Raises:
        ModelError: see `located`, or the repository has no such file.
    """
    name, revision = repository(where)
    # here, as a model in a file needs no hub
    from huggingface_hub import constants, errors, hf_hub_download

    address = f"{HUB}{name}" + (f"@{revision}" if revision else "")
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except errors.LocalEntryNotFoundError:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub is not reachable"
        raise ModelError(
            f"{address}: {file} is not in the Hugging Face cache, and {why}; fetch it once with a"
            " network (--online, or HF_HUB_OFFLINE=0), or point HF_HOME to a cache that has it"
        ) from None
    except errors.EntryNotFoundError:
        raise ModelError(f"{address}: has no file {file}; name another repository") from None
    except errors.HFValidationError:
        raise ModelError(f"{address}: not a name of a repository; {FORM}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        raise ModelError(
            f"{address}: the hub answers {status}; check name and revision, and for a private one"
            " log in with `hf auth login`"
        ) from None


def repository(where: str | Path) -> tuple[str, str | None]:
    """The owner/name and the revision, if there is one, of a hub's address.

    Raises:
        ModelError: it is not an address.
    """
    parts = ADDRESS.fullmatch(str(where))
    if parts is None:
        raise ModelError(f"{shown(str(where))}: not an address on the hub; {FORM}")
    return parts[1], parts[2]
