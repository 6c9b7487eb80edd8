"""The corpus: count matrices in, memory-mapped Arrow shards and a manifest out."""
