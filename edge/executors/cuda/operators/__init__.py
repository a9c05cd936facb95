"""What the kernels are asked for: shapes, arguments and grids, in the order in which a layer needs them."""
