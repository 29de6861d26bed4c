"""Drop-Upcycling: a mixture of experts made from a dense model (Nakamura and others, ICLR 2025, arXiv 2502.19261).

Everything but the feed-forward layers is copied. A dense SwiGLU layer of width F computes, for x of size H,

    y = W_down ( silu(W_gate x) * (W_up x) ),    W_gate, W_up: [F, H],  W_down: [H, F],

a sum over F intermediate dimensions, of which dimension i owns row i of W_gate, row i of W_up and column i of W_down.
Copying the layer into every expert ("copy") keeps what the parent knows, but equal experts receive nearly equal gradients
and specialise slowly. Drop-Upcycling makes each expert differ in a share r of its dimensions: for every layer and expert

    1. draw ONE set S of floor(r F) of the F dimensions, without replacement;
    2. for each of the three matrices take mean m and standard deviation s of its block in S (rows of gate and up, columns
       of down), and draw that block anew from N(m, s^2);
    3. keep the other F - |S| dimensions to the bit.

A new router draws its rows from N(0, 0.02^2). The paper found r = 0.5 best; r = 0 is plain copying, r = 1 new experts of the
parent's scale. With r = 0 every expert is the parent, and routing weights that are renormalised over the chosen k sum to
one, so the model computes exactly what the parent did, whatever the router says.

Two traps of public code. Drawing a set for each matrix breaks the pairing of rows and columns: then not r but 1 - (1-r)^3
of the dimensions are damaged. Drawing in place, without a copy of the parent's weights, makes all experts the last one.

Every draw has a generator of its own, seeded by a hash of (seed, layer, expert, what): a slice is computed whenever it is
asked for, in any order and any number of processes, with the same result.
"""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from megatron_jmed.convert.names import Row, rows
from megatron_jmed.convert.source import Weights
from megatron_jmed.errors import ConfigError


@dataclass(frozen=True)
class UpcycleSettings:
    """How experts are made. `ratio` belongs to "drop", `noise` (a fraction of each matrix's deviation) to "noise"."""

    num_experts: int = 8
    router_topk: int = 2
    method: Literal["drop", "copy", "noise"] = "drop"
    ratio: float = 0.5
    noise: float = 0.1
    router_std: float = 0.02
    aux_loss_coeff: float = 0.02
    seed: int = 1234

    def problems(self) -> list[str]:
        found = []
        if self.num_experts < 1:
            found.append(f"num_experts={self.num_experts} must be at least 1")
        if not 1 <= self.router_topk <= self.num_experts:
            found.append(f"router_topk={self.router_topk} must lie between 1 and num_experts={self.num_experts}")
        if not 0 <= self.ratio <= 1:
            found.append(f"ratio={self.ratio} must lie between 0 and 1")
        if not self.aux_loss_coeff >= 0:
            found.append(f"aux_loss_coeff={self.aux_loss_coeff} must not be negative")
        if not (self.noise >= 0 and self.router_std >= 0):
            found.append(f"noise={self.noise} and router_std={self.router_std} must not be negative")
        return found


class Upcycled:
    """The weights of the mixture that `settings` make from `parent`, a dense model; computed slice by slice.

    ConfigError if the settings cannot work or the parent has experts already.
    """

    def __init__(self, parent: Weights, settings: UpcycleSettings):
        found = settings.problems()
        if parent.model.num_experts:
            found.append(f"{parent.name} has {parent.model.num_experts} experts already; give a dense model")
        if found:
            raise ConfigError("; ".join(found))
        self._parent, self._settings = parent, settings
        self._parent_rows = {row.key: row for row in rows(parent.model)}
        self.name, self.dtype, self.hf_files = f"{parent.name} upcycled", parent.dtype, parent.hf_files
        self.identity: dict[str, Any] = {"parent": parent.identity, **asdict(settings)}
        self.model = parent.model.model_copy(update={"num_experts": settings.num_experts, "router_topk": settings.router_topk,
                                                     "aux_loss_coeff": settings.aux_loss_coeff})

    def get(self, row: Row, index: tuple[int, ...]) -> torch.Tensor:
        if row.key.endswith("mlp.router.weight"):
            return self._router(*index)
        if row.stacked == "by layer and expert":
            return self._expert(row, *index)
        key = row.key.replace("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight")
        return self._parent.get(self._parent_rows[key], index)

    def _router(self, layer: int) -> torch.Tensor:
        shape = (self.model.num_experts, self.model.hidden_size)
        drawn = torch.randn(shape, generator=self._generator(layer, -1, "router"))
        return (drawn * self._settings.router_std).to(self.dtype)

    def _expert(self, row: Row, layer: int, expert: int) -> torch.Tensor:
        """linear_fc1 [2F, H] (gate rows, then up rows) or linear_fc2 [H, F] of one expert; a tensor of its own."""
        parent_key = row.key.replace("experts.experts.", "")
        weight = self._parent.get(self._parent_rows[parent_key], (layer,)).clone()
        is_fc1 = row.key.endswith("linear_fc1.weight")
        # the matrices as views whose rows are intermediate dimensions
        matrices = dict(zip(("gate", "up"), weight.chunk(2, dim=0), strict=True)) if is_fc1 else {"down": weight.t()}
        if self._settings.method == "copy":
            return weight
        selected = self.selected(layer, expert)
        for name, matrix_FH in matrices.items():
            generator = self._generator(layer, expert, name)
            if self._settings.method == "drop":
                _draw_anew(matrix_FH, selected, generator)
            else:
                _add_noise(matrix_FH, self._settings.noise, generator)
        return weight

    def selected(self, layer: int, expert: int) -> torch.Tensor:
        """The sorted intermediate dimensions of an expert that are drawn anew: floor(ratio F) of them."""
        width = self.model.ffn_hidden_size
        order = torch.randperm(width, generator=self._generator(layer, expert, "selected"))
        return order[: int(self._settings.ratio * width)].sort().values

    def _generator(self, layer: int, expert: int, what: str) -> torch.Generator:
        text = f"{self._settings.seed} {layer} {expert} {what}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
        return torch.Generator().manual_seed(seed)


def _draw_anew(matrix_FH: torch.Tensor, selected: torch.Tensor, generator: torch.Generator) -> None:
    """Replace the selected rows by draws of their own mean and deviation, in place."""
    if not len(selected):
        return
    block = matrix_FH[selected].float()
    std, mean = torch.std_mean(block, correction=0)
    matrix_FH[selected] = torch.randn(block.shape, generator=generator).mul_(std).add_(mean).to(matrix_FH.dtype)


def _add_noise(matrix_FH: torch.Tensor, noise: float, generator: torch.Generator) -> None:
    """Add noise of a fraction of the matrix's deviation, in place."""
    scale = matrix_FH.float().std(correction=0) * noise
    drawn = torch.randn(matrix_FH.shape, generator=generator).mul_(scale)
    matrix_FH.copy_((matrix_FH.float() + drawn).to(matrix_FH.dtype))
