"""`python -m edge` is the program `edge`, for environments whose scripts are not on the path."""

from edge.apps.cli.main import main

raise SystemExit(main())
