"""The public inputs known by name: what each is, where it lies, its terms, and how far that is known."""

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from expresser.corpus.staging import bytes_text
from expresser.errors import InputError

Kind = Literal["multiome", "rna", "atac", "cite", "genes", "labels"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PAPERS = {  # the systems re-implemented here, by the names of their commands
    "babel": "BABEL",
    "scmog": "scMOG",
    "polarbear": "Polarbear",
    "scact": "scACT",
    "sailer": "SAILER",
    "sailerx": "SAILERX",
    "expression_transformer": "Expression Transformer",
}
_LENGTHS = {"md5": 32, "sha256": 64}


@dataclass(frozen=True)
class PublicFile:
    """One file of a data set.

    `save_as` is its path in the data set's folder; `bytes` is exact, `about` is for people; `checksum` is ``md5:…`` or
    ``sha256:…``. `address_from` and `checksum_from` say who else names them. An optional file comes only when asked for.
    """

    url: str
    save_as: str
    address_from: str
    bytes: int | None = None
    about: str | None = None
    checksum: str | None = None
    checksum_from: str | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError(f"{self.url}: a public file has an address that begins with https:// or http://.")
        path = PurePosixPath(self.save_as)
        if path.is_absolute() or not path.parts or set(path.parts) & {"..", "."} or "\\" in self.save_as:
            raise InputError(f"{self.url}: would be saved as {self.save_as!r}, which is no path inside its own folder.")
        if any(part.startswith(".") for part in path.parts) or self.save_as == SOURCE:
            raise InputError(f"{self.url}: would be saved as {self.save_as!r}, a name that downloads need themselves.")
        if self.checksum is not None:
            kind, _, digits = self.checksum.partition(":")
            if len(digits) != _LENGTHS.get(kind) or set(digits) - set("0123456789abcdef"):
                raise InputError(
                    f"{self.url}: its checksum is {self.checksum!r}; it is md5: or sha256: and hex digits."
                )

    @property
    def size(self) -> str:
        """For people: exact where it is known, else about, else unknown."""
        if self.bytes is not None:
            return bytes_text(self.bytes)
        return f"about {self.about}" if self.about else "size unknown"


SOURCE = "source.json"  # beside what was fetched: where from, when, its checksums


@dataclass(frozen=True)
class PublicData:
    """A data set known by name. Without `files` it is fetched by hand from its `page`.

    `tried`: the date when its addresses were last tried from where this list is kept, or "never".
    """

    name: str
    title: str
    kind: Kind
    page: str
    licence: str
    tried: str
    species: str = ""
    genome: str = ""
    cells: int | None = None
    accession: str | None = None
    papers: tuple[str, ...] = ()
    use: str | None = None
    note: str | None = None
    files: tuple[PublicFile, ...] = ()

    def __post_init__(self) -> None:
        unknown = set(self.papers) - set(PAPERS)
        if self.kind not in KINDS or unknown:
            raise InputError(
                f"{self.name}: is of kind {self.kind!r} and papers {sorted(unknown)}, unknown among {KINDS} and {sorted(PAPERS)}."
            )
        names = [file.save_as for file in self.files]
        if len(set(names)) < len(names):
            raise InputError(f"{self.name}: two of its files would be saved under one name: {sorted(names)}.")

    def wanted(self, *, optional: bool) -> tuple[PublicFile, ...]:
        """Its files; the optional ones too where asked for."""
        return tuple(file for file in self.files if optional or not file.optional)

    @property
    def size(self) -> str:
        """Of the files that come without asking, for people; 'by hand' where there are none."""
        needed = self.wanted(optional=False)
        if not needed:
            return "by hand"
        known = [file.bytes for file in needed if file.bytes is not None]
        if len(known) == len(needed):
            return bytes_text(sum(known))
        about = [file.about for file in needed if file.about]
        return f"about {' + '.join(about)}" if about else "size unknown"

    @property
    def checked(self) -> str:
        """How many of the needed files have a checksum, for people."""
        needed = self.wanted(optional=False)
        known = sum(file.checksum is not None for file in needed)
        return "–" if not needed else "yes" if known == len(needed) else f"{known} of {len(needed)}" if known else "no"


@cache
def public_data() -> dict[str, PublicData]:
    """All that is known, by name, in the order of the list."""
    text = files("expresser").joinpath("public_data.toml").read_text(encoding="utf-8")
    return parse(tomllib.loads(text))


def parse(listed: dict[str, Any]) -> dict[str, PublicData]:
    """Data sets of a parsed list; InputError where it is not well formed."""
    found: dict[str, PublicData] = {}
    for held in listed["data"]:
        rest: dict[str, Any] = {
            key: tuple(value) if key == "papers" else value for key, value in held.items() if key != "file"
        }
        try:
            data = PublicData(**rest, files=tuple(PublicFile(**file) for file in held.get("file", [])))
        except TypeError as error:
            raise InputError(f"{held.get('name', held)}: is no entry of the list of public data ({error}).") from error
        if data.name in found:
            raise InputError(f"{data.name}: stands twice in the list of public data.")
        found[data.name] = data
    return found


def find(name: str) -> PublicData:
    """The data set of this name or accession; InputError with the nearest names where there is none."""
    known = public_data()
    if name in known:
        return known[name]
    by_accession = [data for data in known.values() if data.accession and data.accession.lower() == name.lower()]
    if len(by_accession) == 1:
        return by_accession[0]
    near = (
        difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5) or [k for k in known if name.lower() in k][:3]
    )
    raise InputError(
        f"{name}: no public data set is known by this name{', did you mean ' + ' or '.join(near) + '?' if near else '.'} "
        "`expresser data list` names them all."
    )


def chosen(*, kind: str | None = None, paper: str | None = None) -> tuple[PublicData, ...]:
    """Those of a kind and of a paper, in the order of the list."""
    return tuple(
        data
        for data in public_data().values()
        if (kind is None or data.kind == kind) and (paper is None or paper in data.papers)
    )


def markdown(listed: Iterable[PublicData]) -> str:
    """The list as a table of a documentation page."""
    rows = ["| name | what | size | checksum | terms | for |", "|---|---|---|---|---|---|"]
    for data in listed:
        whose = ", ".join(PAPERS[paper] for paper in data.papers) or "–"
        what = ", ".join(part for part in (data.title, data.accession, data.genome) if part)
        rows.append(
            f"| [{data.name}]({data.page}) | {what} | {data.size} | {data.checked} | {data.licence} | {whose} |"
        )
    return "\n".join(rows) + "\n"
