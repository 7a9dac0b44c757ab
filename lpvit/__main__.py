"""``python -m lpvit`` is the command ``lpvit``."""

import sys

from lpvit.cli.main import main

sys.exit(main())
