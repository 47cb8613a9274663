"""Measurements, one file each, that print a table.

Ray reads its environment when it is loaded, so ``pipelines``, which sets it, comes first.
"""

import pipelines as pipelines
