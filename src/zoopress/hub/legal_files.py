"""Which files of a repository are legal texts."""

from __future__ import annotations

import re

LEGAL_FILE = re.compile(
    r"(LICEN[CS]E|NOTICE|COPYING|COPYRIGHT|USE_POLICY)[A-Za-z0-9_+-]*"
    r"(\.(txt|md|rst|pdf|html?|(apache|mit|bsd|gpl)[-0-9.]*))?",
    re.IGNORECASE,
)
"""Names of files that hold a licence, a notice or a policy of use."""
