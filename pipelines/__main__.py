"""``python -m pipelines VERB``, the same program as ``reid VERB``; the form that ``ray job submit`` runs."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main())
