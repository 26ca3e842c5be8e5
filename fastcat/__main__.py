import sys

from fastcat.cli import main

sys.exit(main())
