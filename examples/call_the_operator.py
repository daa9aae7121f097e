"""Call the operator on plain tensors, and ask which backend runs.

Run: python examples/call_the_operator.py
"""

import torch

import halonet

batch, height, width, heads, channels = 2, 30, 44, 4, 16
query, key, value = (torch.randn(batch, height, width, heads, channels) for _ in range(3))
block_size, halo_size = 8, 3
row_table, column_table = (
    torch.randn(2 * (block_size + halo_size) - 1, channels // 2) for _ in range(2)
)

result = halonet.halo_attention(
    query, key, value, row_table, column_table, block_size=block_size, halo_size=halo_size
)
print(f"maps {list(query.shape)} -> {list(result.shape)}")
print(
    halonet.explain_backend(
        query, key, value, row_table, column_table, block_size=block_size, halo_size=halo_size
    )
)
