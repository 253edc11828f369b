"""Charts: each an `*_info` that returns plain data, and a `draw_*` that draws it."""
