"""An output layer whose weights are embeddings of the outputs times a matrix that all outputs share."""

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn
from torch.nn.functional import linear

from expresser.errors import InputError
from translate.blocks import xavier_linear

ROUNDING = 1e-6  # of the largest number: less is no difference between rows


class FactorLinear(nn.Module):
    r""":math:`y = x\,(T M)^\top + b`, where T has a row for each output and M is shared by all.

    Rows of `known` outputs are fixed: random until `take_table`, then embeddings made elsewhere. Rows of the others are learned, and
    so are M and b. What is learnt of one output thus holds for others with rows like its own.

    The mean squared length of a row is one, and T M starts at the size of Xavier's weights. Adam moves every number by as much, and
    so outputs learn about as fast as those of an ordinary layer. With longer rows M is small: its first steps change T M by many
    times its size, while learned rows hardly move.
    """

    table: Tensor
    known: Tensor

    def __init__(self, n_in: int, n_out: int, dims: int, known: Bool[Tensor, " outputs"]) -> None:
        """dims: numbers in a row of T. ValueError where `known` is of another number of outputs."""
        super().__init__()
        if len(known) != n_out:
            raise ValueError(f"known says of {len(known)} outputs whether they are, but the layer has {n_out}.")
        self.in_features, self.out_features, self.dims = n_in, n_out, dims
        # How many known outputs come before each: on the CPU, since slices are cut by it.
        self.before = [0, *known.cumsum(0).tolist()]
        n_known = self.before[-1]
        self.register_buffer("known", known.clone(), persistent=False)
        self.register_buffer("table", torch.randn(n_known, dims) * dims**-0.5)
        self.fresh = nn.Parameter(torch.randn(n_out - n_known, dims) * dims**-0.5)
        self.mix = nn.Parameter(torch.randn(dims, n_in))
        self.bias = nn.Parameter((torch.rand(n_out) * 2 - 1) * n_in**-0.5)
        self._to_size()

    @property
    def weight(self) -> Float32[Tensor, "outputs inputs"]:
        """The weight of an ordinary layer that does the same; differentiable. Worked out anew each time."""
        return self.part(slice(None))

    def part(self, outputs: slice) -> Float32[Tensor, "some inputs"]:
        """The weight of some outputs, of which no other is worked out. ValueError for a slice with steps."""
        start, stop, step = outputs.indices(self.out_features)
        if step != 1:
            raise ValueError(f"outputs are asked in runs, not in steps of {step}.")
        stop = max(start, stop)
        first, last = self.before[start], self.before[stop]
        table, fresh = self.table[first:last], self.fresh[start - first : stop - last]
        with torch.autocast(self.mix.device.type, enabled=False):  # as the weight of an ordinary layer
            if not len(fresh):
                return table @ self.mix
            if not len(table):
                return fresh @ self.mix
            # Put into order after the product: rows of T are longer than those of the weight.
            parts = torch.cat([table @ self.mix, fresh @ self.mix])
        known = self.known[start:stop]
        return parts.index_select(0, torch.where(known, known.cumsum(0), len(table) + (~known).cumsum(0)) - 1)

    def forward(self, x: Float[Tensor, "*cells inputs"]) -> Float[Tensor, "*cells outputs"]:
        return linear(x, self.weight, self.bias)

    @torch.no_grad()
    def take_table(self, table: Float32[Tensor, "rows dims"]) -> None:
        """Fix the rows of known outputs, in their order, at this table (`standardised`), and give T M its size at the start again.

        Raises InputError where these are not as many rows or numbers as the layer has, or where they do not differ.
        """
        if table.shape != self.table.shape:
            raise InputError(
                f"a table of {len(table):,} genes in {table.shape[1]:,} numbers was given for an output layer that knows "
                f"{len(self.table):,} in {self.dims:,}. Give the pretrained model that the layer was made for."
            )
        self.table.copy_(standardised(table) * self.dims**-0.5)
        self._to_size()

    @torch.no_grad()
    def shrink(self, factor: float) -> None:
        """Multiply the weights of all outputs, in place."""
        self.mix.mul_(factor)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, dims={self.dims}, known={len(self.table)}"

    @torch.no_grad()
    def _to_size(self) -> None:
        """Scale M so that the root mean square of T M is that of Xavier's weights."""
        total = torch.stack([(rows @ self.mix).square().sum() for rows in (self.table, self.fresh)]).sum()
        size = self.in_features * self.out_features * 2 / (self.in_features + self.out_features)
        self.mix.mul_((size / total).sqrt())


OutputLayer = nn.Linear | FactorLinear


def standardised(table: Float32[Tensor, "rows dims"]) -> Float32[Tensor, "rows dims"]:
    """Each column less its mean, then all divided by one number, so that the mean square is one.

    Directions keep their sizes against one another. Raises InputError where rows are not finite, or where there are some that do
    not differ.
    """
    if not len(table):
        return table
    centred = table - table.mean(dim=0)
    size = float(centred.square().mean().sqrt())
    if not ROUNDING * float(table.abs().max()) < size < float("inf"):
        raise InputError(
            f"the embeddings of {len(table):,} genes in {table.shape[1]:,} numbers differ by {size:.3g} (root mean square): nothing "
            "tells the genes apart. Give a model that was trained, and data of which it knows more than one gene."
        )
    return centred / size


def output_layer(n_in: int, n_out: int, given: OutputLayer | None) -> OutputLayer:
    """The layer that was given, or an ordinary one (`translate.blocks.xavier_linear`). ValueError where its sizes are others."""
    if given is None:
        return xavier_linear(n_in, n_out)
    if (given.in_features, given.out_features) != (n_in, n_out):
        raise ValueError(
            f"an output layer from {given.in_features} to {given.out_features} was given for {n_in} to {n_out}."
        )
    return given


def part_of(
    layer: nn.Module, outputs: slice = slice(None)
) -> tuple[Float[Tensor, "some inputs"], Float[Tensor, " some"]]:
    """Weight and bias of some outputs, of an ordinary layer or of one by a table."""
    weight = layer.part(outputs) if isinstance(layer, FactorLinear) else layer.get_parameter("weight")[outputs]
    return weight, layer.get_parameter("bias")[outputs]


@torch.no_grad()
def shrink(layer: nn.Module, factor: float) -> None:
    """Multiply the weights of an output layer of either kind in place."""
    if isinstance(layer, FactorLinear):
        layer.shrink(factor)
    else:
        layer.get_parameter("weight").mul_(factor)
