"""Which neurons of a model can be removed, and everything that must shrink with them.

nodes    the graph: which indices of which tensors belong together
reach    find inputs that reach all of the model
trace    run the model on them and build the graph
rules    what each operator does to it
group    neurons that shrink the same tensors
groups   the neurons that can be removed
unseen   what weights that no input reaches might read
removal  remove them, and check that the removal is exact
"""

from zoopress.dependencies.group import Member, NeuronGroup
from zoopress.dependencies.groups import Dependencies, find_dependencies
from zoopress.dependencies.reach import other_inputs, reaching
from zoopress.dependencies.removal import Removal, check, exact_removal

__all__ = [
    "Dependencies",
    "Member",
    "NeuronGroup",
    "Removal",
    "check",
    "exact_removal",
    "find_dependencies",
    "other_inputs",
    "reaching",
]
