"""The shared table of cases: every backend runs all of it.

Height and width differ, neither is a multiple of the block where the name doesn't say so; batch,
heads and value channels are primes.
"""

from halonet.check.cases import AWKWARD_CASES, Case

CASES = (
    Case("plain", 7, 10, {"block_size": 4, "halo_size": 2}),
    Case("block_divides_the_map", 8, 12, {"block_size": 4, "halo_size": 1}),
    Case("no_halo", 7, 5, {"block_size": 3, "halo_size": 0}),
    Case("halo_larger_than_block", 7, 5, {"block_size": 2, "halo_size": 5}),
    Case("one_pixel_blocks", 5, 4, {"block_size": 1, "halo_size": 2}),
    Case("one_block", 6, 5, {"block_size": 6, "halo_size": 1}),
    Case("one_pixel", 1, 1, {"block_size": 4, "halo_size": 1}),
    Case("long_map", 2, 17, {"block_size": 4, "halo_size": 3}),
    Case("full_width_tables", 7, 6, {"block_size": 4, "halo_size": 2}, tables="full"),
    Case("no_tables", 7, 6, {"block_size": 4, "halo_size": 2}, tables="none"),
    Case("padding_counts", 7, 10, {"block_size": 4, "halo_size": 2, "mask_padding": False}),
    Case(
        "padding_counts_no_tables",
        7,
        6,
        {"block_size": 4, "halo_size": 2, "mask_padding": False},
        tables="none",
    ),
    Case("stride_even_map", 8, 12, {"block_size": 4, "halo_size": 3, "stride": 2}),
    Case("stride_smallest_block", 5, 7, {"block_size": 2, "halo_size": 1, "stride": 2}),
    Case(
        "stride_padding_counts",
        7,
        10,
        {"block_size": 4, "halo_size": 2, "stride": 2, "mask_padding": False},
    ),
    Case(
        "stride_as_timm",
        7,
        10,
        {
            "block_size": 4,
            "halo_size": 2,
            "stride": 2,
            "position_stride": 1,
            "position_scale": 1.0,
            "mask_padding": False,
        },
        tables="full",
    ),
    Case("scale", 7, 6, {"block_size": 4, "halo_size": 2, "scale": 0.25}),
    Case("position_scale", 7, 6, {"block_size": 4, "halo_size": 2, "position_scale": 1.5}),
    Case("one_head", 7, 6, {"block_size": 4, "halo_size": 2}, batch=1, heads=1),
    Case("wide_heads", 9, 7, {"block_size": 4, "halo_size": 2}, channels=34, value_channels=37),
    *AWKWARD_CASES,
)

KERNEL_CASES = (
    Case("kernel", 7, 10, {"block_size": 4, "halo_size": 2, "kernel_size": 3}),
    Case("kernel_of_one", 5, 6, {"block_size": 4, "halo_size": 1, "kernel_size": 1}),
    Case("kernel_fills_the_halo", 7, 5, {"block_size": 4, "halo_size": 3, "kernel_size": 7}),
    Case("kernel_stride", 7, 10, {"block_size": 4, "halo_size": 2, "kernel_size": 3, "stride": 2}),
    Case(
        "kernel_padding_counts",
        5,
        6,
        {"block_size": 4, "halo_size": 2, "kernel_size": 5, "mask_padding": False},
        tables="none",
    ),
)
