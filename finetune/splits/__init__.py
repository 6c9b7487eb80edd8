"""Who trains and who is tested: splits of genes and of pairs of genes that cannot leak."""
