"""Which features the tokens of a corpus are: genes by name, or genomic regions by place."""

from collections.abc import Sequence
from pathlib import Path

from anndata import AnnData

from expresser.bed import read_bed
from expresser.corpus.source import Features, Source, open_source
from expresser.errors import InputError
from expresser.genes import GeneVocab
from expresser.region_vocab import RegionVocab
from expresser.regions import Regions

_BED = (".bed", ".narrowpeak", ".broadpeak", ".gappedpeak")


def read_regions(path: str | Path) -> Regions:
    """Of a BED file (also narrowPeak, broadPeak; .gz), or the peaks of a data file; no count is read."""
    path = Path(path)
    if path.name.lower().removesuffix(".gz").endswith(_BED):
        return read_bed(path)
    return open_source(path, features="regions").regions


def open_all(inputs: Sequence[str | Path | AnnData], *, layer: str | None, features: Features | None) -> list[Source]:
    """The inputs, opened as `open_source` does; InputError where some hold genes and others peaks."""
    sources = [open_source(data, layer=layer, features=features) for data in inputs]
    peaks = [source for source in sources if source.features == "regions"]
    if peaks and len(peaks) < len(sources):
        genes = next(source for source in sources if source.features == "genes")
        raise InputError(
            f"{peaks[0].label} holds peaks ({peaks[0]._names[0]}, …), {genes.label} genes ({genes._names[0]}, …): one "
            "corpus has one kind of features. Build a corpus of each: of peaks with --regions, which reads the peaks of "
            "files that hold both."
        )
    return sources


def union(sources: Sequence[Source]) -> GeneVocab:
    """The vocabulary of sources that were given none: the union of their genes; their peaks, which must be the same."""
    if sources[0].features == "genes":
        return GeneVocab.union([source.guess_vocab() for source in sources])
    vocabs = [source.guess_vocab() for source in sources]
    for source, vocab in zip(sources, vocabs):
        if vocab != vocabs[0]:
            shared = len(set(vocab.ids) & set(vocabs[0].ids))
            raise InputError(
                f"{source.label} has {len(vocab):,} peaks and {sources[0].label} {len(vocabs[0]):,}, {shared:,} of them the "
                "same: files of a corpus without --regions must have the same peaks. Say which regions the corpus is to "
                f"have: --regions peaks.bed, or --regions {sources[0].path or 'FIRST_FILE'} for those of that file. Other "
                "peaks go to the region they overlap most, those without overlap are dropped and counted."
            )
    return vocabs[0]


def given(genes: GeneVocab | None, regions: "Regions | str | Path | None") -> GeneVocab | None:
    """The vocabulary asked for, None for the inputs' own; InputError where both kinds are."""
    if genes is not None and regions is not None:
        raise InputError("genes and regions were given: a corpus holds the one or the other. Leave one of them away.")
    if regions is None:
        return genes
    return RegionVocab(regions if isinstance(regions, Regions) else read_regions(regions))
