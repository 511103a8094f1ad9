"""Contract of a task, and of the datasets that it reads."""

from __future__ import annotations

from zoopress.tasks.dataset import (
    Dataset as Dataset,
    File as File,
    Part as Part,
    Table as Table,
    open_dataset as open_dataset,
    row_digest as row_digest,
)
from zoopress.tasks.dataset_task import (
    DatasetTask as DatasetTask,
    Preprocessing as Preprocessing,
    RewrittenRows as RewrittenRows,
    Rows as Rows,
)
from zoopress.tasks.learning_view import (
    without_test as without_test,
)
from zoopress.tasks.outputs import (
    feed as feed,
    first_tensor as first_tensor,
    is_cache as is_cache,
    is_judged as is_judged,
    main_output as main_output,
    named_outputs as named_outputs,
    outputs_of as outputs_of,
    padded as padded,
    samples_first as samples_first,
)
from zoopress.tasks.task import (
    Batch as Batch,
    Samples as Samples,
    Split as Split,
    Task as Task,
    inputs_given_away as inputs_given_away,
    open_task as open_task,
)
