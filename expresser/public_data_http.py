"""Files over HTTP, as pooch's downloader: a broken download is gone on with, and a refusal says why and what to do."""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expresser import __version__
from expresser.corpus.places import Interrupted
from expresser.corpus.staging import NO_ROOM, bytes_text
from expresser.errors import InputError

TIMEOUT_S = 60  # without a byte
TRIES = 5
PAUSE_S = 1.0  # before the second try; doubled before each further one
PIECE_BYTES = 1 << 20
# Bytes as they lie there: a part that was decoded on the way could not be gone on with, nor compared with a checksum.
_HEADERS = {"User-Agent": f"expresser/{__version__}", "Accept-Encoding": "identity"}


@dataclass
class Resuming:
    """Downloads into `part`, which stays when the connection breaks, and hands it over when it is whole.

    n_bytes: what the file must have, where it is known. checked: its checksum will be compared; only then may a part be
    gone on with for which the server gave no ETag or date, since it might be of another version. report: called with
    (bytes there, bytes in all or None).
    """

    part: Path
    n_bytes: int | None = None
    checked: bool = False
    report: Callable[[int, int | None], None] | None = None
    began_with: int = 0  # bytes that an earlier call had left

    def __call__(self, url: str, output_file: Any, pooch: Any) -> None:
        """The signature that pooch asks for; `output_file` is its temporary file. Raises InputError."""
        self.began_with = self._have
        for number in range(TRIES):
            try:
                self._more(url)
                break
            except Interrupted as error:
                if number == TRIES - 1:
                    kept = (
                        f" {bytes_text(self._have)} are kept: the same command goes on from there."
                        if self._have
                        else ""
                    )
                    raise InputError(f"{url}: broke off {TRIES} times ({error}).{kept}") from error
                time.sleep(PAUSE_S * 2**number)
        os.unlink(output_file)
        try:
            os.link(self.part, output_file)  # the part stays until the checksum is proven: comparing can be interrupted
        except OSError:  # a disk without links
            os.replace(self.part, output_file)

    def forget(self) -> None:
        """Remove the part and what is remembered of it."""
        self.part.unlink(missing_ok=True)
        self._tag_file.unlink(missing_ok=True)

    @property
    def _have(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    @property
    def _tag_file(self) -> Path:
        return self.part.with_name(f"{self.part.name}.tag")

    def _more(self, url: str) -> None:
        import requests

        tag = self._tag_file.read_text(encoding="utf-8") if self._tag_file.is_file() else ""
        if (self.n_bytes is not None and self._have > self.n_bytes) or not (tag or self.checked):
            self.forget()
        have = self._have
        if have and have == self.n_bytes:
            return
        headers = _HEADERS | ({"Range": f"bytes={have}-"} | ({"If-Range": tag} if tag else {}) if have else {})
        try:
            with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
                if answer.status_code == 416:
                    if re.fullmatch(rf"bytes \*/{have}", answer.headers.get("Content-Range", "")):
                        return  # nothing is missing
                    self.forget()
                    raise Interrupted("the file there is shorter than what was here")
                refuse(answer, url)
                self._write(answer, url, have if answer.status_code == 206 else 0)
        except requests.exceptions.RequestException as error:
            raise _named(error, url) from error
        except OSError as error:
            if error.errno in NO_ROOM:
                raise InputError(
                    f"{self.part.parent}: the disk is full; {bytes_text(self._have)} of {url} are kept. Make room: the same "
                    "command goes on from there."
                ) from error
            raise

    def _write(self, answer: Any, url: str, start: int) -> None:
        total = _total(answer, start)
        if total is not None and self.n_bytes is not None and total != self.n_bytes:
            raise InputError(
                f"{url}: has {total:,} bytes there, {self.n_bytes:,} are known of it: it was replaced by another file. "
                "Nothing was fetched; look at its page (`expresser data info`)."
            )
        needed = (total or 0) - start
        if needed > shutil.disk_usage(self.part.parent).free:
            raise InputError(f"{self.part.parent}: {bytes_text(needed)} are to come, more than is free on this disk.")
        with open(self.part, "r+b" if start else "wb") as sink:
            sink.seek(start)
            sink.truncate()
            if not start:
                self._tag_file.write_text(_validator(answer), encoding="utf-8")
            for piece in answer.iter_content(PIECE_BYTES):
                sink.write(piece)
                if self.report is not None:
                    self.report(sink.tell(), total or self.n_bytes)
            have = sink.tell()
        expected = total if total is not None else self.n_bytes
        if expected is not None and have != expected:
            raise Interrupted(f"{have:,} of {expected:,} bytes came")


def probe(url: str) -> int | None:
    """The bytes that a file has there, None where the server does not say. Raises InputError where it cannot be had."""
    import requests

    try:
        answer = requests.head(url, headers=_HEADERS, allow_redirects=True, timeout=TIMEOUT_S)
        if answer.status_code not in (403, 405, 501):
            refuse(answer, url)
            return _total(answer, 0)
        # Some places answer HEAD with a refusal; one byte tells the same.
        with requests.get(url, headers=_HEADERS | {"Range": "bytes=0-0"}, stream=True, timeout=TIMEOUT_S) as answer:
            refuse(answer, url)
            return _total(answer, 0)
    except requests.exceptions.RequestException as error:
        raise InputError(f"{url}: {error_text(_named(error, url), url)}") from error
    except Interrupted as error:
        raise InputError(f"{url}: {error}.") from error


def error_text(error: Exception, url: str) -> str:
    """The message of an error without the address that it begins with."""
    return str(error).removeprefix(f"{url}: ")


def refuse(answer: Any, url: str) -> None:
    """InputError where an answer is no file and will not be, Interrupted where a later try may go better."""
    status = answer.status_code
    if status in (404, 410):
        raise InputError(
            f"{url}: there is no such file ({status}). It may have moved: `expresser data info` names its page."
        )
    if status in (401, 403, 451):
        raise InputError(
            f"{url}: the server does not give it to this machine ({status}). Fetch it by hand from its page."
        )
    if status == 407:
        raise InputError(
            f"{url}: the proxy wants a name and password (407): HTTPS_PROXY=http://name:password@host:port."
        )
    if status in (408, 425, 429) or status >= 500:
        raise Interrupted(f"the server is busy or down ({status})")
    if status not in (200, 206):
        raise InputError(f"{url}: the server answered with {status} {answer.reason}, which is no file.")
    if answer.headers.get("Content-Type", "").partition(";")[0].strip() == "text/html":
        raise InputError(
            f"{url}: the answer is a web page, not the file: a login of this network, or of the place itself. Open the "
            "address in a browser, or fetch the file by hand."
        )


def _named(error: Exception, url: str) -> Exception:
    """What an error of the HTTP library means: InputError where another try is useless, else Interrupted."""
    from requests import exceptions
    from urllib3.exceptions import NewConnectionError

    if isinstance(error, exceptions.ProxyError):
        proxies = {
            name: os.environ[name]
            for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")
            if name in os.environ
        }
        # A proxy's address may hold a password.
        told = ", ".join(f"{name}={re.sub(r'//[^@/]*@', '//…@', value)}" for name, value in proxies.items())
        return InputError(
            f"{url}: the proxy cannot be reached or refused ({told or 'of this system'}). Correct or unset it."
        )
    if isinstance(error, exceptions.SSLError):
        return InputError(
            f"{url}: its certificate is not trusted here ({_first_line(error)}). Behind a proxy that reads along, name its "
            "certificate: REQUESTS_CA_BUNDLE=file.pem."
        )
    if isinstance(error, exceptions.TooManyRedirects | exceptions.InvalidURL | exceptions.InvalidSchema):
        return InputError(f"{url}: leads nowhere ({_first_line(error)}).")
    reason = getattr(error.args[0], "reason", None) if error.args else None
    if isinstance(reason, NewConnectionError):
        return InputError(
            f"{url}: cannot be reached: this machine is offline, or its name server or a firewall stops it. With a proxy, "
            "set HTTPS_PROXY."
        )
    return Interrupted(_first_line(error))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _total(answer: Any, start: int) -> int | None:
    """Bytes of the whole file; InputError where a part does not begin where it was asked to."""
    if answer.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != start:
            raise Interrupted("the server sent another part than was asked for")
        return None if found[2] == "*" else int(found[2])
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        return None  # the length is of what is sent, not of the file
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _validator(answer: Any) -> str:
    """What tells this version of a file from another: a strong ETag, else the date; "" where there is neither."""
    with contextlib.suppress(KeyError):
        tag = str(answer.headers["ETag"])
        if not tag.startswith("W/"):
            return tag
    return str(answer.headers.get("Last-Modified", ""))
