"""Property-based tests draw the same few examples every time; with ABC_EXAMPLES=1000 they draw that many new ones."""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = os.environ.get("ABC_EXAMPLES")
settings.register_profile(
    "abc", max_examples=int(EXAMPLES or 20), derandomize=EXAMPLES is None, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)  # fmt: skip
settings.load_profile("abc")
