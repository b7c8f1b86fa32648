"""Releases on the Hugging Face hub."""

import tempfile
from pathlib import Path

from prunezoo.models.files.places import HUB, repository
from prunezoo.reporting.errors import ReportingError
from prunezoo.reporting.release.folder import FILES, release


def send(run: Path, address: str, license: str) -> str:
    """Send the release of a finished run to `hf://owner/name`; return the page's address.

    The token is the one of `hf auth login` or HF_TOKEN. Neither it nor the hub's answer, which may
    repeat what was sent, is ever shown.

    Raises:
        ReportingError: the hub cannot be reached or refuses; see also `release`.
        ModelError: not an address.
    """
    from huggingface_hub import HfApi, constants, errors

    name, revision = repository(address)
    if revision:
        raise ReportingError(f"{address}: a release is sent to the main branch; leave out @…")
    if constants.HF_HUB_OFFLINE:
        raise ReportingError(f"{address}: sending needs the network; add --online")
    with tempfile.TemporaryDirectory() as folder:
        release(run, Path(folder), license, HUB + name)
        try:
            api = HfApi()
            page = api.create_repo(name, exist_ok=True)
            api.upload_folder(
                repo_id=name,
                folder_path=folder,
                allow_patterns=list(FILES),
                commit_message=f"Release of {run.resolve().name}",
            )
        except errors.HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else "no status"
            raise ReportingError(
                f"{address}: the hub refuses ({status}); log in with `hf auth login`, with a token"
                " that may write there"
            ) from None
        except Exception as error:  # whatever it is, its text may repeat what was sent
            raise ReportingError(
                f"{address}: not sent ({type(error).__name__}); check the network, and log in with"
                " `hf auth login`"
            ) from None
    return str(page)
