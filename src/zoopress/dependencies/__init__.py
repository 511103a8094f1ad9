"""Which neurons of a model can be removed, and everything that must shrink with them.

nodes    the graph: which indices of which tensors belong together
trace    run the model once and build the graph
rules    what each operator does to it
groups   the neurons that can be removed
removal  remove them, and check that the removal is exact
"""

from zoopress.dependencies.groups import Dependencies, Member, NeuronGroup, find_dependencies
from zoopress.dependencies.removal import Removal, check, exact_removal

__all__ = [
    "Dependencies",
    "Member",
    "NeuronGroup",
    "Removal",
    "check",
    "exact_removal",
    "find_dependencies",
]
