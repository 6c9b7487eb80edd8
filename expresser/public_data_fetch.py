"""Public data sets fetched by name through pooch: what is there and proven stays, what broke off is gone on with."""

import datetime
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from expresser import __version__
from expresser.atomic import write_text
from expresser.errors import InputError
from expresser.one_writer import one_writer
from expresser.public_data import SOURCE, PublicData, PublicFile
from expresser.public_data_http import Resuming, error_text, probe
from expresser.public_data_unpack import is_archive, unpack

Report = Callable[[int, int | None, str], None]


def cache_folder() -> Path:
    """Where data sets go that are given no folder: EXPRESSER_DATA_CACHE, else the user's cache as pooch finds it."""
    import pooch

    return Path(os.environ.get("EXPRESSER_DATA_CACHE") or pooch.os_cache("expresser"))


def fetch(
    data: PublicData,
    out: str | Path | None = None,
    *,
    optional: bool = False,
    unpacked: bool = False,
    report: Report | None = None,
) -> Path:
    """Download a data set into the folder `out`/NAME and return that folder.

    A file that is there is compared with its checksum, where one is known, and not fetched again. What was fetched, from
    where, when and with which sha256 is written to source.json beside it. No file is executed; archives are opened only
    where `unpacked` says so.

    Parameters
    ----------
    out
        None: `cache_folder()`.
    optional
        The large companions (fragments) too.
    unpacked
        Also unpack tar archives (`public_data_unpack`).
    report
        Called with (bytes there, bytes in all or None, name of the file).

    Raises
    ------
    InputError
        Where there is no address, no network, no room, a refusal, or another checksum than the known one.
    """
    wanted = data.wanted(optional=optional)
    if not wanted:
        raise InputError(
            f"{data.name}: no address of its files is known here. By hand: {data.page}. {data.note or ''}".strip()
        )
    folder = Path(cache_folder() if out is None else out).expanduser().resolve() / data.name
    with one_writer(folder):
        folder.mkdir(parents=True, exist_ok=True)
        known = _recorded(folder)
        for file in wanted:
            path = folder / file.save_as
            if _fetch_file(file, path, report) or known.get(file.save_as, {}).get("bytes") != path.stat().st_size:
                known[file.save_as] = _record(file, path)
                _write_source(data, folder, known)
            if unpacked and is_archive(path):
                unpack(path, folder, reserved={SOURCE, *(each.save_as for each in data.files)})
    return folder


def check(file: PublicFile) -> str:
    """Whether an address answers from here and with the length that is known, in words that begin with ok or not."""
    try:
        found = probe(file.url)
    except InputError as error:
        return f"not reached: {error_text(error, file.url)}"
    if found is None:
        return "ok, its length is not told"
    if file.bytes not in (None, found):
        return f"not the same: {found:,} bytes there, {file.bytes:,} known"
    return f"ok, {found:,} bytes"


def _fetch_file(file: PublicFile, path: Path, report: Report | None) -> bool:
    """Whether it had to be fetched."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and file.checksum is None and file.bytes not in (None, path.stat().st_size):
        raise InputError(
            f"{path}: has {path.stat().st_size:,} bytes, {file.bytes:,} are known of it. Delete it: the same command fetches it."
        )
    download = Resuming(
        part=path.with_name(f".{path.name}.part"),
        n_bytes=file.bytes,
        checked=file.checksum is not None,
        report=None if report is None else lambda done, total: report(done, total, path.name),
    )
    called = False

    def downloader(url: str, output_file: Any, pooch: Any) -> None:
        nonlocal called
        called = True
        download(url, output_file, pooch)

    for last in (False, True):
        try:
            pooch.retrieve(file.url, file.checksum, path.name, path.parent, downloader=downloader)
            break
        except InputError as error:
            raise InputError(
                f"{error} A file that you bring yourself is taken, and checked, as {path}."
                if "cannot be reached" in str(error) or "by hand" in str(error)
                else str(error)
            ) from error
        except ValueError as error:  # pooch's word for another checksum; what came is gone
            download.forget()
            if last or not download.began_with:  # else what was begun earlier may be at fault: once more from the start
                raise InputError(
                    f"{file.url}: has not the known checksum, {file.checksum} (recorded by: {file.checksum_from}), so it was altered "
                    f"there or on the way, and was not kept. Try once more; if it comes again, look at its page. ({error})"
                ) from error
    download.forget()
    path.chmod(0o644)  # pooch's temporary file is the owner's alone
    return called


def _recorded(folder: Path) -> dict[str, Any]:
    """What source.json says of the files that are there; nothing where it cannot be read."""
    try:
        held = json.loads((folder / SOURCE).read_text(encoding="utf-8"))["files"]
        return {name: record for name, record in held.items() if (folder / name).is_file()}
    except (OSError, ValueError, KeyError, AttributeError):
        return {}


def _record(file: PublicFile, path: Path) -> dict[str, Any]:
    with open(path, "rb") as there:
        digest = hashlib.file_digest(there, "sha256").hexdigest()
    return {
        "url": file.url,
        "fetched": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "bytes": path.stat().st_size,
        "sha256": digest,
        "compared_with": file.checksum,
    }


def _write_source(data: PublicData, folder: Path, files: dict[str, Any]) -> None:
    about = {
        "name": data.name,
        "title": data.title,
        "page": data.page,
        "accession": data.accession,
        "licence": data.licence,
    }
    write_text(folder / SOURCE, json.dumps(about | {"files": files, "expresser": __version__}, indent=1) + "\n")
