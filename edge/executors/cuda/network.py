"""The launches of a pass, in order: what a decoder layer is on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from edge.config import ModelConfig, SparseConfig
from edge.errors import ConfigError
from edge.executors.cuda.device import Address, Device
from edge.executors.cuda.matrices import Matrix
from edge.executors.cuda.operators import attention
from edge.executors.cuda.operators.dense import product
from edge.executors.cuda.operators.embedding import embed
from edge.executors.cuda.operators.head import head
from edge.executors.cuda.operators.norm import added_norm, last_norm, norm
from edge.executors.cuda.operators.pages import CachePools
from edge.executors.cuda.operators.rope import angles, rope
from edge.executors.cuda.operators.scores import scores
from edge.executors.cuda.operators.selection import Selection, select
from edge.executors.cuda.operators.summaries import check_sparse, summaries
from edge.executors.cuda.operators.swiglu import swiglu
from edge.executors.cuda.operators.tables import StepTables
from edge.executors.cuda.uploads import tile_place
from edge.executors.cuda.weights import DeviceWeights, LayerWeights
from edge.executors.cuda.workspace import DECODE_ROWS, Workspace


def sparse_obstacle(config: ModelConfig) -> str | None:
    """Why the kernels can't run this network's sparse attention; None if they can."""
    try:
        check_sparse(
            config.sparse or SparseConfig(), config.num_attention_heads // config.num_key_value_heads
        )
    except ConfigError as error:
        return str(error).removesuffix(".")
    return None


@dataclass(frozen=True)
class Pass:
    """A pass as kernels are launched for it: nothing here changes when a graph is launched again.

    tables: of all rows, those of trees first. trees: how many these are; without tiles every row is taken as
    one of a tree, which is right for causal ones too. tiles, sparse_tiles: how many of dense rows, and of
    rows with a selection, one list behind the other in the tile table.
    wanted: rows of `tables` that are normed for the head, and of them the first `logits` go through it. taps:
    layers whose output is copied to the workspace.
    """

    tables: StepTables
    tokens: Address
    tile_table: Address
    wanted_table: Address
    trees: int
    wanted: int
    logits: int
    tiles: int = 0
    sparse_tiles: int = 0
    taps: tuple[int, ...] = ()


class Network:
    """A model on a device."""

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        weights: DeviceWeights,
        pools: CachePools,
        workspace: Workspace,
        *,
        rope_scale: float,
        sparse: SparseConfig | None,
    ) -> None:
        """rope_scale: of `edge.config.rope.rope_parameters`, whose frequencies are in `weights`."""
        self._device, self._config, self._weights = device, config, weights
        self._pools, self._space = pools, workspace
        self._rope_scale, self._sparse = rope_scale, sparse

    def run(self, work: Pass) -> None:
        """Queue everything but the copies of logits beyond `DECODE_ROWS` rows."""
        device, config, space, tables = self._device, self._config, self._space, work.tables
        rows = tables.rows
        embed(
            device,
            self._weights.embedding,
            work.tokens,
            space.stream,
            rows=rows,
            scale=config.embedding_scale,
        )
        angles(
            device,
            tables,
            self._weights.inverse_frequency,
            space.angles,
            head_dim=config.head_dim,
            scale=self._rope_scale,
        )
        joined = 0  # slices of the last sub-layer's output, still to be added to the stream
        for index, layer in enumerate(self._weights.layers):
            self._add(layer.input_norm, rows, joined)
            if index - 1 in work.taps:
                self._tap(work, index - 1)
            joined = self._attention(layer, self._pools.layer(index), work)
            self._add(layer.post_norm, rows, joined)
            joined = self._mlp(layer, rows)
        last, scale = config.num_hidden_layers - 1, config.residual_scale
        if last in work.taps:
            self._add(self._weights.final_norm, rows, joined)
            self._tap(work, last)
            scale = 0.0  # it is in the stream already
        if work.wanted:
            last_norm(
                device,
                space.stream,
                space.partial,
                self._weights.final_norm,
                work.wanted_table,
                space.x,
                space.hidden,
                slices=joined,
                rows=rows,
                columns=config.hidden_size,
                scale=scale,
                epsilon=config.rms_norm_eps,
                logit_scale=config.logit_scale,
                outputs=work.wanted,
            )
        self.head(0, min(work.logits, DECODE_ROWS))

    def head(self, first: int, rows: int) -> None:
        """Logits of the wanted rows `first`, first + 1 ..., up to DECODE_ROWS, to the workspace."""
        if not rows:
            return
        space = self._space
        x = space.x + 2 * first * self._config.hidden_size
        head(self._device, self._weights.head, x, space.logits, space.partial, rows=rows)

    def complete(self, tables: StepTables) -> None:
        """Key summaries of rows that are in the cache, but were of a tree until now."""
        summaries(self._device, tables, self._pools, 0)

    def _product(self, matrix: Matrix, x: Address, rows: int) -> int:
        """Sums of products, to `partial`; returns how many slices they are of."""
        space = self._space
        return product(self._device, matrix, x, space.partial, space.dequantized, rows=rows)

    def _add(self, weight: Address, rows: int, joined: int) -> None:
        """Join the last output to the stream, and norm it into x."""
        config, space = self._config, self._space
        columns, epsilon = config.hidden_size, config.rms_norm_eps
        if not joined:
            norm(self._device, space.stream, weight, space.x, rows=rows, columns=columns, epsilon=epsilon)
            return
        added_norm(
            self._device,
            space.stream,
            space.partial,
            weight,
            space.x,
            slices=joined,
            rows=rows,
            columns=columns,
            scale=config.residual_scale,
            epsilon=epsilon,
        )

    def _tap(self, work: Pass, layer: int) -> None:
        size = 4 * work.tables.rows * self._config.hidden_size
        self._device.copy(self._space.taps + work.taps.index(layer) * size, self._space.stream, size)

    def _attention(self, layer: LayerWeights, pools: CachePools, work: Pass) -> int:
        device, config, space, tables = self._device, self._config, self._space, work.tables
        heads = config.num_attention_heads
        made = self._product(layer.qkv, space.x, tables.rows)
        rope(device, tables, pools, space.partial, space.angles, space.q, slices=made, heads=heads)
        chosen = None if self._sparse is None else self._select(self._sparse, pools, work)
        blocks = tables.blocks if chosen is None else max(tables.blocks, chosen.capacity)
        trees = work.trees if work.tiles or work.sparse_tiles else tables.rows
        for start in range(0, trees, DECODE_ROWS):
            count = min(DECODE_ROWS, trees - start)
            part = tables.part(start, count)
            attention.decode(
                device,
                part,
                pools,
                space.q + 2 * start * heads * config.head_dim,
                space.parts,
                space.tops,
                space.x + 2 * start * heads * config.head_dim,
                heads=heads,
                blocks=blocks,
                selection=None if chosen is None else chosen.part(start, config.num_key_value_heads),
            )
        sparse_table = work.tile_table + 8 * tile_place(work.tiles)
        for table, count, selection in (
            (work.tile_table, work.tiles, None),
            (sparse_table, work.sparse_tiles, chosen),
        ):
            if count:
                attention.prefill(
                    device,
                    tables,
                    pools,
                    space.q,
                    table,
                    space.x,
                    count=count,
                    heads=heads,
                    selection=selection,
                )
        return self._product(layer.out, space.x, tables.rows)

    def _select(self, sparse: SparseConfig, pools: CachePools, work: Pass) -> Selection:
        device, config, space = self._device, self._config, self._space
        summaries(device, work.tables, pools, space.path_windows)
        scores(
            device,
            work.tables,
            pools,
            sparse,
            space.q,
            space.path_windows,
            space.score_parts,
            space.block_scores,
            heads=config.num_attention_heads,
        )
        select(
            device,
            work.tables,
            sparse,
            space.block_scores,
            space.selection,
            kv_heads=config.num_key_value_heads,
        )
        return space.selection

    def _mlp(self, layer: LayerWeights, rows: int) -> int:
        device, space = self._device, self._space
        made = self._product(layer.gate_up, space.x, rows)
        swiglu(
            device,
            space.partial,
            space.x,
            slices=made,
            rows=rows,
            columns=self._config.intermediate_size,
        )
        return self._product(layer.down, space.x, rows)
