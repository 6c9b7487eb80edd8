"""``expresser translate match``: which ATAC cell is which RNA cell's, by the latents of a model."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from expresser.errors import InputError
from expresser.one_writer import one_writer_of_out
from expresser.progress import progress_bar

Model = Annotated[str, tyro.conf.Positional]


@one_writer_of_out
def match(
    model: Model,
    *,
    out: Path,
    rna: str | None = None,
    atac: str | None = None,
    mudata: str | None = None,
    space: Literal["rna", "atac"] | None = None,
    k: int = 1,
    mutual: bool = False,
    one_to_one: bool = False,
    layer: str | None = None,
    batch: str | None = None,
    budget_mb: float = 256.0,
) -> None:
    """Match cells of RNA to cells of ATAC by their distance in a latent of the model.

    Without --mutual and --one-to-one every RNA cell gets its nearest ATAC cells, and one ATAC cell may be many cells' nearest.
    Where names of cells are in both files it is said how well these are found again.

    Example: expresser translate match runs/babel --rna rna.h5ad --atac atac.h5ad --mutual --out matches.tsv

    Args:
        model: Folder of a fit or a model, or hub id (org/name, org/name@revision), of a system with a latent for both.
        out: Table, tab-separated, a row a match: rna, atac (names of cells), distance (squared Euclidean), rank (1: the nearest
            ATAC cell of the RNA cell), mutual (the RNA cell is also among the k nearest of the ATAC cell).
        rna: Raw counts of RNA: .h5ad, .zarr, 10x .h5 or a 10x folder.
        atac: Counts or 0/1 of peaks, of the same cells or others.
        mudata: A file with both, in place of --rna and --atac: .h5mu, or .h5ad or 10x .h5 whose feature_types tell them apart.
        space: In whose latent. Without it, the first that the system has.
        k: ATAC cells for each RNA cell.
        mutual: Keep only matches that are mutual.
        one_to_one: No cell twice. Of up to 4 million possible pairs the least sum of distances, of more the nearest first.
        layer: Where the raw counts are: a layer's name or "raw", of both files, or of some: rna=counts. Without it, X.
        batch: Of systems that tell batches apart (polarbear): the batch that cells are taken for whose own was not trained on
            ("reference": the largest). Without it, such cells are refused.
        budget_mb: Memory for distances, in MiB.
    """
    from expresser.atomic import replaced
    from translate.alignment_judging import spaces_of
    from translate.asking import matched
    from translate.cli_options import given_pair
    from translate.data import read_one
    from translate.matching import match_cells, paired_by_name
    from translate.origin import layers
    from translate.terminal import notes, on_fastest, prove_out
    from translate.translator import Translator

    if one_to_one and (k != 1 or mutual):
        raise InputError("--one-to-one gives each cell one match: leave --k and --mutual out.")
    if budget_mb <= 0:
        raise InputError(f"--budget-mb {budget_mb:g}: give some memory, such as 256.")
    pair = given_pair(rna, atac, mudata, "match")
    prove_out(out, *map(Path, pair.values()))
    with progress_bar("match") as report, notes():
        report(0, None, "reading")
        translator = on_fastest(Translator.load(model))
        where = _space(translator, space)
        of = layers(layer)
        given: dict[Any, Any] = {}
        for modality, path in pair.items():
            own = of.get(modality) if isinstance(of, dict) else of
            given[modality] = read_one(path, modality, layer=own)
        report(0, None, "encoding")
        sides = spaces_of(translator, unknown_batch=batch)[where]
        latents = {m: sides[m](measured) for m, measured in given.items()}
        found, how = match_cells(
            latents["rna"], latents["atac"], k=k, mutual=mutual, alone=one_to_one, budget_mb=budget_mb, say=report
        )
        names = given["rna"].obs.index, given["atac"].obs.index
        with replaced(out) as part:
            found.frame(*names).to_csv(part, sep="\t", index=False, float_format="%.9g")
        report(0, None, "cells of one name")
        said = paired_by_name(latents["rna"], latents["atac"], *names, found, budget_mb=budget_mb)
    for modality, measured in given.items():
        print(matched(translator, measured, modality))
    print(
        f"{len(found.rna):,} matches of {len(names[0]):,} RNA and {len(names[1]):,} ATAC cells in {out} ({how}; latent of {where})"
    )
    if said is not None:
        print(said)


def _space(translator: Any, space: str | None) -> Any:
    """The latent to match in."""
    known = translator.system.spaces()
    if not known:
        raise InputError(
            f"match: {translator.name} has no latent in which cells of RNA and of ATAC can be compared. Choose a system that has, "
            "such as babel fitted with --config.shared."
        )
    if space is not None and space not in known:
        raise InputError(
            f"--space {space}: {translator.name} compares cells in the latent of {' and of '.join(known)}."
        )
    return known[0] if space is None else space
