"""Translation between modalities of single cells: published systems on one engine, judged beside baselines."""
