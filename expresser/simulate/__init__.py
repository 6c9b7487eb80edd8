"""Simulated cells whose truth is known: RNA, RNA with open chromatin, RNA with surface proteins, scATAC drawn from bulk profiles; and
properties of the genes."""

from expresser.simulate.cite import Cite, simulate_cite
from expresser.simulate.draws import CELLS_PER_BLOCK
from expresser.simulate.gene_labels import SimulatedLabels, simulate_gene_labels
from expresser.simulate.multiome import Multiome, simulate_multiome
from expresser.simulate.rna import simulate_rna
from expresser.simulate.scan_designs import simulate_scan_atac

__all__ = [
    "CELLS_PER_BLOCK",
    "Cite",
    "Multiome",
    "SimulatedLabels",
    "simulate_cite",
    "simulate_gene_labels",
    "simulate_multiome",
    "simulate_rna",
    "simulate_scan_atac",
]
