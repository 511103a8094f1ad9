"""Contract of a task, and of the datasets that it reads."""

from __future__ import annotations

from zoopress.tasks.dataset import (
    Dataset as Dataset,
)
from zoopress.tasks.dataset import (
    File as File,
)
from zoopress.tasks.dataset import (
    Part as Part,
)
from zoopress.tasks.dataset import (
    Table as Table,
)
from zoopress.tasks.dataset import (
    open_dataset as open_dataset,
)
from zoopress.tasks.dataset import (
    row_digest as row_digest,
)
from zoopress.tasks.dataset_task import (
    DatasetTask as DatasetTask,
)
from zoopress.tasks.dataset_task import (
    Preprocessing as Preprocessing,
)
from zoopress.tasks.dataset_task import (
    RewrittenRows as RewrittenRows,
)
from zoopress.tasks.dataset_task import (
    Rows as Rows,
)
from zoopress.tasks.learning_view import (
    without_test as without_test,
)
from zoopress.tasks.outputs import (
    feed as feed,
)
from zoopress.tasks.outputs import (
    first_tensor as first_tensor,
)
from zoopress.tasks.task import (
    Batch as Batch,
)
from zoopress.tasks.task import (
    Samples as Samples,
)
from zoopress.tasks.task import (
    Split as Split,
)
from zoopress.tasks.task import (
    Task as Task,
)
from zoopress.tasks.task import open_task as open_task
