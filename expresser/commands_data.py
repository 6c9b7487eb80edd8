"""The ``expresser data`` command: public inputs by name. Heavy imports wait until it runs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from expresser.cli import Command
from expresser.commands import group
from expresser.errors import InputError
from expresser.progress import progress_bar

if TYPE_CHECKING:
    from expresser.public_data import PublicData

Positional = tyro.conf.Positional
Paper = Literal["babel", "scmog", "polarbear", "scact", "sailer", "sailerx", "expression_transformer"]
KindOf = Literal["multiome", "rna", "atac", "cite", "genes", "labels"]


def data_list(
    *,
    kind: KindOf | None = None,
    paper: Paper | None = None,
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False,
    markdown: bool = False,
) -> None:
    """Name the public data sets: what they are, how large, whether a checksum is known, whose paper used them.

    Example: expresser data list --paper babel

    Args:
        kind: Of this kind only.
        paper: Used by this paper only.
        json_: Everything that is known of them, as JSON.
        markdown: The table of the documentation.
    """
    from expresser import public_data

    found = public_data.chosen(kind=kind, paper=paper)
    if json_:
        print(json.dumps([asdict(data) for data in found], indent=1))
    elif markdown:
        print(public_data.markdown(found), end="")
    else:
        _print_table(found)


def _print_table(found: "tuple[PublicData, ...]") -> None:
    if not found:
        print("none of this kind and paper")
        return
    rows = [("name", "kind", "size", "checksum", "tried", "what")]
    rows += [(d.name, d.kind, d.size, d.checked, d.tried, d.title) for d in found]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)) + f"  {row[5]}")
    never = sum(data.tried == "never" for data in found)
    print(
        f"\n{len(found)} data sets. The addresses of {never} were never tried where this list was made: `expresser data check NAME` "
        "tries them.\n`expresser data info NAME` has terms, pages and commands, `expresser data get NAME` fetches."
    )


def data_info(name: Annotated[str, Positional], *, json_: Annotated[bool, tyro.conf.arg(name="json")] = False) -> None:
    """Say all that is known of one data set: terms, addresses, checksums and who recorded them, and a command that uses it.

    Example: expresser data info pbmc10k_multiome

    Args:
        name: A name of `expresser data list`, or an accession (GSE126074).
        json_: The same as JSON.
    """
    from expresser.public_data import PAPERS, find

    data = find(name)
    if json_:
        print(json.dumps(asdict(data), indent=1))
        return
    lines = {
        "what": ", ".join(part for part in (data.title, data.species, data.genome) if part),
        "cells": f"{data.cells:,}" if data.cells else "",
        "accession": data.accession or "",
        "page": data.page,
        "terms": data.licence,
        "used by": ", ".join(PAPERS[paper] for paper in data.papers),
        "note": data.note or "",
        "command": data.use or "",
        "tried": "never: no address was tried where this list was made" if data.tried == "never" else data.tried,
    }
    print(data.name)
    for key, value in lines.items():
        if value:
            print(f"  {key:<10}{value}")
    for file in data.files:
        print(f"  {file.save_as}{' (only with --optional)' if file.optional else ''}\n    {file.url}")
        print(f"    {file.size}; address: {file.address_from}")
        print(f"    {f'{file.checksum} ({file.checksum_from})' if file.checksum else 'no checksum is known'}")


def data_get(
    names: Annotated[tuple[str, ...], Positional],
    *,
    out: Path | None = None,
    optional: bool = False,
    unpack: bool = False,
) -> None:
    """Fetch public data sets, each into a folder of its own; what broke off goes on when the command is repeated.

    Files are compared with their checksum where one is known. Where none is, source.json keeps that of what came.

    Example: expresser data get pbmc3k_multiome hgnc --out data

    Args:
        names: Names of `expresser data list`, or accessions.
        out: Folder for the folders. Without it, the cache (EXPRESSER_DATA_CACHE, else that of this user).
        optional: Large companions too, such as fragments.
        unpack: Unpack tar archives: plain files inside the folder alone.
    """
    from expresser.public_data import find
    from expresser.public_data_fetch import fetch

    if not names:
        raise InputError("data get needs a name: `expresser data list` has them.")
    for data in [find(name) for name in names]:  # a wrong name stops before the first byte
        with progress_bar(data.name) as report:
            folder = fetch(data, out, optional=optional, unpacked=unpack, report=report)
        held = [file for file in data.wanted(optional=optional) if file.checksum is not None]
        print(
            f"{folder}: {len(data.wanted(optional=optional))} files, {len(held)} compared with a known checksum; terms: {data.licence}"
        )
        if data.use:
            print(f"  {data.use}")


def data_check(names: Annotated[tuple[str, ...], Positional] = ()) -> None:
    """Try the addresses from this machine, without fetching; exit code 1 where one does not answer as expected.

    Example: expresser data check pbmc3k_multiome

    Args:
        names: Names of `expresser data list`; without any, all of them.
    """
    from expresser.public_data import find, public_data
    from expresser.public_data_fetch import check

    wrong = 0
    for data in [find(name) for name in names] or list(public_data().values()):
        for file in data.files:
            answer = check(file)
            wrong += not answer.startswith("ok")
            print(f"{data.name}/{file.save_as}: {answer}", flush=True)
    if wrong:
        raise SystemExit(1)


DATA: Command = Command(
    name="data",
    summary="List and fetch public inputs by name: multiome and PBMC sets, the papers' accessions, gene tables, labels.",
    example="expresser data get pbmc3k_multiome hgnc --out data",
    run=group(lambda: DATA, {"list": data_list, "get": data_get, "info": data_info, "check": data_check}),
)
