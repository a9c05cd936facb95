"""`python -m tests.torture.soak --seconds 3600 [--life 900] [--seed 0] [--state FOLDER]`: mixed traffic.

Six clients ask for whole answers and streams, leave in the middle, and send what is too large or no request
at all; long conversations grow beside them. The server is killed after a life (every third time told to end)
and started again. What must hold: no status of 500 or above but 503 and 504, answers equal to those of a
quiet server, private memory flat within 2 % of a life, all tokens found again that a file had. With --state a
run goes on where one was ended. The last line is a JSON document, of which `make figures` makes a table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from .life import Life
from .report import Report


def main() -> int:
    """Exits with 1 if something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="of traffic, in all runs together")
    parser.add_argument("--life", type=float, default=900, help="seconds of a server, once it is warm")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, help="of the server: 1 is faster where others compute, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, metavar="FOLDER", help="where to go on from")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = options.state or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / "report.json"
        report = Report.load(kept, options.seed)
        arguments = [] if options.threads is None else ["--threads", str(options.threads)]
        while report.seconds < options.seconds and not report.is_full:
            left = options.seconds - report.seconds
            Life(report, folder, options.model, min(options.life, left), arguments).run()
            report.save(kept)
            print(
                f"life {report.lives}: {report.seconds:.0f} s, {sum(report.requests.values())} requests, "
                f"{report.compared} compared, {len(report.findings)} findings",
                flush=True,
            )
    print(json.dumps(report.document()))
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
