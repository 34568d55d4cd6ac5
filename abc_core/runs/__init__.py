"""Where results are kept: runs that are named by what determines them, and what one notebook leaves for the next."""

from abc_core.runs.run import Run, find, footer, publish, publish_json

__all__ = ["Run", "find", "footer", "publish", "publish_json"]
