"""What this package registers; nothing of it is imported before a recipe names it."""

from zoopress import hookimpl

_HERE = __name__.rpartition(".")[0]


@hookimpl
def zoopress_criteria():
    """Register the criterion."""
    return {"filter_entropy": f"{_HERE}.filter_entropy:FilterEntropy"}


@hookimpl
def zoopress_losses():
    """Register the loss."""
    return {"attention_maps": f"{_HERE}.attention_maps:AttentionMaps"}


@hookimpl
def zoopress_blocks():
    """Register the block."""
    return {"spatially_separable": f"{_HERE}.spatially_separable:SpatiallySeparable"}


@hookimpl
def zoopress_layers():
    """Register what artifacts call the block's layer."""
    return {"spatially_separable_conv": f"{_HERE}.spatially_separable_layer:SpatiallySeparable"}
