"""Models on the Hugging Face Hub: what is fetched when, and what its refusals mean to a user.

Everything goes through the Hub client's cache as a snapshot folder, so that the rest of this
package only ever sees folders, and transformers never goes to the network by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # the HTTP client's own: it also covers proxies and broken connections
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from automodel_core.errors import UserError

# Configuration, tokenizer, chat template, index of the weights: all that is read before a run is
# known to be sound.
SMALL_FILES = ("*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken", "*.spm", "*.vocab")
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf")


def fetch_small_files(name: str, revision: str | None, with_code: bool, argument: str) -> Path:
    """Fetch all of a repository but its weights.

    Args:
        name: Repository, such as `meta-llama/Llama-3.2-1B`.
        revision: Branch, tag or commit; None is the default branch.
        with_code: Its Python files too, for a model whose code the user trusts.
        argument: The parameter that holds `name`, for errors.

    Returns:
        The snapshot folder; its name is the resolved commit.

    Raises:
        UserError: It doesn't exist, is gated, or can't be reached and isn't cached.
    """
    patterns = [*SMALL_FILES, *(["*.py"] if with_code else [])]
    with explained(name, revision, argument):
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))


def fetch_files(name: str, commit: str, files: Sequence[str], argument: str) -> None:
    """Fetch the named files into the snapshot, with the Hub client's progress bars.

    Raises:
        UserError: As `fetch_small_files`.
    """
    with explained(name, commit, argument):
        snapshot_download(name, revision=commit, allow_patterns=list(files))


def weight_sizes(name: str, commit: str) -> dict[str, int] | None:
    """Name and bytes of every file that may hold weights; None if the Hub can't be asked."""
    try:
        plan = snapshot_download(
            name, revision=commit, allow_patterns=list(WEIGHT_FILES), dry_run=True
        )
    except (OSError, HTTPError):
        return None
    return {file.filename: file.file_size for file in plan}


@contextmanager
def explained(name: str, revision: str | None, argument: str) -> Iterator[None]:
    """Turn what the Hub client raises into one screen each."""
    try:
        yield
    except GatedRepoError:
        raise UserError(
            f"{name} is gated: its owner asks you to accept a licence first.",
            fix=f"accept it at https://huggingface.co/{name}, then set HF_TOKEN to a token of that "
            "account (or run `hf auth login`)",
            argument=argument,
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"There is no model {name} on the Hugging Face Hub that you can see, "
            "and no such folder here.",
            fix="check the spelling; for a private model set HF_TOKEN to a token that may read it",
            argument=argument,
        ) from None
    except RevisionNotFoundError:
        raise UserError(
            f"{name} has no branch, tag or commit {revision}.",
            fix=f"take one from https://huggingface.co/{name}/commits/main, or leave revision out",
            argument="revision",
        ) from None
    except HFValidationError:
        raise UserError(
            f"{name} is neither a folder here nor a possible name on the Hugging Face Hub.",
            fix="write OWNER/MODEL, or the path of a folder that exists",
            argument=argument,
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError) as error:
        raise unreachable(name, revision, argument, error) from None


def unreachable(name: str, revision: str | None, argument: str, error: Exception) -> UserError:
    """The Hub can't be asked, or won't answer, and the cache doesn't have what is needed."""
    answered = isinstance(error, HfHubHTTPError)
    cause = error if answered else error.__cause__ or error  # what made it look in the cache
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    if status in (401, 403):
        return UserError(
            f"The Hub doesn't let your token read {name} (it answers {status}).",
            fix="set HF_TOKEN to a token that may read it (https://huggingface.co/settings/tokens)",
            argument=argument,
        )
    if is_offline_mode():
        why, fix = "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE once"
    elif status is not None:
        why, fix = f"the Hub answers with error {status}", "try again later"
    else:
        why, fix = f"the Hub can't be reached ({' '.join(str(cause).split())})", "go online once"
    version = f"{name} at {revision}" if revision else name
    return UserError(
        f"{version} isn't wholly in the cache of this machine, and {why}.",
        fix=f"{fix}, or run `hf download {name}` where there is a network and copy the cache",
        argument=argument,
    )
