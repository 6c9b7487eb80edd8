"""A made genome: where simulated genes and peaks lie on the real chromosomes, and which peak belongs to which gene.

Every position lies in a bin of its own, 1,024 bp wide, so that peaks (300 to 1,000 bp) never overlap. Bins are drawn
uniformly over the autosomes, so that chromosomes hold features in proportion to their length; no sequence is behind
them. Coordinates are 0-based, intervals half-open.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int32, Int64

# Lengths of the autosomes, bp.
AUTOSOMES = {
    "hg38": {
        "chr1": 248_956_422, "chr2": 242_193_529, "chr3": 198_295_559, "chr4": 190_214_555, "chr5": 181_538_259,
        "chr6": 170_805_979, "chr7": 159_345_973, "chr8": 145_138_636, "chr9": 138_394_717, "chr10": 133_797_422,
        "chr11": 135_086_622, "chr12": 133_275_309, "chr13": 114_364_328, "chr14": 107_043_718, "chr15": 101_991_189,
        "chr16": 90_338_345, "chr17": 83_257_441, "chr18": 80_373_285, "chr19": 58_617_616, "chr20": 64_444_167,
        "chr21": 46_709_983, "chr22": 50_818_468,
    },
}  # fmt: skip
MAX_FEATURES = 1_000_000  # genes and peaks together: a third of the bins, so that placing them stays easy

_BIN = 1024
_MARGIN = 10  # bins at either end of a chromosome where nothing lies: telomeres
_WIDTH = (300, 1000)
_REACH = (3_000, 95_000)  # bp from TSS to enhancer; with the width of a bin on top, below 100 kb
_UNLINKED = 0.2  # share of the peaks that stays without a gene, however few peaks there are

PROMOTER, ENHANCER, OTHER = range(3)
KINDS = ("promoter", "enhancer", "other")


@dataclass(frozen=True, eq=False)
class MadeGenome:
    """Genes and peaks in canonical order (chr1, chr2, …, chr22; then position), and the links between them."""

    chroms: tuple[str, ...]
    gene_chrom: Int32[np.ndarray, " genes"]
    tss: Int64[np.ndarray, " genes"]
    peak_chrom: Int32[np.ndarray, " peaks"]
    start: Int64[np.ndarray, " peaks"]
    end: Int64[np.ndarray, " peaks"]
    gene_of: Int64[np.ndarray, " peaks"]  # -1: none
    kind: Int32[np.ndarray, " peaks"]  # index into KINDS

    def peaks_table(self) -> pd.DataFrame:
        """var of the peaks: index "chr1:100-600", columns chrom, start, end, kind."""
        chrom = np.array(self.chroms, object)[self.peak_chrom]
        names = [f"{c}:{s}-{e}" for c, s, e in zip(chrom, self.start.tolist(), self.end.tolist())]
        kind = pd.Categorical.from_codes(self.kind, categories=list(KINDS))
        return pd.DataFrame({"chrom": chrom, "start": self.start, "end": self.end, "kind": kind}, index=names)

    def distance(self) -> Int64[np.ndarray, " peaks"]:
        """From the TSS of a peak's gene to the peak's middle, bp, positive towards the end of the chromosome."""
        middle = (self.start + self.end) // 2
        return np.where(self.gene_of >= 0, middle - self.tss[self.gene_of], 0)


def make_genome(
    rng: np.random.Generator, *, genome: str, n_genes: int, n_peaks: int, links_per_gene: float | int
) -> MadeGenome:
    """Draw positions: a promoter peak over the TSS of each gene, Poisson(`links_per_gene`) enhancers around it.

    Enhancers lie within 100 kb of the TSS, at log-uniform distances. The rest of the peaks lie anywhere. Where peaks
    are too few for all genes, a random part of the genes gets its peaks and the others none.
    """
    chroms = tuple(AUTOSOMES[genome])
    bins = np.array([length // _BIN - 2 * _MARGIN for length in AUTOSOMES[genome].values()], np.int64)
    first = np.r_[0, bins.cumsum()]
    gene_bin = np.sort(rng.choice(first[-1], n_genes, replace=False, shuffle=False))
    taken = np.zeros(first[-1], bool)
    taken[gene_bin] = True

    n_linked = min(n_genes, int((1 - _UNLINKED) * n_peaks / (1 + links_per_gene)))
    linked = np.sort(rng.choice(n_genes, n_linked, replace=False))
    wanted = linked.repeat(rng.poisson(links_per_gene, n_linked))
    wanted = rng.permutation(wanted)[: n_peaks - n_linked]
    gene, enhancer_bin = _enhancers(rng, wanted, gene_bin, first, taken)
    n_other = n_peaks - n_linked - len(gene)
    other_bin = rng.choice(np.flatnonzero(~taken), n_other, replace=False, shuffle=False)

    peak_bin = np.concatenate([gene_bin[linked], enhancer_bin, other_bin])
    order = np.argsort(peak_bin)
    width = rng.integers(_WIDTH[0], _WIDTH[1] + 1, n_peaks)
    offset = rng.integers(0, _BIN - width + 1)
    peak_chrom, start = _place(peak_bin[order], first)
    start += offset
    gene_of = np.concatenate([linked, gene, np.full(n_other, -1)])[order]
    kind = np.repeat(np.array([PROMOTER, ENHANCER, OTHER], np.int32), [n_linked, len(gene), n_other])[order]

    gene_chrom, tss = _place(gene_bin, first)
    within = rng.random(n_genes)
    tss += (within * _BIN).astype(np.int64)
    promoter = kind == PROMOTER
    tss[gene_of[promoter]] = (start + within[gene_of] * width).astype(np.int64)[promoter]
    return MadeGenome(chroms, gene_chrom, tss, peak_chrom, start, start + width, gene_of, kind)


def _place(
    index: Int64[np.ndarray, " features"], first: Int64[np.ndarray, " edges"]
) -> tuple[Int32[np.ndarray, " features"], Int64[np.ndarray, " features"]]:
    """Chromosome and start of bins numbered over the whole genome."""
    chrom = np.searchsorted(first, index, side="right") - 1
    return chrom.astype(np.int32), (index - first[chrom] + _MARGIN) * _BIN


def _enhancers(
    rng: np.random.Generator,
    gene: Int64[np.ndarray, " wanted"],
    gene_bin: Int64[np.ndarray, " genes"],
    first: Int64[np.ndarray, " edges"],
    taken: Bool[np.ndarray, " bins"],
) -> tuple[Int64[np.ndarray, " enhancers"], Int64[np.ndarray, " enhancers"]]:
    """Free bins around the genes, marked in `taken`; a gene where none is found in ten tries gets an enhancer less."""
    genes, found = [], []
    nearest, farthest = np.log(_REACH)
    for _ in range(10):
        at = gene_bin[gene]
        distance = np.exp(rng.uniform(nearest, farthest, len(gene))) * rng.choice([-1, 1], len(gene))
        try_bin = at + np.rint(distance / _BIN).astype(np.int64)
        chrom = np.searchsorted(first, at, side="right") - 1
        good = (try_bin >= first[chrom]) & (try_bin < first[chrom + 1])
        good[good] = ~taken[try_bin[good]]
        _, once = np.unique(try_bin[good], return_index=True)
        placed = np.flatnonzero(good)[once]
        taken[try_bin[placed]] = True
        genes.append(gene[placed])
        found.append(try_bin[placed])
        gene = np.delete(gene, placed)
    return np.concatenate(genes), np.concatenate(found)
