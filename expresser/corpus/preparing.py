"""What is to be built, before a count is read: arguments, names and digests of the inputs, and the job that each of them is."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from expresser import __version__
from expresser.corpus.align import Alignment
from expresser.corpus.assembling import Scattered
from expresser.corpus.duplicates import check_deduplicate
from expresser.corpus.packing import UINT32_MAX
from expresser.corpus.shuffle import bucket_count
from expresser.corpus.source import Features, Source
from expresser.corpus.workers import Job
from expresser.errors import InputError
from expresser.genes import GeneVocab

UINT16_MAX = 2**16 - 1


@dataclass(frozen=True)
class Arguments:
    """What decides a corpus, beside the inputs. `genes` is the sha256 of the vocabulary, None for the inputs' union."""

    genes: str | None
    layer: str | None
    obs_columns: list[str]
    min_genes: int
    min_counts_kept: float
    seed: int
    shard_rows: int
    batch_rows: int
    deduplicate: str | None = None
    source_column: str | None = None

    def check(self) -> None:
        """Raises InputError for a value out of range."""
        check_deduplicate(self.deduplicate, self.source_column)
        for name, least, most in (
            ("min_genes", 0, UINT32_MAX),
            ("min_counts_kept", 0, 1),
            ("seed", 0, 2**64 - 1),
            ("shard_rows", 1, UINT32_MAX),
            ("batch_rows", 1, UINT32_MAX),
        ):
            if not least <= getattr(self, name) <= most:
                raise InputError(f"{name} is {getattr(self, name)}; it must lie in {least} … {most}.")


def make_jobs(
    sources: Sequence[Source],
    names: Sequence[str],
    shas: Sequence[str | None],
    vocab: GeneVocab,
    arguments: Arguments,
    genes: str,
    *,
    first: int = 0,
) -> list[Job]:
    """What is to be done with each source, numbered from `first`; InputError where one has no gene of the vocabulary."""
    jobs = [
        Job(
            number=number,
            path=source.path,
            name=name,
            layer=arguments.layer,
            alignment=Alignment.of(source, vocab),
            min_genes=arguments.min_genes,
            min_counts_kept=arguments.min_counts_kept,
            genes=genes,
            deduplicate=arguments.deduplicate,
            source_column=arguments.source_column,
            sha256=sha,
            features=source.features,
        )
        for number, (source, name, sha) in enumerate(zip(sources, names, shas), start=first)
    ]
    for source, job in zip(sources, jobs):
        # Before a count is read: a wrong fortieth file must not cost the hours of the first thirty-nine.
        report = job.alignment.resolution.report()
        if not report.genes:
            report.check(source.label, arguments.min_counts_kept)
    return jobs


def description(
    sources: Sequence[Source], names: list[str], shas: Sequence[str | None], vocab: GeneVocab, arguments: Arguments
) -> dict[str, Any]:
    """What decides the result, to know a build again that was interrupted. A file whose sha256 is not known yet: size and time."""
    inputs: list[Any] = []
    for source, sha in zip(sources, shas):
        stat = source.path.stat() if sha is None and source.path is not None else None
        inputs.append([str(source.path), sha] if stat is None else [str(source.path), stat.st_size, stat.st_mtime_ns])
    return {
        "arguments": asdict(arguments),
        "vocabulary": vocab.sha256,
        "inputs": inputs,
        "names": names,
        "buckets": bucket_count(sum(source.n_cells for source in sources)),
        "version": __version__,
    }


def sha256_of(source: Source, obs_columns: Sequence[str]) -> str:
    """The source's own; of an AnnData in memory, whose sha256 leaves out the tables, with the names and labels used."""
    digest = source.sha256()
    if source.path is not None:
        return digest
    tables = [[column, names.tolist()] for column, names in source.gene_columns.items()]
    tables += [[column, source.obs[column].tolist()] for column in obs_columns if column in source.obs.columns]
    return hashlib.sha256(f"{digest}{tables!r}".encode()).hexdigest()


def known_shas(sources: Sequence[Source], obs_columns: Sequence[str]) -> list[str | None]:
    """sha256 of what is no single file, or is a file as long as another; None for the rest, which are hashed while they are read."""
    sizes = [
        source.path.stat().st_size if source.path is not None and source.path.is_file() else None for source in sources
    ]
    number = Counter(sizes)
    return [
        sha256_of(source, obs_columns) if size is None or number[size] > 1 or source.kind == "10x_mtx" else None
        for source, size in zip(sources, sizes)
    ]


def check_distinct(sources: Sequence[Source], shas: Sequence[str | None]) -> None:
    """InputError where two inputs are the same data."""
    first: dict[str, Source] = {}
    for source, sha in zip(sources, shas):
        if sha is None:
            continue
        if sha in first:
            raise InputError(
                f"{source.path or source.name} and {first[sha].path or first[sha].name} are the same data "
                f"(sha256 {sha[:12]}…): their cells would count twice. Name each input once."
            )
        first[sha] = source


def distinct_names(sources: Sequence[Source]) -> list[str]:
    """One name a source: its own, with as many parent folders as tell it from others (cellranger names all alike)."""
    names = [source.name for source in sources]
    depth = 0
    while len(set(names)) < len(names) and depth < max(len(s.path.resolve().parts) if s.path else 0 for s in sources):
        depth += 1
        names = [
            "/".join((*source.path.resolve().parent.parts[1:][-depth:], source.name))
            if source.path is not None and names.count(name) > 1
            else name
            for source, name in zip(sources, names)
        ]
    return [f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name for i, name in enumerate(names)]


def check_numbers(n_cells: int, n_sources: int) -> None:
    """InputError for more cells or inputs than the columns of a shard can number."""
    if n_cells > UINT32_MAX or n_sources > UINT16_MAX:
        raise InputError(
            f"{n_cells:,} cells of {n_sources:,} inputs: a corpus holds at most {UINT32_MAX:,} cells of "
            f"{UINT16_MAX:,} inputs. Build several."
        )


def no_cells(done: Scattered, min_genes: int, features: Features) -> str:
    """What to tell of inputs that leave nothing."""
    account = "; ".join(
        f"{entry['name']}: {entry['dropped']['empty']:,} of {entry['cells_read']:,} cells empty, "
        f"{entry['dropped']['few genes']:,} with fewer than {min_genes} {features} of the vocabulary"
        for entry in done.entries[:5]
    )
    return f"no cell is left ({account}). Lower min_genes, or give cells with counts in {features} of the vocabulary."
