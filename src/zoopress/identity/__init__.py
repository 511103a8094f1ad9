"""What code a result depends on, found by reading it, never by running it.

modules.py    where a module's file is, without importing its package
facts.py      what a file imports and names, remembered by its content
reach.py      every file that a module leads to, and the digest of them all
loaded.py     whether this process runs what the files now say
of_parts.py   the identity of what plugins register, and of the core
"""

from __future__ import annotations

from zoopress.identity.of_cards import (
    callable_code as callable_code,
    load_callable as load_callable,
)
from zoopress.identity.of_parts import (
    Belongs as Belongs,
    Parts as Parts,
    core_code as core_code,
    every_stage_code as every_stage_code,
    report_code as report_code,
    statistics_code as statistics_code,
)
from zoopress.identity.reach import (
    Reached as Reached,
    reach as reach,
)
