"""How layers that read or predict peaks start from a pretrained gene table: a peak is the mean of the genes around it."""

import math
import warnings
import zlib
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float32
from torch import Tensor, nn

from expresser.errors import InputError
from expresser.regions import Regions
from translate.blocks import SparseLinear
from translate.conditional import ConditionalDecoder
from translate.gene_peaks import REACH, peak_gene_weights
from translate.genenames import GenePlaces, gene_table
from translate.heads import OpenHead
from translate.rna_layer import RnaLayer
from translate.scmog import Critic
from translate.study import DataWarning

APART = 10_000  # bases between two starts of one gene from which they are of two builds: few genes have promoters so far apart
ALIKE = 1e-6  # share of a table's size; with less between its rows they are one row and rounding


def gene_places(vocab_table: pd.DataFrame, study_var: pd.DataFrame | None) -> pd.DataFrame:
    """Columns chrom ("" unknown) and tss (-1 unknown) of each gene of a vocabulary, in its order.

    vocab_table: `expresser.genes.GeneVocab.table`; transcription starts where its interval does on the gene's own strand, counted
    from 1. study_var: of the study's RNA; its places win, since they were judged beside the peaks (`translate.genomes`), and are
    found by id, else by symbol. Where the two disagree on most genes the vocabulary is of another build: none of its places is
    taken then, with a DataWarning.
    """
    own = gene_table(vocab_table.set_index("gene_id", drop=False))
    chrom, tss = own["chrom"].to_numpy(object), own["tss"].to_numpy(np.int64)
    known = (chrom != "") & (tss >= 0)
    if study_var is not None:
        its_chrom, its_tss = _of_study(study_var).find(
            vocab_table["gene_id"].to_numpy(object), own["symbol"].to_numpy(object)
        )
        given = its_tss >= 0
        both = known & given
        far = (its_chrom != chrom) | (np.abs(its_tss - tss) > APART)
        if (far & both).sum() > 0.5 * both.sum():
            warnings.warn(
                f"bridge: {int((far & both).sum()):,} of {int(both.sum()):,} genes start elsewhere in the pretrained model's "
                f"vocabulary than in the study (on another chromosome, or more than {APART:,} bases away): its places are of "
                "another genome build. Only genes that the study has places of tell about peaks.",
                DataWarning,
                stacklevel=2,
            )
            known[:] = False
        chrom, tss, known = np.where(given, its_chrom, chrom), np.where(given, its_tss, tss), known | given
    columns = {"chrom": np.where(known, chrom, "").astype(object), "tss": np.where(known, tss, -1).astype(np.int64)}
    return pd.DataFrame(columns, index=pd.Index(vocab_table["gene_id"], dtype=object))


def _of_study(var: pd.DataFrame) -> GenePlaces:
    """Places of the genes of which they are known, by Ensembl id, or by symbol where a gene has none."""
    ids = var["ensembl_id"].to_numpy(object)
    symbols = var["symbol"].to_numpy(object) if "symbol" in var else ids
    names = {"ensembl_id": np.where(ids != "", ids, symbols), "symbol": symbols}
    placed = (var["chrom"] != "").to_numpy() & (var["tss"] >= 0).to_numpy()
    tss = np.where(placed, var["tss"].to_numpy(np.int64), -1)
    return GenePlaces.read(pd.DataFrame({**names, "chrom": var["chrom"].to_numpy(object), "tss": tss}))


def peak_table(
    regions: Regions, genes: pd.DataFrame, table: Float32[np.ndarray, "genes d"]
) -> tuple[Float32[np.ndarray, "peaks d"], Bool[np.ndarray, " peaks"]]:
    r"""A row a peak, and which peaks have one: :math:`e_p = \sum_g w_{pg} t_g / \sum_g w_{pg}`, then standardised.

    w: `translate.gene_peaks.peak_gene_weights`, which fall with the distance to the gene's transcription start and are 0 beyond
    100,000 bases. genes: columns chrom and tss (-1 unknown), a row for each row t of the table. Standardised: columns are centred
    over the peaks that have a row, and all of it is brought to a mean square of 1; other peaks have zeros.

    Raises InputError where no gene is near a peak, and where all that are near say the same.
    """
    weights = peak_gene_weights(regions, genes).tocsr()
    total = np.asarray(weights.sum(axis=1)).ravel()
    known = total > 0
    way_out = "Give places of genes of the peaks' genome build (--genes TABLE), or leave --peak-start out."
    if not known.any():
        raise InputError(
            f"bridge: none of {len(regions):,} peaks lies within {REACH:,} bases of the start of a gene of the pretrained model "
            f"({int((genes['tss'] >= 0).sum()):,} of its {len(genes):,} genes have a place). {way_out}"
        )
    # Entries, not rows, are divided: an only gene has the weight 1 exactly, however far it is.
    weights.data /= np.repeat(total, np.diff(weights.indptr))
    found = weights @ table
    size = np.abs(found).max()
    found -= (found.sum(axis=0, dtype=np.float64) / known.sum()).astype(np.float32)
    found[~known] = 0.0
    spread = math.sqrt(np.square(found).sum(dtype=np.float64) / (known.sum() * table.shape[1]))
    if not spread > ALIKE * size:
        raise InputError(
            f"bridge: the genes near {int(known.sum()):,} of {len(regions):,} peaks have one and the same embedding, which cannot "
            f"tell peaks apart. {way_out}"
        )
    found /= np.float32(spread)
    return found, known


@torch.no_grad()
def start_peaks(
    system: nn.Module,
    regions: Regions,
    table: Float32[Tensor, "peaks d"],
    known: Bool[np.ndarray, " peaks"],
    *,
    outputs: bool,
    seed: int,
) -> int:
    r"""First weights of the layers that read peaks and, with `outputs`, of those that predict them, in place: how many layers.

    .. math:: W_{pk} = s_b \sum_j e_{pj} P^b_{jk}

    of peak p in block b, where its row e of the table is known; other peaks keep what they have. P is Gaussian, a function of seed,
    layer and block (it keeps how peaks lie to one another: Johnson and Lindenstrauss); s brings the block's known peaks to the
    root mean square of Xavier's weights in that block. Units that only pad a block (`translate.beta_vae.start_padded`) stay 0, and
    what confounders give to an output directly (`ConditionalDecoder`) stays as it is. scMOG's critics read peaks, and are left.
    """
    if not len(regions) == len(table) == len(known):
        raise ValueError(f"{len(regions)} peaks, but a table of {len(table)} and a mask of {len(known)}.")
    mask, layers = torch.from_numpy(known), 0
    for name, weight, bounds, columns in _over_peaks(system, outputs):
        if bounds[-1] != len(regions):
            continue
        # By name, not by turn: readers start alike whether or not the outputs do too.
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        for a, b in pairwise(bounds):
            _start(weight[a:b], table[a:b], mask[a:b], columns, rng)
        layers += 1
    return layers


def _over_peaks(system: nn.Module, outputs: bool) -> Iterator[tuple[str, Tensor, tuple[int, ...], int]]:
    """Name, weight (a row a peak), blocks, and how many columns are to start, of each layer."""
    critics = {id(module.first) for module in system.modules() if isinstance(module, Critic)}
    wide = {id(module.head): module.wide for module in system.modules() if isinstance(module, ConditionalDecoder)}
    for name, module in system.named_modules():
        if isinstance(module, OpenHead) and outputs:
            bounds = module.bounds if module.per_block else (0, module.bounds[-1])
            yield name, module.weight, bounds, wide.get(id(module), module.weight.shape[1])
        elif isinstance(module, SparseLinear) and not isinstance(module, RnaLayer) and id(module) not in critics:
            yield name, module.weight, module.bounds, module.weight.shape[1]


def _start(
    weight: Float32[Tensor, "peaks units"],
    table: Float32[Tensor, "peaks d"],
    known: Bool[Tensor, " peaks"],
    columns: int,
    rng: np.random.Generator,
) -> None:
    """The first so many columns of a block, in place."""
    projection = torch.from_numpy(rng.standard_normal((table.shape[1], columns), dtype=np.float32))
    alive = (weight != 0).any(dim=0).cpu()  # what pads a block has no weight in any of its rows
    projection[:, ~alive[:columns]] = 0.0
    rows = (table @ projection).mul_(known[:, None])
    size = torch.linalg.vector_norm(rows) / math.sqrt(max(int(known.sum()) * int(alive[:columns].sum()), 1))
    if size > 0:
        rows.mul_(math.sqrt(2 / (len(weight) + int(alive.sum()))) / size)
        weight[known.to(weight.device), :columns] = rows[known].to(weight.device)
