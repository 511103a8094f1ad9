"""What the kernel is told of a product."""

FIELDS = (
    *("next_piece", "next_slot", "pieces", "output_blocks", "block_outputs", "block_rows"),
    *("inputs", "rows", "columns", "padded_columns"),
    *("codes", "row_bytes", "codes_end", "bits", "signed", "outputs"),
    *("scale", "scales", "scale_size", "bias", "groups", "group_size", "zero_point", "table"),
    *("result", "scratch", "slot_floats"),
)
"""What a task is: int64 numbers, addresses in bytes; 0 where there is none.

`scale` is [outputs] or [1], or [outputs, groups] if there are groups; of bfloat16 if `scale_size`
is 2, of float32 if it is 4. `scratch` has `slot_floats` floats for each thread.
"""
