"""A corpus cut into training, validation and test corpora by whole groups, with a count of what leaks all the same."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Int64

from expresser.corpus.dealing import deal
from expresser.corpus.derive import BATCH_ROWS, SHARD_ROWS, check_free, derive
from expresser.corpus.labels import read_labels
from expresser.corpus.leaks import Shared, count_fingerprints, name_fingerprints, shared
from expresser.corpus.manifest import read_manifest
from expresser.corpus.shards import CountBatch
from expresser.corpus.staging import staged
from expresser.corpus.store import Corpus
from expresser.errors import InputError
from expresser.one_writer import one_writer_of_out
from expresser.readable import counted

Missing = Literal["refuse", "train", "drop", "own-group"]
UNLABELLED = "(no label)"


@dataclass(frozen=True)
class SplitReport:
    """What a split came to: cells and groups a side, cells without a label, and what two sides share all the same.

    `same_counts`: cells with equal counts on two sides; `same_names`: cells with equal source and barcode.
    """

    by: str
    cells: dict[str, int]
    groups: dict[str, int]
    shares: dict[str, float]
    unlabelled: int
    dropped: int
    same_counts: Shared
    same_names: Shared

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@one_writer_of_out
def split_corpus(
    corpus: Corpus,
    out: str | Path,
    *,
    by: str,
    shares: Mapping[str, float],
    seed: int = 0,
    missing: Missing = "refuse",
    progress: Callable[[str, int, int], None] | None = None,
    also: Callable[[Path], object] | None = None,
    shard_rows: int = SHARD_ROWS,
    batch_rows: int = BATCH_ROWS,
) -> SplitReport:
    """Write `out/SIDE` for each side of `shares`, each a complete corpus, all or none.

    Groups are the values of the obs column `by` over all sources (a donor name that two studies use is one group, which
    may cost balance but cannot leak); none is ever on two sides. `deal` says how they are dealt.

    Parameters
    ----------
    missing
        Cells without a label: "refuse" them, put them all into "train", "drop" them, or deal them as one "own-group"
        (one, since two of them may be of one donor).
    progress
        Called with (side, cells written, cells of the side).
    also
        Writes more files into the folder before it takes its place.

    Notes
    -----
    The source is read once for each side. Memory: about 40 bytes a cell.
    """
    out = Path(out).expanduser().resolve()
    check_free(out)
    labels = read_labels(corpus, by)
    codes, names = pd.factorize(labels, sort=True)
    names = [str(name) for name in names]
    unlabelled = int((codes < 0).sum())
    if unlabelled and missing == "refuse":
        raise InputError(
            f"{corpus.path}: {unlabelled:,} of {corpus.n_cells:,} cells have no {by!r}, so nobody knows which of them "
            "belong together. Say --missing drop (leave them out), train (all into train) or own-group (deal them as "
            "one group)."
        )
    if unlabelled and missing == "train" and "train" not in shares:
        raise InputError(f"--missing train: there is no side 'train', only {', '.join(shares)}. Name one so, or drop.")
    sizes = {name: int(n) for name, n in zip(names, np.bincount(codes[codes >= 0], minlength=len(names))) if n}
    if unlabelled and missing == "own-group":
        sizes[UNLABELLED] = sizes.get(UNLABELLED, 0) + unlabelled
    side_of = deal(sizes, shares, seed)
    sides = list(shares)
    rest = {"train": sides.index("train") if "train" in shares else -1, "drop": -1, "refuse": -1}
    at_missing = sides.index(side_of[UNLABELLED]) if UNLABELLED in sizes else rest.get(missing, -1)
    of_label = np.array([sides.index(side_of[n]) if n in side_of else -1 for n in names] + [at_missing], np.int64)
    of_row = of_label[codes][corpus.cell_ids]  # code -1, missing, reads the last
    return _write(
        corpus,
        out,
        of_row,
        sides,
        rule={
            "split": {"by": by, "shares": dict(shares), "seed": seed, "missing": missing},
            "groups": {side: sum(s == side for s in side_of.values()) for side in sides},
        },
        report={"by": by, "unlabelled": unlabelled, "dropped": int((of_row < 0).sum())},
        progress=progress,
        also=also,
        sizes=(shard_rows, batch_rows),
    )


def _write(
    corpus: Corpus,
    out: Path,
    of_row: Int64[np.ndarray, " cells"],
    sides: list[str],
    *,
    rule: dict[str, Any],
    report: dict[str, Any],
    progress: Callable[[str, int, int], None] | None,
    also: Callable[[Path], object] | None,
    sizes: tuple[int, int],
) -> SplitReport:
    counts, barcodes, numbers, cells = [], [], [], {}
    with staged(out) as stage:
        for number, side in enumerate(sides):
            folder = stage.folder / side
            folder.mkdir()

            def seen(batch: CountBatch) -> None:
                counts.append(count_fingerprints(batch))

            def told(done: int, total: int, side: str = side) -> None:
                if progress is not None:
                    progress(side, done, total)

            derive(
                corpus,
                folder,
                of_row == number,
                rule=rule | {"side": side},
                seen=seen,
                progress=told,
                shard_rows=sizes[0],
                batch_rows=sizes[1],
            )
            cells[side] = read_manifest(folder)["cells"]
            barcodes.append(name_fingerprints(folder))
            numbers.append(np.full(cells[side], number, np.int8))
        if also is not None:
            also(stage.folder)
    side_of_cell = np.concatenate(numbers)
    return SplitReport(
        cells=cells,
        groups=rule["groups"],
        shares={side: n / len(side_of_cell) for side, n in cells.items()},
        same_counts=shared(np.concatenate(counts), side_of_cell),
        same_names=shared(np.concatenate(barcodes), side_of_cell),
        **report,
    )


def report_text(report: SplitReport, out: Path) -> str:
    """A split for reading; a warning where sides share cells."""
    lines = [
        f"{out / side}: {counted(cells, 'cells')} ({report.shares[side]:.1%}) in "
        f"{counted(report.groups[side], 'groups')} of {report.by}"
        for side, cells in report.cells.items()
    ]
    if report.unlabelled:
        lines.append(f"cells without {report.by}: {report.unlabelled:,}; left out: {report.dropped:,}")
    lines.append(f"on two sides with the same source and barcode: {_shared_text(report.same_names)}")
    lines.append(f"on two sides with the same counts: {_shared_text(report.same_counts)}")
    if report.same_names.cells or report.same_counts.cells:
        lines.append(
            "warning: sides share cells. Was one sample given in two files or under two names? "
            "Build the corpus without the repeats, or split by a column that keeps them together."
        )
    return "\n".join(lines)


def _shared_text(found: Shared) -> str:
    return f"{counted(found.cells, 'cells')} ({found.keys:,} distinct)" if found.cells else "none"
