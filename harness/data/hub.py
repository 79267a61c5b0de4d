"""Whether the Hugging Face hub can be reached, found out once, so that nobody waits for retries."""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path

SECONDS = 5.0  # to wait for an answer

logger = logging.getLogger(__name__)


@cache
def is_offline() -> bool:
    """Return whether to do without the hub: because the user says so (``HF_HUB_OFFLINE``), or it does not answer.

    Then this process and those that it starts use what is in the hub's cache, and ask no more.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:
        return True
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # noqa: BLE001 - of httpx or requests, depending on the version
        logger.warning("%s does not answer (%s); going on with what is cached here", constants.ENDPOINT, error)
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        return True
    return False


def cached_commits(hub_id: str, revision: str = "") -> list[str]:
    """Return the commits of a data set that are in the hub's cache here and that a revision may mean.

    Args:
        hub_id: Of the data set.
        revision: A branch, a tag, or the beginning of a commit; empty: the main branch.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub_id, repo_type="dataset")
    named = folder / "refs" / (revision or "main")
    if named.is_file():
        return [named.read_text(encoding="utf-8").strip()]
    return sorted(each.name for each in folder.glob("snapshots/*") if each.name.startswith(revision))
