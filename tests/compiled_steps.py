"""Steps of a compiled and of a plain model side by side: a process of its own, because annotations checked at run time do not compile.

`python compiled_steps.py CORPUS BACKEND all_folds|single` prints one JSON line.
"""

import json
import sys
from dataclasses import replace

import torch
from torch._dynamo.utils import counters

from expresser.corpus.budgets import StaticShapes
from pretrain.compiled import compile_forward
from pretrain.config import DataConfig, ModelConfig, ObjectiveConfig, Recipe
from pretrain.data import gene_corpus, split, training_stream
from pretrain.objective import squared_error
from pretrain.packing import Packing
from pretrain.start import build_model


def main(folder: str, backend: str, masking: str) -> None:
    recipe = Recipe(
        model=ModelConfig(d_model=16, n_layers=1, n_heads=2, n_bins=10, value_input="bin_residual", max_genes=40),
        objective=ObjectiveConfig(masking=masking),  # type: ignore[arg-type]
        data=DataConfig(global_batch=8, max_tokens=200),
    )
    corpus, cpu = gene_corpus(folder), torch.device("cpu")
    rows = split(corpus, recipe.data, recipe.seed).train
    plain, compiled = (build_model(recipe, len(corpus.vocab)) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    for a, b in zip(plain.parameters(), compiled.parameters()):
        a.data.copy_(0.3 * torch.randn(a.shape, generator=generator))
        b.data.copy_(a.data)
    packing = {name: Packing.of(recipe, cpu, static=name == "compiled") for name in ("plain", "compiled")}
    shapes = packing["compiled"].budget
    assert isinstance(shapes, StaticShapes)
    compile_forward(compiled, shapes, backend=backend)

    losses: dict[str, list[float]] = {"plain": [], "compiled": []}
    used, gradients = set(), {}
    for name, model in (("plain", plain), ("compiled", compiled)):
        stream = training_stream(corpus, rows, recipe, budget=packing[name].budget)
        for what, counts in stream.steps(0, 6 * 8):
            loss = 0.0
            for micro, read in zip(what.micro, counts, strict=True):
                batch = packing[name].batch(read, micro.epoch)
                errors = squared_error(model(batch.cells, batch.views).prediction, truth=batch.truth)
                batch.sum(errors).backward()
                loss += float(batch.sum(errors.detach()))
                if name == "compiled":
                    used.add(shapes.shape(read.lengths.clip(max=recipe.train_genes)))
            losses[name].append(loss)
        gradients[name] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    with torch.no_grad():  # a batch as it comes, as validation has it, goes through the plain forward pass
        held = Packing.of(replace(recipe, data=replace(recipe.data, max_tokens=10**6)), cpu)
        batch = held.batch(corpus.read(rows[:30]), torch.zeros(30, dtype=torch.long).numpy())
        same = torch.equal(*(model(batch.cells, batch.views).prediction for model in (plain, compiled)))
    print(
        json.dumps(
            {
                "losses": losses,
                "gradient_difference": float((gradients["plain"] - gradients["compiled"]).norm()),
                "gradient": float(gradients["plain"].norm()),
                "graphs": counters["stats"]["unique_graphs"],
                "breaks": sum(counters["graph_break"].values()),
                "shapes": len(used),
                "dynamic_is_plain": same,
                "names": list(compiled.state_dict()) == list(plain.state_dict()),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
