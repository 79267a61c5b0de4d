"""Records on disk, as tables, and finished adapters in other projects' formats.

The room itself can be called, for notebooks: ``harness.results("results")`` is a data frame of the records there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


class _Room(ModuleType):
    def __call__(self, results: str | Path = "results") -> pd.DataFrame:
        """Return every record below a result root, a row each; the columns are those of ``harness results export``."""
        from harness.results.frame import frame
        from harness.results.index import read_all
        from harness.results.store import Store

        return frame(read_all(Store(str(results))))


sys.modules[__name__].__class__ = _Room
