"""Where a corpus may lie besides this disk: hub, object store, web server; each gives a file's bytes from an offset on."""

import importlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import quote

from expresser.errors import InputError
from expresser.hub_client import is_hub_id

PIECE_BYTES = 1 << 23
TIMEOUT_S = 60
# What a protocol's fsspec implementation needs, which this package does not bring.
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


class Interrupted(Exception):
    """The connection broke or a server was busy: what was asked may work later."""


@runtime_checkable
class Place(Protocol):
    """A folder elsewhere."""

    @property
    def url(self) -> str:
        """Its address."""
        ...

    def read(self, name: str, start: int = 0) -> Iterator[bytes]:
        """The bytes of the file `name` from `start` on.

        Raises InputError where there is no such file, folder, revision or permission, Interrupted where a later try
        may go better.
        """
        ...


def open_place(url: str) -> Place:
    """The place that `url` names; nothing is asked of the network yet.

    `org/name`, `org/name@revision` and `hf://datasets/org/name@revision` are data sets on the hub; `https://…` is a
    folder of a web server; anything else with `protocol://` is left to fsspec.
    """
    url = url.rstrip("/")
    protocol, mark, rest = url.partition("://")
    if not mark:
        if Path(url).is_dir():
            raise InputError(
                f"{url}: is a folder on this disk, and a corpus here needs no pull: name its folder where a corpus is asked for. "
                f"To copy it with every checksum checked say file://{quote(str(Path(url).resolve()))}; a data set of the hub with "
                "this name is hf://datasets/org/name."
            )
        if not is_hub_id(url):
            raise InputError(
                f"{url}: neither a hub id (org/name or org/name@revision) nor a URL (hf://datasets/…, s3://…, "
                "https://…). A corpus on this disk needs no pull: name its folder where a corpus is asked for."
            )
        return HubDataset(url)
    if protocol == "hf":
        kind, _, repo = rest.partition("/")
        if kind != "datasets" or not is_hub_id(repo):
            raise InputError(f"{url}: a corpus on the hub is a data set: hf://datasets/org/name or …@revision.")
        return HubDataset(repo)
    return WebFolder(url) if protocol in ("http", "https") else FsspecFolder(url)


@dataclass
class HubDataset:
    """A data set on the Hugging Face hub, read by its own client at the one commit that the revision named first."""

    name: str

    @property
    def url(self) -> str:
        return f"hf://datasets/{self.name}"

    @cached_property
    def _files(self) -> tuple[Any, str]:
        from huggingface_hub import HfApi, HfFileSystem
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        repo, _, revision = self.name.partition("@")
        try:
            commit = HfApi().dataset_info(repo, revision=revision or None).sha
        except RevisionNotFoundError as error:
            raise InputError(
                f"{self.url}: data set {repo} has no revision {revision!r}. Name a branch, tag or commit of it."
            ) from error
        except RepositoryNotFoundError as error:
            raise InputError(
                f"{self.url}: there is no such data set, or it is private and this machine may not read it "
                "(`hf auth login`, or HF_TOKEN)."
            ) from error
        except OfflineModeIsEnabled as error:
            raise InputError(f"{self.url}: cannot be reached: this machine is told to be offline ({error})") from error
        except HFValidationError as error:
            raise InputError(f"{self.url}: no name that the hub allows ({error}).") from error
        except HfHubHTTPError as error:
            status = getattr(error.response, "status_code", 500)
            if status in (401, 403):
                raise InputError(f"{self.url}: not permitted ({error}).") from error
            raise Interrupted(f"{type(error).__name__}: {error}") from error
        # skip_instance_cache: fsspec would hand out an earlier object with its list of files.
        return HfFileSystem(skip_instance_cache=True), f"datasets/{repo}@{commit}"

    def read(self, name: str, start: int = 0) -> Iterator[bytes]:
        """See `Place`."""
        with _Translated(self.url, name):
            files, folder = self._files
            yield from _pieces(files, f"{folder}/{name}", start)


@dataclass
class FsspecFolder:
    """A folder that fsspec reaches by its URL: s3://bucket/folder, gs://…, sftp://…, file:///…"""

    url: str

    @cached_property
    def _files(self) -> tuple[Any, str]:
        import fsspec

        protocol = self.url.partition("://")[0]
        if protocol not in fsspec.available_protocols():
            known = ", ".join(sorted(fsspec.available_protocols()))
            raise InputError(f"{self.url}: no protocol {protocol!r} is known. There are {known}.")
        package = _PACKAGES.get(protocol)
        try:
            if package is not None:
                importlib.import_module(package)
            return fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise InputError(
                f"{self.url}: reading {protocol}:// needs a package that is not installed ({error}): "
                f"pip install {package or 'what fsspec names'}."
            ) from error

    def read(self, name: str, start: int = 0) -> Iterator[bytes]:
        """See `Place`."""
        with _Translated(self.url, name):
            files, folder = self._files
            yield from _pieces(files, f"{folder}/{name}", start)


@dataclass
class WebFolder:
    """A folder of a web server, read with range requests (a server without them is read from the start and skipped)."""

    url: str

    def read(self, name: str, start: int = 0) -> Iterator[bytes]:
        """See `Place`."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        request = urllib.request.Request(f"{self.url}/{quote(name)}", headers=headers)
        with _Translated(self.url, name), urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            skip = start if response.status == 200 else 0
            while piece := response.read(PIECE_BYTES):
                here = piece[skip:]
                skip -= len(piece) - len(here)
                if here:
                    yield here


def _pieces(files: Any, path: str, start: int) -> Iterator[bytes]:
    # Without a cache each read is one range request of its own size.
    with files.open(path, "rb", block_size=PIECE_BYTES, cache_type="none") as file:
        file.seek(start)
        while piece := file.read(PIECE_BYTES):
            yield piece


class _Translated:
    """What each client raises in its own words becomes InputError (it will not work) or Interrupted (it may, later)."""

    def __init__(self, url: str, name: str) -> None:
        self._url, self._name = url, name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, InputError | Interrupted) or not isinstance(error, Exception):
            return
        status = getattr(error, "code", None) if isinstance(error, urllib.error.HTTPError) else None
        if isinstance(error, FileNotFoundError | NotADirectoryError) or status in (404, 410):
            raise InputError(
                f"{self._url}: has no file {self._name}, so it is no corpus or an incomplete one. Is the address right?"
            ) from error
        if isinstance(error, PermissionError) or status in (401, 403):
            raise InputError(f"{self._url}/{self._name}: not permitted ({error}).") from error
        raise Interrupted(f"{type(error).__name__}: {error}") from error
