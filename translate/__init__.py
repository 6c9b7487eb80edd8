"""Translation between modalities and ATAC embedding. Empty in this version: the systems arrive with their engine."""
