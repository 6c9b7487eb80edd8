"""Where a study came from: which files, read how, with which content; enough to read it again or to say what changed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from expresser.contents import content_sha256
from expresser.corpus.manifest import MANIFEST, read_manifest
from expresser.errors import InputError
from translate.corpora import study_of_corpus
from translate.data import read_study
from translate.study import MODALITIES, Modality, Study


@dataclass(frozen=True)
class Origin:
    """The arguments of `translate.data.read_study`, paths as text: one, or several (one in a tuple is one, none is None).

    Or `corpus`, a folder that `expresser corpus build` made of ATAC, and nothing else.
    """

    rna: str | tuple[str, ...] | None = None
    atac: str | tuple[str, ...] | None = None
    protein: str | tuple[str, ...] | None = None
    mudata: str | None = None
    rna_only: tuple[str, ...] = ()
    atac_only: tuple[str, ...] = ()
    layer: str | None = None
    genes: str | None = None
    corpus: str | None = None

    def __post_init__(self) -> None:
        if self.corpus is not None and (others := [f.name for f in fields(self)[:-1] if getattr(self, f.name)]):
            raise InputError(
                f"corpus {self.corpus} and {', '.join(others)} were given: cells are read from a corpus or from files. Leave one "
                "away."
            )
        for m in MODALITIES:
            names = _names(getattr(self, m))
            object.__setattr__(self, m, names if len(names) > 1 else names[0] if names else None)

    @property
    def files(self) -> dict[Modality, Path]:
        """The file of each modality, where it has one of its own and no more."""
        named = {m: _names(getattr(self, m)) for m in MODALITIES}
        return {m: Path(names[0]) for m, names in named.items() if len(names) == 1 and not names[0].startswith("obsm:")}

    @property
    def paths(self) -> list[Path]:
        """Everything that is read."""
        paired = [name for m in MODALITIES for name in _names(getattr(self, m)) if not name.startswith("obsm:")]
        more = [self.mudata, *self.rna_only, *self.atac_only, self.genes, self.corpus]
        return [Path(path) for path in (*paired, *more) if path is not None]

    def read(self) -> Study:
        """Read it."""
        if self.corpus is not None:
            return study_of_corpus(self.corpus)
        files = {key: value for key, value in asdict(self).items() if key != "corpus"}
        return read_study(**files | {"layer": layers(self.layer)})

    def plain(self) -> dict[str, Any]:
        """For JSON: the arguments, paths made absolute, and the sha256 of each file."""
        read = {
            key: [_absolute(v) for v in value]
            if isinstance(value, tuple)
            else value
            if key == "layer"
            else _absolute(value)
            for key, value in asdict(self).items()
            if value
        }
        return {"read": read, "sha256": {str(path.absolute()): content_hash(path) for path in self.paths}}

    @classmethod
    def restored(cls, plain: Mapping[str, Any]) -> "Origin":
        """From what `plain` gave; InputError where a file is gone or has other content."""
        known = {field.name for field in fields(cls)}
        read: dict[str, Any] = dict(plain.get("read", {}))
        if not read or set(read) - known:
            raise InputError("the run does not say which files it was made from")
        # The record may be a stranger's: nothing is read whose content it does not name, and no pipe or device at all.
        for path, digest in dict(plain.get("sha256") or {}).items():
            if not (Path(path).is_file() or Path(path).is_dir()):
                raise InputError(f"{path} is no longer there")
            if content_hash(Path(path)) != digest:
                raise InputError(f"{path} has changed since")
        read |= {key: tuple(value) for key, value in read.items() if isinstance(value, list)}
        found = cls(**read)
        if unnamed := [path for path in found.paths if str(path.absolute()) not in (plain.get("sha256") or {})]:
            raise InputError(f"the run does not say what {unnamed[0]} held")
        return found


def layers(given: str | None) -> str | dict[Modality, str] | None:
    """What ``--layer`` says: "counts" of every modality; "rna=counts" or "rna=counts,atac=raw" of those named, X of others."""
    if given is None or given.partition("=")[0] not in MODALITIES:
        return given
    found: dict[Modality, str] = {}
    for part in given.split(","):
        name, equals, layer = part.partition("=")
        known = next((m for m in MODALITIES if m == name), None)
        if known is None or not equals or not layer:
            raise InputError(
                f"--layer {given}: {part!r} is no MODALITY=LAYER. Name a layer for all, or such as rna=counts,atac=raw; "
                f"modalities are {', '.join(MODALITIES)}."
            )
        found[known] = layer
    return found


def content_hash(path: Path) -> str:
    """`content_sha256`, after the manifest of a corpus has been proven; InputError where there is neither file nor folder."""
    if (path / MANIFEST).is_file():
        return str(read_manifest(path)["corpus_id"])
    return content_sha256(path)


def _names(given: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else given or ()


def _absolute(path: str | None) -> str | None:
    return path if path is None or path.startswith("obsm:") else str(Path(path).absolute())
