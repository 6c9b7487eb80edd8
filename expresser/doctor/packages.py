"""Whether Python and the packages fit what this version of expresser asks for, and what each extra still lacks."""

import importlib.metadata as metadata
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from expresser import __version__
from expresser.doctor.finding import Finding

# Imports each module named and says of each how it went, at once: a module that ends the interpreter ends no more than this.
_TRY = """
import importlib, sys, warnings
warnings.simplefilter("ignore")
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        print("bad", name, type(error).__name__, " ".join(str(error).split())[:300], flush=True)
    else:
        print("good", name, flush=True)
"""


def python() -> Finding:
    """The interpreter against what the distribution asks for and was tested with."""
    said = metadata.metadata("expresser")
    asked = SpecifierSet(next(iter(said.get_all("Requires-Python") or []), ""))
    tested = [
        c.rsplit(" ", 1)[1]
        for c in said.get_all("Classifier") or []
        if c.startswith("Programming Language :: Python :: 3.")
    ]
    here = platform.python_version()
    found = f"{here}, {sys.executable}"
    if here not in asked:
        return Finding(
            "packages", "Python", "broken", found, f"expresser needs Python {asked}: make an environment with one."
        )
    newest = max((tuple(map(int, v.split("."))) for v in tested), default=sys.version_info[:2])
    if sys.version_info[:2] > newest:
        return Finding("packages", "Python", "note", f"{found}; newer than any that expresser was tested with")
    return Finding("packages", "Python", "ok", found)


def ours() -> Finding:
    """expresser itself and its commands: a sibling that does not load is one that is broken."""
    from expresser.cli import commands

    found = f"{__version__}, {metadata.distribution('expresser').locate_file('')}"
    broken = []
    for name, entry in commands().items():
        try:
            entry.load()
        except Exception as error:  # whatever it is, the others go on
            broken.append(f"{name} ({type(error).__name__}: {error})")
    if broken:
        return Finding(
            "packages",
            "expresser",
            "broken",
            f"{found}; commands that do not load: {'; '.join(broken)}",
            _pip("expresser"),
        )
    return Finding("packages", "expresser", "ok", found)


def required() -> Iterator[Finding]:
    """Every package that expresser cannot do without: there, new enough, and loading."""
    needs = {canonicalize_name(need.name): need for need in _requirements(None)}
    there = {name: found for name in needs if (found := installed(name)) is not None}
    modules = {name: module(name) for name in there}
    loaded = dict(importing(sorted(modules.values())))
    for name, need in sorted(needs.items()):
        asked = f"{need.name}{need.specifier}"
        if name not in there:
            yield Finding("packages", need.name, "broken", "not installed", _pip(asked))
        elif not need.specifier.contains(there[name], prereleases=True):
            yield Finding("packages", need.name, "broken", f"{there[name]}, {need.specifier} is needed", _pip(asked))
        elif error := loaded[modules[name]]:
            yield Finding(
                "packages",
                need.name,
                "broken",
                f"{there[name]} is installed and does not load: {error}",
                _pip(asked, anew=True),
            )
        else:
            yield Finding("packages", need.name, "ok", there[name])


def extras() -> Iterator[Finding]:
    """Every extra of the distribution: which of its packages are missing or too old, and the line that installs them."""
    for extra in sorted(metadata.metadata("expresser").get_all("Provides-Extra") or []):
        needs = _requirements(extra)
        there = {need.name: installed(need.name) for need in needs}
        lacking = [
            need
            for need in needs
            if (v := there[need.name]) is None or not need.specifier.contains(v, prereleases=True)
        ]
        if not lacking:
            have = ", ".join(f"{name} {version}" for name, version in there.items())
            yield Finding("extras", extra, "ok", have)
            continue
        said = ", ".join(
            f"{need.name} {'missing' if there[need.name] is None else f'{there[need.name]}, {need.specifier} is needed'}"
            for need in lacking
        )
        yield Finding("extras", extra, "note", said, f"pip install {_quoted(f'expresser[{extra}]')}")


def installed(name: str) -> str | None:
    """The version of a distribution, None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def module(distribution: str) -> str:
    """The module to import for a distribution: scikit-learn's is sklearn."""
    name = canonicalize_name(distribution).replace("-", "_")
    tops: list[str] = []
    for file in metadata.files(distribution) or []:
        parts = file.parts
        if len(parts) == 2 and parts[1] == "__init__.py":
            tops.append(parts[0])
        elif len(parts) == 1 and file.suffix == ".py":
            tops.append(file.stem)
    public = [top for top in tops if not top.startswith("_") and top.isidentifier()]
    if name in public or not public:
        return name
    return next((top for top in public if top not in ("tests", "test", "docs")), public[0])


def importing(names: Sequence[str], timeout: float = 300.0) -> Iterator[tuple[str, str | None]]:
    """Each module with why it does not load, None where it does; in another process, which a broken library may end."""
    left = list(names)
    while left:
        try:
            ran = subprocess.run(
                [sys.executable, "-c", _TRY, *left], capture_output=True, text=True, timeout=timeout, check=False
            )
            answers, end = ran.stdout, f"it ended the interpreter (exit status {ran.returncode})"
        except subprocess.TimeoutExpired as late:
            answers, end = (late.stdout or b"").decode(errors="replace"), f"not done after {timeout:.0f} s"
        for line in answers.splitlines():
            verdict, _, rest = line.partition(" ")
            if not left or rest.split(" ")[0] != left[0] or verdict not in ("good", "bad"):
                continue  # what the packages themselves print
            error = rest.partition(" ")[2]
            yield left.pop(0), None if verdict == "good" else error
        if left:
            yield left.pop(0), end


def _requirements(extra: str | None) -> list[Requirement]:
    """What expresser needs at all (None), or for an extra more than that."""
    needs = [Requirement(text) for text in metadata.requires("expresser") or []]
    plain = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    if extra is None:
        return plain
    return [
        need
        for need in needs
        if need not in plain and need.marker is not None and need.marker.evaluate({"extra": extra})
    ]


def _pip(what: str, *, anew: bool = False) -> str:
    return f"pip install {'--force-reinstall --no-deps ' if anew else ''}{_quoted(what)}"


def _quoted(what: str) -> str:
    """For a shell, to which < > and [ ] mean something."""
    return f"'{what}'" if any(c in what for c in "<>[]!~;") else what
