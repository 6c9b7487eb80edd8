"""One law for all files: however the bytes are damaged, a file is refused with InputError, or read; nothing else, and in time."""

import functools
import gzip
import io
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import fuzz_cells
import fuzz_genes
import fuzz_labels
import fuzz_settings
import numpy as np
import pandas as pd
import strategies as some
from fuzzing import refusal, target
from hypothesis import strategies as st
from scipy import sparse
from strategies import Cells, Counts

from expresser.bed import read_bed
from expresser.comparison.reading import read_runs
from expresser.corpus.build import build_corpus
from expresser.corpus.source import open_source
from expresser.corpus.store import Corpus
from expresser.corpus.verify import verify_corpus
from expresser.genes import GeneVocab
from expresser.regions import Regions
from expresser.tables import read_gene_table
from finetune.labels import read_constraint, read_gene_labels, read_pairs
from translate.fragments import peaks_from_fragments
from translate.genenames import GenePlaces
from translate.liftover import lift
from translate.opening import modalities_in, open_mudata

Files = dict[str, bytes]  # by their path in the folder


def _counts(seed: int = 0) -> sparse.csr_matrix:
    return sparse.csr_matrix(np.random.default_rng(seed).poisson(0.5, (12, 9)).astype(np.float32))


def _adata() -> ad.AnnData:
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(list("aabbab" * 2)), "n": range(12)}, index=[f"CELL-{i}" for i in range(12)]
    )
    genes = list(some.GENES[:9])
    return ad.AnnData(
        _counts(), obs=obs, var=pd.DataFrame({"gene_ids": [f"ENSG{i:011d}" for i in range(1, 10)]}, index=genes)
    )


def _cells() -> Cells:
    entries = [(i, j, int(v)) for (i, j), v in np.ndenumerate(_counts().toarray()) if v]
    return Cells({None: Counts((12, 9), "i4", "csr", entries)}, [f"CELL-{i}" for i in range(12)], list(some.GENES[:9]))


def _written(write: Callable[[Path], Any]) -> Files:
    """All files that a function writes into an empty folder."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        write(folder)
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _h5ad(store: Callable[[Any], Any], **options: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        adata = _adata()
        adata.X = store(adata.X)
        adata.write_h5ad(folder / "a.h5ad", **options)

    return write


def _run_law(law: Callable[..., Any], **drawn: Any) -> Callable[[Path], None]:
    return lambda folder: law(folder, **drawn) and None


def _text(name: str, text: str, packed: bool = False) -> Callable[[Path], None]:
    return lambda folder: (
        (folder / name).write_bytes(gzip.compress(text.encode()) if packed else text.encode()) and None
    )


def _mudata(folder: Path) -> None:
    import mudata

    peaks = ad.AnnData(
        _counts(1), obs=_adata().obs[[]], var=pd.DataFrame(index=[f"chr1:{i * 9}-{i * 9 + 5}" for i in range(9)])
    )
    mudata.MuData({"rna": _adata(), "atac": peaks}).write_h5mu(folder / "a.h5mu")


def _parquet(folder: Path) -> None:
    frame = pd.DataFrame(
        {"symbol": some.GENES[:4], "0": [1.0, 2, 3, 4], "1": [4.0, 3, 2, 1]},
        index=pd.Index(some.GENES[:4], name="gene_id"),
    )
    frame.to_parquet(folder / "genes.parquet")


def _runs(folder: Path) -> None:
    for name, content in fuzz_settings.RUNS["translator"].items():
        (folder / name).write_text(
            "\n".join(json.dumps(x) for x in (content if name == "log.jsonl" else [content])) + "\n"
        )


def _read_source(path: Path) -> None:
    for _ in open_source(path, features=None).chunks(5):
        pass


def _read_mudata(path: Path) -> None:
    modalities_in(path)
    open_mudata(path)


def _read_corpus(path: Path) -> None:
    corpus = Corpus.open(path)
    corpus.read(np.arange(corpus.n_cells))
    _ = corpus.obs
    verify_corpus(path)


_PAIRS = "gene1\tgene2\tlabel\n" + "".join(
    f"{a}\t{b}\t{i % 2}\n" for i, (a, b) in enumerate(zip(some.GENES, some.GENES[1:]))
)
_LABELS = "gene\tlabel\n" + "".join(f"{g}\t{i % 2}\n" for i, g in enumerate(some.GENES))
_FRAGMENTS = "# id=x\n" + "".join(f"chr1\t{i}\t{i + 20}\tAAAC-{i % 3}\t1\n" for i in range(0, 200, 7))
_CHAIN = "chain 1000 chr1 1000 + 0 300 chr2 2000 + 50 350 1\n100 10 10\n190\n\n"
_GTF = "".join(
    f'chr1\tHAVANA\tgene\t{i * 10 + 1}\t{i * 10 + 9}\t.\t+\t.\tgene_id "ENSG{i:011d}.1"; gene_name "{g}"; gene_type "protein_coding"\n'
    for i, g in enumerate(some.GENES, 1)
)
_HGNC = (
    "\t".join(fuzz_genes._HGNC)
    + "\n"
    + "".join(
        f"HGNC:{i}\t{g}\tprotein-coding gene\tApproved\tENSG{i:011d}\tOLD{i}\t\t1q2\n"
        for i, g in enumerate(some.GENES, 1)
    )
)
_CSV = "," + ",".join(f"ENSG{i:011d}" for i in range(1, 6)) + "\n" + "".join(f"CELL{i},{i},0,2,0,1\n" for i in range(8))
_STRING = "protein1 protein2 experimental\n" + "".join(
    f"9606.ENSP{i:011d} 9606.ENSP{i + 1:011d} {i * 90}\n" for i in range(1, 11)
)
_ALIASES = "#string_protein_id\talias\tsource\n" + "".join(
    f"9606.ENSP{i:011d}\t{g}\tEnsembl_HGNC_symbol\n" for i, g in enumerate(some.GENES, 1)
)
_CONSTRAINT = "gene\ttranscript\tlof_z\tcds_length\n" + "".join(
    f"{g}\tENST{i}\t{i / 3}\t{i * 99}\n" for i, g in enumerate(some.GENES)
)
_VECTORS = "4 3\n" + "".join(f"{g} {i / 7} {i} -1.5e-3\n" for i, g in enumerate(some.GENES[:4]))
_REGIONS = Regions.parse(["chr1:0-90", "chr1:100-200"])

# name: (what writes the files, the path that is read, how)
FILES: dict[str, tuple[Callable[[Path], Any], str, Callable[[Path], Any]]] = {
    "h5ad, CSR": (_h5ad(sparse.csr_matrix, compression="gzip"), "a.h5ad", _read_source),
    "h5ad, CSC": (_h5ad(sparse.csc_matrix), "a.h5ad", _read_source),
    "h5ad, dense": (_h5ad(lambda x: x.toarray(), compression="gzip"), "a.h5ad", _read_source),
    "zarr": (lambda folder: _adata().write_zarr(folder / "a.zarr"), "a.zarr", _read_source),
    "10x h5": (lambda folder: fuzz_cells._tenx(folder / "a.h5", _cells(), 3, "i8"), "a.h5", _read_source),
    "loom": (_run_law(fuzz_cells.loom.law, cells=_cells(), rows=5), "a.loom", _read_source),
    "10x mtx": (
        _run_law(fuzz_cells.mtx.law, cells=_cells(), packed=False, transposed=False, extra=None, rows=5),
        "mtx",
        _read_source,
    ),
    "10x mtx.gz": (
        _run_law(fuzz_cells.mtx.law, cells=_cells(), packed=True, transposed=False, extra=None, rows=5),
        "mtx",
        _read_source,
    ),
    "CSV": (_text("a.csv", _CSV), "a.csv", _read_source),
    "CSV.gz": (_text("a.csv.gz", _CSV, True), "a.csv.gz", _read_source),
    "h5mu": (_mudata, "a.h5mu", _read_mudata),
    "corpus": (
        lambda folder: build_corpus([_adata()], folder / "corpus", obs_columns=["cell_type"], min_genes=1),
        "corpus",
        _read_corpus,
    ),
    "BED": (_text("a.bed", "chr1\t1\t9\nchr2\t5\t77\n"), "a.bed", read_bed),
    "BED.gz": (_text("a.bed.gz", "chr1\t1\t9\nchr2\t5\t77\n", True), "a.bed.gz", read_bed),
    "fragments": (
        _text("f.tsv", _FRAGMENTS),
        "f.tsv",
        lambda p: peaks_from_fragments(p, _REGIONS, min_fragments=1, chunk=64),
    ),
    "fragments.gz": (
        _text("f.tsv.gz", _FRAGMENTS, True),
        "f.tsv.gz",
        lambda p: peaks_from_fragments(p, _REGIONS, min_fragments=1),
    ),
    "chain": (_text("a.chain", _CHAIN), "a.chain", lambda p: lift(_REGIONS, p)),
    "chain.gz": (_text("a.chain.gz", _CHAIN, True), "a.chain.gz", lambda p: lift(_REGIONS, p)),
    "GTF": (_text("a.gtf", _GTF), "a.gtf", lambda p: (GeneVocab.read(p), GenePlaces.read(p))),
    "GTF.gz": (_text("a.gtf.gz", _GTF, True), "a.gtf.gz", GeneVocab.read),
    "HGNC": (_text("h.txt", _HGNC), "h.txt", GeneVocab.read),
    "genes.tsv": (lambda folder: fuzz_labels.VOCAB.save(folder / "genes.tsv"), "genes.tsv", GeneVocab.read),
    "labels": (_text("l.tsv", _LABELS), "l.tsv", lambda p: read_gene_labels(p, vocab=fuzz_labels.VOCAB)),
    "labels.gz": (_text("l.tsv.gz", _LABELS, True), "l.tsv.gz", lambda p: read_gene_labels(p, vocab=fuzz_labels.VOCAB)),
    "constraint": (_text("c.tsv", _CONSTRAINT), "c.tsv", lambda p: read_constraint(p, vocab=fuzz_labels.VOCAB)),
    "pairs": (_text("p.tsv", _PAIRS), "p.tsv", lambda p: read_pairs(p, vocab=fuzz_labels.VOCAB)),
    "STRING": (
        lambda folder: (_text("s.txt", _STRING)(folder), _text("al.txt", _ALIASES)(folder)),
        "s.txt",
        lambda p: read_pairs(p, vocab=fuzz_labels.VOCAB, aliases=p.with_name("al.txt"), format="string"),
    ),
    "vectors, word2vec": (_text("v.txt", _VECTORS), "v.txt", read_gene_table),
    "vectors, CSV": (_text("v.csv", _VECTORS.replace("4 3\n", "").replace(" ", ",")), "v.csv", read_gene_table),
    "vectors, parquet": (_parquet, "genes.parquet", read_gene_table),
}


@functools.cache
def files_of(name: str) -> Files:
    """The sound files, written once."""
    return _written(FILES[name][0])


def damaged(files: Files, number: Callable[[int, int], int]) -> Files:
    """The files of a kind with one of them damaged or gone, and gzip's content damaged inside its wrapping now and then."""
    one = sorted(files)[number(0, len(files) - 1)]
    if len(files) > 1 and number(0, 9) == 0:
        return {path: data for path, data in files.items() if path != one}
    if files[one][:2] == b"\x1f\x8b" and number(0, 1):
        buffer = io.BytesIO()
        with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1, mtime=0) as packed:
            packed.write(some.damaged(gzip.decompress(files[one]), number))
        return files | {one: buffer.getvalue()}
    return files | {one: some.damaged(files[one], number)}


@st.composite
def _drawn(draw: Any, files: Files) -> Files:
    return damaged(files, lambda low, high: draw(st.integers(low, high)))


def _of_damage(name: str, sound: Callable[[], Files]) -> Callable[[Callable[..., bool]], Any]:
    """A target that hypothesis draws for, and, many times as fast, a plain generator of random numbers."""
    files = st.deferred(lambda: _drawn(sound()))
    return target(name, quiet=True, plain=lambda chance: {"files": damaged(sound(), chance.randint)}, files=files)


def _law(name: str) -> Callable[..., bool]:
    def law(folder: Path, files: Files) -> bool:
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        _, path, read = FILES[name]
        with refusal(folder) as refused:
            read(folder / path)
        return not refused

    return law


for _name in FILES:
    _of_damage(f"damaged {_name}", functools.partial(files_of, _name))(_law(_name))


@functools.cache
def _run_files() -> Files:
    return _written(_runs)


@_of_damage("damaged runs", _run_files)
def damaged_run(folder: Path, files: Files) -> bool:
    """A damaged run is read or left out; alone, there is nothing to report on."""
    for path, data in files.items():
        (folder / path).write_bytes(data)
    with refusal(folder) as refused:
        read_runs([folder])
    return not refused
