"""The hub through its own client: one commit written, one revision read, refusals in plain words with a way out."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from expresser.errors import InputError
from expresser.invocation import note_fetched

RepoType = Literal["model", "dataset"]
HUB_NAME = r"\w[\w.-]*/\w[\w.-]*"  # org/name
_KINDS: dict[RepoType, str] = {"model": "model", "dataset": "data set"}


def is_hub_id(text: str) -> bool:
    """Whether `text` could be ``org/name`` or ``org/name@revision``; a revision may have slashes, as branches do."""
    return re.fullmatch(rf"{HUB_NAME}(@\S+)?", text) is not None


def commit(
    repo: str,
    files: Mapping[str, Path | bytes],
    *,
    repo_type: RepoType,
    message: str,
    stale: Callable[[str], bool],
    what: str,
    revision: str | None = None,
    private: bool = False,
) -> str:
    """Make `files` (name there → what it holds) one commit of the repository, and return the commit's address.

    A reader of the branch sees the old files or the new ones, never a mixture. Large files go up first: where that breaks
    off nothing has changed, and the same call goes on with those that the hub does not have yet.

    Parameters
    ----------
    repo
        org/name; made where it does not exist.
    stale
        Which of the names there, that are not in `files`, go with this commit.
    what
        What is pushed, for messages: "corpus", "model".
    revision
        A branch, made from main where it does not exist; None: main.
    private
        Make a new repository private; one that is there and public is refused.

    Raises
    ------
    InputError
        Where the hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    try:
        api.create_repo(repo, repo_type=repo_type, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo, repo_type=repo_type).private:
            raise InputError(
                f"{repo}: this {_KINDS[repo_type]} is there already, and public: a push does not make it private. Do so in its "
                "settings on the hub, or push to another name. Nothing was sent."
            )
        if revision is not None:
            api.create_branch(repo, branch=revision, repo_type=repo_type, exist_ok=True)
        there = api.list_repo_files(repo, repo_type=repo_type, revision=revision)
        operations: list[Any] = [
            CommitOperationAdd(name, held if isinstance(held, bytes) else str(held)) for name, held in files.items()
        ]
        operations += [CommitOperationDelete(name) for name in there if name not in files and stale(name)]
        done = api.create_commit(
            repo, operations, commit_message=" ".join(message.split()), repo_type=repo_type, revision=revision
        )
    except InputError:
        raise
    except Exception as error:  # the client's own, those of its HTTP library, RuntimeError where a file did not go up
        reason = refusal(error, repo, revision, repo_type=repo_type, writing=True)
        raise InputError(f"{repo}: the hub did not take the {what} ({_line(error)}): {reason}") from error
    return str(done.commit_url)


def snapshot(model: str, files: tuple[str, ...]) -> Path:
    """The folder of the hub's cache that holds `files` of a model, org/name or org/name@revision.

    What is cached is not fetched again, and where the hub cannot be reached, or HF_HUB_OFFLINE is set, a whole cached
    revision serves. A connection that breaks is taken up by the client at the byte where it broke, several times; when it
    gives up, files that came whole stay.

    Raises
    ------
    InputError
        Saying whether name, revision, permission or network are wrong.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = model.partition("@")
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(files)))
    except Exception as error:  # as above
        reason = refusal(error, name, revision or None, repo_type="model")
        raise InputError(
            f"{model}: no such folder here, and the hub did not give it: {reason} ({_line(error)})"
        ) from error
    note_fetched(model, folder)
    return folder


def refusal(
    error: BaseException, repo: str, revision: str | None, *, repo_type: RepoType, writing: bool = False
) -> str:
    """What was wrong, and what to do, from an error of the client or of what it is built on."""
    from huggingface_hub import constants, errors

    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    login = "`hf auth login`, or HF_TOKEN"
    kind, act = _KINDS[repo_type], "write there" if writing else "read it"
    if isinstance(error, errors.HFValidationError):
        return "it is no name that the hub allows: org/name, of letters, digits and single - _ . between them."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{kind} {repo} is there, but has no revision {revision!r}. Name a branch, tag or commit of it."
    if isinstance(error, errors.GatedRepoError):
        return f"access is given on request: ask for it at {constants.ENDPOINT}/{repo}, and log in ({login})."
    offline = any(isinstance(e, errors.OfflineModeIsEnabled) for e in chain)
    if isinstance(error, errors.LocalEntryNotFoundError) or offline:
        part = isinstance(error, getattr(errors, "IncompleteSnapshotError", ()))
        cached = "" if writing else f"{'only part of it is' if part else 'it is not'} in {constants.HF_HUB_CACHE}, and "
        if offline:
            return f"{cached}this machine is told to be offline. Unset HF_HUB_OFFLINE for this call."
        return f"{cached}the hub cannot be reached at {constants.ENDPOINT}. Try again, or check the network and HF_ENDPOINT."
    status = next((r.status_code for e in chain if (r := getattr(e, "response", None)) is not None), None)
    # The hub does not tell strangers whether a private repository is there.
    if status == 401 and writing:
        return f"nobody is logged in, or the token is not valid ({login})."
    if status == 401 or isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such {kind}, or it is private and this machine may not {act} ({login})."
    if status == 403:
        return f"whoever is logged in may not {act}. Name a place that is yours, or ask for the rights."
    if status == 429 or (status is not None and status >= 500):
        return f"the hub is busy or down ({status}). The same call may work later, and goes on with what is missing."
    # The HTTP library differs between versions of the client; the name of its base class does not.
    if any(base.__name__ == "TransportError" for e in chain for base in type(e).__mro__):
        return f"the connection to {constants.ENDPOINT} broke. The same call goes on with the files that are missing."
    return f"the name must be org/name, and you must be allowed to {act} ({login})."


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
