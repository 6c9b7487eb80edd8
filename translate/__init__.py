"""Translation between modalities and ATAC embedding; the six systems land here one by one."""
