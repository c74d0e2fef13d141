"""``python -m ssl_toolkit`` is ``ssl-toolkit``."""

from ssl_toolkit.cli import main

raise SystemExit(main())
